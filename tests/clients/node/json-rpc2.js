// json-rpc2: values without a delimiter, one after another, over one TCP connection. It has no batches; what it sends as a
// notification carries `"id": null` and so is a request whose answer it throws away.
'use strict';

const rpc = require('json-rpc2');
const { host, port, tryOut } = require('./check');

rpc.Client.$create(port, host).connectSocket(async (failure, connection) => {
  if (failure) throw failure;
  await tryOut('json-rpc2', 'TCP', {
    atOnce: 50,
    call: (method, params) =>
      new Promise((resolve, reject) => {
        connection.call(method, params, (error, result) => (error ? reject(error) : resolve(result)));
      }),
    // Its errors are the answer's `error`, as it came.
    error: (error) => !(error instanceof Error),
    notify: (method, params) => connection.call(method, params),
  });
  connection.end();
});
