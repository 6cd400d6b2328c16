// @open-rpc/client-js, over HTTP.
import { Client, HTTPTransport, JSONRPCError, RequestManager } from '@open-rpc/client-js';
import check from './check.js';

const manager = new RequestManager([new HTTPTransport(check.url)]);
const client = new Client(manager);

await check.tryOut('@open-rpc/client-js', 'HTTP', {
  atOnce: 10,
  call: (method, params) => client.request({ method, params }),
  error: (error) => error instanceof JSONRPCError,
  batch: async (calls) => {
    client.startBatch();
    const answers = calls.map(([method, params]) => client.request({ method, params }));
    client.stopBatch();
    const settled = await Promise.allSettled(answers);
    return settled.map(({ value, reason }) => (reason ? { error: reason } : { result: value }));
  },
  notify: (method, params) => client.notify({ method, params }),
});
