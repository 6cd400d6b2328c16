// vscode-jsonrpc, which editors call language servers with: Content-Length headers over one TCP connection. It has no
// batches.
'use strict';

const net = require('node:net');
const rpc = require('vscode-jsonrpc/node');
const { host, port, tryOut } = require('./check');

const socket = net.connect({ host, port });
const connection = rpc.createMessageConnection(new rpc.SocketMessageReader(socket), new rpc.SocketMessageWriter(socket));
connection.listen();
const spread = (params) => (Array.isArray(params) ? params : [params]);

tryOut('vscode-jsonrpc', 'TCP', {
  atOnce: 50,
  call: (method, params) => connection.sendRequest(method, ...spread(params)),
  error: (error) => error instanceof rpc.ResponseError,
  notify: (method, params) => connection.sendNotification(method, ...spread(params)),
}).finally(() => connection.end());
