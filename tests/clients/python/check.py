"""What every client for Python is tried with, whatever its own interface looks like: 1,000 calls, batches and notifications
where it has them, errors. The scripts beside this one adapt one client each; tests/clients/run starts them.
"""

import asyncio
import importlib.metadata
import os
import sys

host, _, port = sys.argv[1].rpartition(":")
port = int(port)
url = f"http://{host}:{port}/"

CALLS = 1000
BATCHES = 10
NOTIFICATIONS = 100


def expect(what, found, wanted):
    if found != wanted:
        raise AssertionError(f"{what}: expected {wanted!r}, found {found!r}")


async def awaited(value):
    """What a client answers at once, or later."""
    return await value if asyncio.isfuture(value) or asyncio.iscoroutine(value) else value


async def try_out(name, how, *, call, error, parts, at_once=1, batch=None, notify=None):
    """Tries a client of the package `name`.

    call(method, params)    the result, or raises the client's own error; `params` are a list or a dict
    error                   that error's type
    parts(error)            its (code, message, data), or as many of them as the client keeps
    at_once                 how many calls may be under way
    batch(calls)            the answers to [(method, params), ...], each a result or an error
    notify(method, params)  sends a notification
    """
    done = [await calls(call, at_once)]
    if batch:
        done.append(await batches(batch, error, parts))
    if notify:
        done.append(await notifications(call, notify, f"{name} {how} {os.getpid()}"))
    done.append(await errors(call, error, parts))
    print(f"{name} {importlib.metadata.version(name)}, {how}: {', '.join(done)}")


async def calls(call, at_once):
    numbers = iter(range(CALLS))

    async def some():
        for n in numbers:
            params = [n, f"Grüße {n} \U0001f600"]
            expect("a call", await awaited(call("echo", params)), params)

    await asyncio.gather(*(some() for _ in range(at_once)))
    return f"{CALLS} calls, {at_once} at once"


async def batches(batch, error, parts):
    for nth in range(BATCHES):
        wanted = [[nth, n] for n in range(9)]
        answers = await awaited(batch([("echo", params) for params in wanted] + [("nothing", [])]))
        expect("answers to a batch", len(answers), 10)
        expect("results", [answer for answer in answers if not isinstance(answer, error)], wanted)
        expect("errors", [parts(answer)[0] for answer in answers if isinstance(answer, error)], [-32601])
    return f"{BATCHES} batches of 10"


async def notifications(call, notify, of):
    for _ in range(NOTIFICATIONS):
        await awaited(notify("count", {"of": of, "add": 1}))
    # They run beside later calls, so the last ones may not have yet.
    for _ in range(CALLS):
        if await awaited(call("count", {"of": of, "add": 0})) == NOTIFICATIONS:
            return f"{NOTIFICATIONS} notifications"
    raise AssertionError(f"of {NOTIFICATIONS} notifications some did not run")


async def errors(call, error, parts):
    async def raised(method, params):
        try:
            result = await awaited(call(method, params))
        except error as failure:
            return parts(failure)
        raise AssertionError(f"{method}: expected an error, found {result!r}")

    own = await raised("fail", {"code": 7, "message": "out of paper", "data": {"tray": 2}})
    expect("a handler's error", own, (7, "out of paper", {"tray": 2})[: len(own)])
    expect("no such method", (await raised("nothing", []))[0], -32601)
    expect("wrong params", (await raised("sleep", {"ms": "long"}))[0], -32602)
    return "errors"
