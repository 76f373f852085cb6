"""The page of the serve job under 50 clients, of whom half are hostile: latency of valid questions, statuses, memory.

    python benchmarks/page_under_load.py [--minutes=5] [--clients=50]

Starts a real `serve` process on the made-up encyclopedia of the tests (seven documents, a model of one layer: the page's own
work is measured, not a model's), for a fifth of the time with valid questions alone, then with hostile requests among them: bodies that
are too long, JSON that is broken or deep, wrong types and methods, heads of megabytes, paths that lead upwards, NUL bytes, half
surrogate pairs, other sites' posts and names, documents of markup, and clients that never finish a request. Traffic goes to the loopback
address alone. Prints percentiles, statuses by kind and the server's memory; ends with 1 if a request got another status than meant.
"""

import argparse
import asyncio
import collections
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = tuple(f"Where was {name} born?" for name in ("Ada Brook", "Cleo Dahl", "Ben Clark", "the painter"))
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"
JSON, TEXT = "application/json", "text/plain"
BUSY = 503  # too many wait: meant, whatever is asked
SLOW_SHARE = 0.1  # of the clients only ever send half a request


class Server(NamedTuple):
    process: subprocess.Popen[str]
    host: str
    port: int
    log: Path


class Reply(NamedTuple):
    """Status 0: the server closed the connection without one."""

    status: int
    body: bytes


class Done(NamedTuple):
    kind: str
    status: int
    ms: float


Ask = Callable[[Server, random.Random], Awaitable[Reply]]


