// vscode-jsonrpc, which editors call language servers with: Content-Length headers over one TCP connection. It has no
// batches. Params always go as an array, so handlers that take one object find it in an array of one.
'use strict';

const net = require('node:net');
const rpc = require('vscode-jsonrpc/node');
const { host, port, tryOut } = require('./check');

const socket = net.connect({ host, port });
const connection = rpc.createMessageConnection(new rpc.SocketMessageReader(socket), new rpc.SocketMessageWriter(socket));
connection.listen();
const { byPosition } = rpc.ParameterStructures;
const spread = (params) => (Array.isArray(params) ? params : [params]);

tryOut('vscode-jsonrpc', 'TCP', {
  atOnce: 50,
  call: (method, params) => connection.sendRequest(method, byPosition, ...spread(params)),
  error: (error) => error instanceof rpc.ResponseError,
  notify: (method, params) => connection.sendNotification(method, byPosition, ...spread(params)),
}).finally(() => connection.end());
