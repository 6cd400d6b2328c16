// jayson, over TCP and over HTTP. It opens a connection for each call, and after a notification sends FIN at once.
'use strict';

const assert = require('node:assert/strict');
const jayson = require('jayson/promise');
const { host, port, tryOut } = require('./check');

const adapted = (client) => ({
  atOnce: 10,
  call: async (method, params) => {
    const answer = await client.request(method, params);
    if (answer.error) throw answer.error;
    return answer.result;
  },
  // Its errors are the answer's `error`, as it came.
  error: (error) => !(error instanceof Error),
  batch: async (calls) => {
    const requests = calls.map(([method, params]) => client.request(method, params, undefined, false));
    const answers = await client.request(requests);
    assert.equal(answers.length, requests.length);
    return requests.map(({ id }) => answers.find((answer) => answer.id === id));
  },
  notify: (method, params) => client.request(method, params, null),
});

(async () => {
  await tryOut('jayson', 'TCP', adapted(jayson.client.tcp({ host, port })));
  await tryOut('jayson', 'HTTP', adapted(jayson.client.http({ host, port })));
})();