async def exchange(server: Server, request: bytes) -> Reply:
    """Sends bytes, reads all that comes back until the server closes or the body is whole."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(request)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        body = await reader.readexactly(int(length[1])) if length else await reader.read()
        return Reply(int(head[9:12]), body)
    except (asyncio.IncompleteReadError, ConnectionError):
        return Reply(0, b"")
    finally:
        writer.close()


def http(
    server: Server, method: str, path: str, body: bytes = b"", kind: str = JSON, *more: str, host: str = ""
) -> bytes:
    head = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host or f'{server.host}:{server.port}'}",
        f"Content-Type: {kind}",
        *more,
    ]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "Connection: close", "", ""]).encode() + body


def posting(
    body: Callable[[random.Random], bytes], path: str = "/api/answer", kind: str = JSON, *more: str, host: str = ""
) -> Ask:
    async def ask(server: Server, rng: random.Random) -> Reply:
        return await exchange(server, http(server, "POST", path, body(rng), kind, *more, host=host))

    return ask


def getting(path: Callable[[random.Random], str], method: str = "GET") -> Ask:
    async def ask(server: Server, rng: random.Random) -> Reply:
        return await exchange(server, http(server, method, path(rng)))

    return ask


def sending(content: Callable[[random.Random], bytes]) -> Ask:
    async def ask(server: Server, rng: random.Random) -> Reply:
        return await exchange(server, content(rng))

    return ask


def question_body(rng: random.Random) -> bytes:
    return json.dumps({"question": rng.choice(QUESTIONS)}).encode()


async def add_markup_and_remove_it(server: Server, rng: random.Random) -> Reply:
    """A document of markup comes and goes; the page that lists it meanwhile holds none of its elements."""
    body = json.dumps({"title": MARKUP, "text": f"{MARKUP} born in Nice."}).encode()
    reply = await exchange(server, http(server, "POST", "/api/documents", body))
    if reply.status != 201:
        return reply
    page = await exchange(server, http(server, "GET", "/"))
    name = json.loads(reply.body)["id"]
    removed = BUSY
    while removed == BUSY:  # else documents gather, and memory with them
        await asyncio.sleep(0.1)
        removed = (await exchange(server, http(server, "DELETE", f"/api/documents/{name}"))).status
    shown_as_text = page.status == BUSY or (b"<script" not in page.body and b"<img" not in page.body)
    return reply if removed == 200 and shown_as_text else Reply(removed, b"")


async def never_finish(server: Server, rng: random.Random) -> Reply:
    """Half a head or half a body, then nothing until the server hangs up."""
    half = http(server, "POST", "/api/answer", b"x" * 50)
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(half[: rng.randrange(1, len(half) - 1)])
        await writer.drain()
        content = await reader.read()
        return Reply(int(content[9:12]) if content else 0, content)
    except ConnectionError:
        return Reply(0, b"")
    finally:
        writer.close()


VALID: dict[str, tuple[Ask, frozenset[int]]] = {
    "question, API": (posting(question_body), frozenset({200})),
    "question, page": (
        getting(lambda rng: "/?" + urllib.parse.urlencode({"q": rng.choice(QUESTIONS)})),
        frozenset({200}),
    ),
}
HOSTILE: dict[str, tuple[Ask, frozenset[int]]] = {
    "status": (getting(lambda rng: "/api/status"), frozenset({200})),
    "body too long": (posting(lambda rng: b" " * 200_000), frozenset({413, 0})),
    "length of 5000 digits": (sending(lambda rng: b"POST /api/answer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                                      b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n"), frozenset({400, 413})),
    "broken JSON": (posting(lambda rng: question_body(rng)[: rng.randrange(20)]), frozenset({400})),
    "deep JSON": (posting(lambda rng: b"[" * 12_000), frozenset({400})),
    "half surrogate pair": (posting(lambda rng: b'{"question": "\\ud800"}'), frozenset({400})),
    "no UTF-8": (posting(lambda rng: b'{"question": "\xff\xfe"}'), frozenset({400})),
    "wrong type": (posting(question_body, "/api/answer", TEXT), frozenset({415})),
    "other site": (posting(question_body, "/api/answer", JSON, "Origin: http://evil.example"), frozenset({403})),
    "other name": (posting(question_body, host="evil.example"), frozenset({403})),
    "form as JSON": (posting(question_body, "/add"), frozenset({415})),
    "form of 100 fields": (posting(lambda rng: b"&".join([b"q=1"] * 100), "/add", "application/x-www-form-urlencoded"), frozenset({400})),
    "head of 2 MB": (sending(lambda rng: b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: " + b"b" * (2 << 20)), frozenset({400, 0})),
    "path upwards": (getting(lambda rng: rng.choice(("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/documents/../../../etc/passwd",
                                                    "/static/..%5c..%5cwin.ini", "//etc/passwd"))), frozenset({404, 405})),
    "wrong method": (getting(lambda rng: "/", "PUT"), frozenset({405})),
    "no document": (getting(lambda rng: f"/api/documents/{'9' * rng.randrange(1, 6000)}", "DELETE"), frozenset({404, 200})),
    "NUL bytes": (sending(lambda rng: b"GET /\x00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), frozenset({400})),
    "no HTTP": (sending(lambda rng: rng.randbytes(200) + b"\r\n\r\n"), frozenset({400, 0})),
    "document of markup": (add_markup_and_remove_it, frozenset({201})),
    "question too long": (getting(lambda rng: "/?q=" + "word+" * 5000), frozenset({400})),
}  # fmt: skip
SLOW: dict[str, tuple[Ask, frozenset[int]]] = {"never finished": (never_finish, frozenset({0, 400}))}


def start(place: Path) -> Server:
    """A run of the tests' encyclopedia, served."""
    sys.path.insert(0, str(ROOT))
    made_run, made_world = (importlib.import_module(f"tests.answering.{name}") for name in ("made_run", "made_world"))
    run = made_run.make_run(place / "run", made_world.params(), made_world.corpus(place / "run" / "corpus"))
    log = place / "serve.log"
    command = [
        sys.executable, "-m", "realm_jax", "serve", f"--run_dir={run.path}", f"--gin_file={run.config_file('train')}",
        "--gin.serve.task=@open_qa.OpenQa()", "--gin.serve.port=0",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    found = re.search(r"http://([\d.]+):(\d+)", process.stdout.readline())
    if found is None:
        raise SystemExit(f"the page did not start: {log.read_text()}")
    return Server(process, found[1], int(found[2]), log)


def memory_mib(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


async def client(
    server: Server, kinds: list[tuple[str, Ask]], rng: random.Random, until: float, done: list[Done]
) -> None:
    while time.monotonic() < until:
        name, ask = rng.choice(kinds)
        begin = time.perf_counter()
        reply = await ask(server, rng)
        done.append(Done(name, reply.status, (time.perf_counter() - begin) * 1e3))
        await asyncio.sleep(rng.random() * 0.2)


async def load(server: Server, clients: int, secs: float, hostile: bool, memory: list[float]) -> list[Done]:
    done: list[Done] = []
    until = time.monotonic() + secs
    valid = [(name, ask) for name, (ask, _) in VALID.items()]
    bad = [(name, ask) for name, (ask, _) in HOSTILE.items()]
    slow = [(name, ask) for name, (ask, _) in SLOW.items()]
    num_slow = round(SLOW_SHARE * clients) if hostile else 0
    tasks = []
    for number in range(clients):
        kinds = slow if number < num_slow else bad if hostile and number % 2 else valid
        tasks.append(asyncio.create_task(client(server, kinds, random.Random(number), until, done)))

    async def watch() -> None:
        while time.monotonic() < until:
            memory.append(memory_mib(server))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *tasks)
    return done


def percentiles(values: list[float]) -> str:
    ordered = sorted(values)
    return "".join(
        f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:9.0f}" for share in (0.5, 0.9, 0.95, 0.99, 1)
    )


