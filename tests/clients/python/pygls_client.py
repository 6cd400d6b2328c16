"""pygls, a language client: Content-Length headers over one TCP connection. It has no batches."""

import asyncio

from check import host, port, try_out
from pygls.client import JsonRPCClient
from pygls.exceptions import JsonRpcException


async def main():
    client = JsonRPCClient()
    await client.start_tcp(host, port)
    await try_out(
        "pygls",
        "TCP",
        call=client.protocol.send_request_async,
        error=JsonRpcException,
        parts=lambda error: (error.code, error.message, error.data),
        at_once=50,
        notify=client.protocol.notify,
    )
    client.protocol.writer.close()
    await client.stop()


asyncio.run(main())
