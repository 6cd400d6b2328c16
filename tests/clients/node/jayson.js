// jayson, over TCP and over HTTP. It opens a connection for each call, and after a notification sends FIN at once.
'use strict';

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
  batch: (calls) => client.request(calls.map(([method, params]) => client.request(method, params, undefined, false))),
  notify: (method, params) => client.request(method, params, null),
});

(async () => {
  await tryOut('jayson', 'TCP', adapted(jayson.client.tcp({ host, port })));
  await tryOut('jayson', 'HTTP', adapted(jayson.client.http({ host, port })));
})();
