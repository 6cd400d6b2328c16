"""python-lsp-jsonrpc: Content-Length headers over one TCP connection. It has no batches."""

import asyncio
import socket
import threading

from check import host, port, try_out
from pylsp_jsonrpc.endpoint import Endpoint
from pylsp_jsonrpc.exceptions import JsonRpcException
from pylsp_jsonrpc.streams import JsonRpcStreamReader, JsonRpcStreamWriter

connection = socket.create_connection((host, port))
endpoint = Endpoint({}, JsonRpcStreamWriter(connection.makefile("wb")).write)
reader = JsonRpcStreamReader(connection.makefile("rb"))
listening = threading.Thread(target=reader.listen, args=(endpoint.consume,))
listening.start()

attempt = try_out(
    "python-lsp-jsonrpc",
    "TCP",
    call=lambda method, params: endpoint.request(method, params).result(timeout=10),
    error=JsonRpcException,
    parts=lambda error: (error.code, error.message, error.data),
    notify=endpoint.notify,
)
try:
    asyncio.run(attempt)
finally:
    connection.shutdown(socket.SHUT_RDWR)
    listening.join()
    endpoint.shutdown()
