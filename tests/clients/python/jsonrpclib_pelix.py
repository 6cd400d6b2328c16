"""jsonrpclib-pelix, over HTTP. 204, by which a notification is answered that was taken, it calls an error, and doesn't use
the connection well after that.
"""

import asyncio

import jsonrpclib
from check import try_out, url
from jsonrpclib.jsonrpc import MultiCall, ProtocolError, TransportError


def do(method, params):
    return method(*params) if isinstance(params, list) else method(**params)


def parts(error):
    """The codes of JSON-RPC itself come without data."""
    return (*error.args[0], None)[:3]


def batch(calls):
    several = MultiCall(server)
    for method, params in calls:
        do(getattr(several, method), params)
    answers = several()
    results = []
    for nth in range(len(answers)):
        try:
            results.append(answers[nth])
        except ProtocolError as error:
            results.append(error)
    return results


def notify(method, params):
    try:
        do(getattr(server._notify, method), params)
    except TransportError as answer:
        if answer.errcode != 204:
            raise
        server("close")()


server = jsonrpclib.ServerProxy(url)
attempt = try_out(
    "jsonrpclib-pelix",
    "HTTP",
    call=lambda method, params: do(getattr(server, method), params),
    error=ProtocolError,
    parts=parts,
    batch=batch,
    notify=notify,
)
asyncio.run(attempt)
server("close")()
