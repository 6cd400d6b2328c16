"""aiorpcx, JSON values in lines over one TCP connection."""

import asyncio

from aiorpcx import RPCError, connect_rs
from check import host, port, try_out


async def main():
    async with connect_rs(host, port) as session:

        async def batch(calls):
            async with session.send_batch() as several:
                for method, params in calls:
                    several.add_request(method, params)
            return several.results

        await try_out(
            "aiorpcx",
            "TCP",
            call=session.send_request,
            error=RPCError,
            # It keeps no data.
            parts=lambda error: (error.code, error.message),
            at_once=50,
            batch=batch,
            notify=session.send_notification,
        )


asyncio.run(main())
