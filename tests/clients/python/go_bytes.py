"""What Go's net/rpc/jsonrpc writes and reads, byte by byte, where no Go toolchain is installed: JSON-RPC 1.0 in a stream, an
array of one param, ids that count from 0, errors as text. It has neither batches nor notifications.
"""

import json
import socket

from check import CALLS, expect, host, port

connection = socket.create_connection((host, port))
answers = connection.makefile("r", encoding="utf-8")


def send(number, method, param):
    text = json.dumps({"method": method, "params": [param], "id": number}, separators=(",", ":"), ensure_ascii=False)
    connection.sendall(f"{text}\n".encode())


def receive():
    """What Go keeps of an answer, if it takes it."""
    answer = json.loads(answers.readline())
    # It is an error if `error` is there or `result` is null, and then `error` must be a text.
    if answer["error"] is not None or answer["result"] is None:
        expect("an error's type", type(answer["error"]), str)
    return answer["id"], answer["result"], answer["error"]


for number in range(CALLS):
    send(number, "ping", number)
expect("answers", sorted(receive() for _ in range(CALLS)), [(number, [number], None) for number in range(CALLS)])

send(CALLS, "fail", {"code": 7, "message": "out of paper"})
expect("an error", receive(), (CALLS, None, "out of paper (code 7)"))
send(CALLS + 1, "nothing", None)
number, result, error = receive()
expect("no such method", (number, result, "nothing" in error), (CALLS + 1, None, True))
print(f"the bytes of Go's net/rpc/jsonrpc, TCP: {CALLS} calls, all at once, errors")
