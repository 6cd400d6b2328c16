"""tinyrpc, over HTTP with the requests package: it sends no Content-Type."""

import asyncio

import requests
from check import try_out, url
from tinyrpc import RPCClient
from tinyrpc.protocols.jsonrpc import JSONRPCError, JSONRPCErrorResponse, JSONRPCProtocol
from tinyrpc.transports.http import HttpPostClientTransport


def as_arguments(params):
    return (params, {}) if isinstance(params, list) else ([], params)


class Client:
    def __init__(self, session):
        self.protocol = JSONRPCProtocol()
        self.client = RPCClient(self.protocol, HttpPostClientTransport(url, session.post))

    def call(self, method, params):
        return self.client.call(method, *as_arguments(params))

    def notify(self, method, params):
        self.client.call(method, *as_arguments(params), one_way=True)

    def batch(self, calls):
        requests = [self.protocol.create_request(method, *as_arguments(params)) for method, params in calls]
        message = self.protocol.create_batch_request(requests).serialize()
        answers = self.protocol.parse_reply(self.client.transport.send_message(message))
        return [JSONRPCError(answer) if isinstance(answer, JSONRPCErrorResponse) else answer.result for answer in answers]


def parts(error):
    return error._jsonrpc_error_code, error.message, getattr(error, "data", None)


with requests.Session() as session:
    client = Client(session)
    attempt = try_out(
        "tinyrpc", "HTTP", call=client.call, error=JSONRPCError, parts=parts, batch=client.batch, notify=client.notify
    )
    asyncio.run(attempt)
