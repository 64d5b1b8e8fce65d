"""A worker that speaks the evaluator's protocol from a file of answers, and fails on request. Starts in milliseconds.

    python faulty_worker.py ANSWERS DESCRIPTOR

It shares no code with the evaluator, so a fault in the protocol's own code does not cancel out.
"""

import json
import os
import random
import signal
import struct
import sys
import time

with open(sys.argv[1]) as file:
    ANSWERS = json.load(file)
OUT = int(sys.argv[2])


def write(data):
    while data:
        data = data[os.write(OUT, data) :]


def answer(message):
    found = ANSWERS[message["op"]]
    if message["op"] in ("answers", "dense"):
        texts = [ANSWERS["texts"][f"{i} {turn}"] for i, turn in message["forks"]]
        found = {**found, "answers": texts}
        if message["op"] == "answers":
            found["reads"] = len(texts)
    return found


def fail(kind, frame, body, rng):
    """Fails in one way; returns what is sent all the same."""
    if kind == "hang":
        time.sleep(600)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exit":
        os._exit(rng.choice((0, 1, 255)))
    if kind == "out of memory":
        os.write(2, b"MemoryError\n")
        os._exit(1)
    if kind == "memory":
        held = bytearray(os.urandom(1 << 20) * 160)
        time.sleep(600 + len(held) * 0)
    if kind == "child":
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        os._exit(3)
    if kind == "garbage":
        write(rng.randbytes(rng.randint(1, 4096)))
        time.sleep(600)
    if kind == "garbage in a frame":
        noise = rng.randbytes(rng.randint(0, 400))
        return struct.pack(">I", len(noise)) + noise
    if kind == "truncated":
        write(frame[: rng.randrange(len(frame))])
        os._exit(0)
    if kind == "cut off":
        write(frame[: rng.randrange(len(frame))])
        time.sleep(600)
    if kind == "endless":
        return struct.pack(">I", (1 << 32) - 1)
    if kind == "twice":
        return frame + frame
    if kind == "another form":
        body = dict(body)
        body["ok"] = rng.choice([None, [], "", 7, {"speedup": 99.0}, {**body["ok"], "accepted": True}])
        return pack(body)
    if kind == "another question":
        return pack({**body, "nonce": "0" * 16})
    if kind == "a bit":
        damaged = bytearray(frame)
        damaged[rng.randrange(4, 30)] ^= 0x80
        return bytes(damaged)
    if kind == "says so":
        return pack({"nonce": body["nonce"], "failed": "IndexError in worker.py:1: \x1b[31mred"})
    if kind == "slow":
        for at in range(0, len(frame), 1 + len(frame) // 8):
            write(frame[at : at + 1 + len(frame) // 8])
            time.sleep(0.004)
        return b""
    if kind == "noisy":
        for _ in range(8):
            os.write(2, b"\x1b[2J" + b"x" * 60000 + b"\n")
    return frame


def pack(body):
    data = json.dumps(body).encode()
    return struct.pack(">I", len(data)) + data


while header := sys.stdin.buffer.read(4):
    message = json.loads(sys.stdin.buffer.read(struct.unpack(">I", header)[0]))
    body = {"nonce": message["nonce"], "ok": answer(message)}
    write(fail(message.get("fault", ""), pack(body), body, random.Random(message.get("seed", 0))))
