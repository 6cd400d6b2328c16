#!/usr/bin/env python3
"""A pre-fork RPC server in plain Python: workers that inherit one listener, a thread for each connection in each.

A message is four bytes, its length as a little-endian integer, then that many bytes of JSON:
{"in": METHOD, "params": ANY} is answered by {"out": NAME, "result": ANY}.

usage: prefork.py [WORKERS]        prints the address that it listens on; TERM ends it
"""

import json
import os
import signal
import socket
import struct
import sys
import threading

PREFIX = struct.Struct("<I")
LONGEST = 1024 * 1024
BUFFER = 16 * 1024


def ping(params):
    return "pong", params


METHODS = {"ping": ping}


def answer(message):
    """The answer to one message, both as bytes of JSON."""
    request = json.loads(message)
    method = METHODS.get(request["in"])
    if method is None:
        name, result = "error", {"code": -32601, "message": "no such method"}
    else:
        name, result = method(request.get("params"))
    return json.dumps({"out": name, "result": result}, separators=(",", ":")).encode()


def converse(connection):
    """Answers every message of a connection, in order, until its caller is gone."""
    with connection, connection.makefile("rb", BUFFER) as messages:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while len(prefix := messages.read(PREFIX.size)) == PREFIX.size:
            (length,) = PREFIX.unpack(prefix)
            if length > LONGEST:
                break
            reply = answer(messages.read(length))
            connection.sendall(PREFIX.pack(len(reply)) + reply)


def talk(connection):
    try:
        converse(connection)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # gone, or not speaking this protocol: either way the connection is over


def start_worker(listener):
    """Forks a worker; its pid."""
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=talk, args=(connection,), daemon=True).start()


def main():
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    pids = set()

    def end(*_):
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    pids.update(start_worker(listener) for _ in range(workers))
    print("%s:%d" % listener.getsockname(), flush=True)
    while True:
        dead, _ = os.wait()
        pids.remove(dead)
        pids.add(start_worker(listener))


if __name__ == "__main__":
    main()
