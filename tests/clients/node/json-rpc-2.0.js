// json-rpc-2.0, which leaves sending to its user: here by Node's own `fetch`, over HTTP.
'use strict';

const { JSONRPCClient, JSONRPCErrorException } = require('json-rpc-2.0');
const { url, tryOut } = require('./check');

const client = new JSONRPCClient(async (payload) => {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(payload),
  });
  if (response.status === 200) client.receive(await response.json());
  else if (response.status !== 204) throw new Error(`${response.status} ${await response.text()}`);
});
let id = 0;

tryOut('json-rpc-2.0', 'HTTP', {
  atOnce: 10,
  call: (method, params) => client.request(method, params),
  error: (error) => error instanceof JSONRPCErrorException,
  batch: async (calls) => {
    const requests = calls.map(([method, params]) => ({ jsonrpc: '2.0', method, params, id: `b${id++}` }));
    const answers = await client.requestAdvanced(requests);
    return requests.map(({ id }) => answers.find((answer) => answer.id === id));
  },
  notify: (method, params) => client.notify(method, params),
});