def report(phases: dict[str, list[Done]], memory: list[float], server: Server) -> bool:
    """Prints the tables; whether all was as meant."""
    meant = {name: statuses | {BUSY} for name, (_, statuses) in {**VALID, **HOSTILE, **SLOW}.items()}
    print(
        f"\n{'valid questions, ms':30}{'answered':>9}{'503':>7}{'median':>9}{'90 %':>9}{'95 %':>9}{'99 %':>9}{'most':>9}"
    )
    for phase, done in phases.items():
        for name in VALID:
            found = [entry for entry in done if entry.kind == name]
            answered = [entry.ms for entry in found if entry.status == 200]
            busy = sum(entry.status == BUSY for entry in found)
            print(f"{f'{name}, {phase}':30}{len(answered):9}{busy:7}{percentiles(answered) if answered else ''}")
    by_kind: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for entry in (entry for done in phases.values() for entry in done):
        by_kind[entry.kind][entry.status] += 1
    print(f"\n{'kind':30}{'requests':>9}  statuses (0: closed without one)")
    for name, statuses in by_kind.items():
        wrong = set(statuses) - meant[name]
        listed = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
        print(f"{name:30}{statuses.total():9}  {listed}{f'   NOT MEANT: {sorted(wrong)}' if wrong else ''}")
    thirds = memory[len(memory) // 20], memory[len(memory) // 2], memory[-1]
    print(
        f"\nmemory of the server, MiB: {thirds[0]:.0f} at the start, {thirds[1]:.0f} in the middle, {thirds[2]:.0f} at the end, {max(memory):.0f} at most"
    )
    log = server.log.read_text()
    faults = log.count("Traceback") + log.count("ERROR")
    print(f"faults in the server's log: {faults}")
    return not faults and all(set(statuses) <= meant[name] for name, statuses in by_kind.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=50)
    options = parser.parse_args()
    secs = 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder))
        try:
            memory: list[float] = []
            phases = {
                "alone": asyncio.run(load(server, options.clients, secs / 5, False, memory)),
                "with hostile": asyncio.run(load(server, options.clients, 4 * secs / 5, True, memory)),
            }
            load_average = os.getloadavg()[0]
            print(
                f"{options.clients} clients, {options.minutes:g} minutes, {len(os.sched_getaffinity(0))} cores, load {load_average:.1f}"
            )
            as_meant = report(phases, memory, server)
            last = asyncio.run(
                exchange(server, http(server, "POST", "/api/answer", b'{"question": "Where was Ada Brook born?"}'))
            )
            answer = json.loads(last.body)["answer"] if last.status == 200 else None
            print(f"afterwards it answers {answer!r}")
        finally:
            server.process.send_signal(signal.SIGINT)
            try:
                server.process.wait(60)
            finally:
                server.process.kill()
    return 0 if as_meant and answer == "Oslo" else 1


if __name__ == "__main__":
    sys.exit(main())
