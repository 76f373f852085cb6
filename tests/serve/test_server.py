"""The serve job: what it refuses before it loads anything, and a whole one as users start it."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from realm_jax.serve import http_server, server
from realm_jax.serve.app import make_app
from realm_jax.serve.guard import LOOPBACK
from realm_jax.serve.server import serve
from tests.answering import made_world


def start(run, **settings):
    serve(run_dir=str(run.path), task=made_world.task(run.corpus), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 65536}, "serve.port must lie between 0 and 65535, got 65536"),
        ({"host": "192.0.2.1"}, r"cannot listen on 192.0.2.1 port 8000 \(.+\); choose another with --gin.serve.port"),
        ({"host": "no such host"}, "cannot listen on no such host port 8000"),
        ({"max_waiting": 0}, "serve.max_waiting must be at least 1, got 0"),
        ({"max_question_chars": 0}, "serve.max_question_chars must be at least 1, got 0"),
        ({"port": 0, "index_version": 3}, r"has no version 3; it has \[500\]"),
    ],
)
def test_what_is_refused_at_the_start(run, settings, message):
    with pytest.raises(ValueError, match=message):
        start(run, **settings)


def test_a_port_that_is_taken(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1 port {port} .*choose another"):
            start(run, port=port)


def test_without_the_extra(run, monkeypatch):
    monkeypatch.setattr(server, "_NEEDED", ("no_such_module",))
    with pytest.raises(ValueError, match=r"the serve job needs no_such_module: pip install 'realm_jax\[serve\]'"):
        start(run)


@pytest.fixture
def served(make_service, monkeypatch):
    """The page in a thread, which hangs up after 0.5 s; gives its address."""
    monkeypatch.setattr(http_server, "_REQUEST_SECS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = http_server.http_server(make_app(make_service(), hosts=LOOPBACK), 1000)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        while not running.started:
            time.sleep(0.02)
        yield listening.getsockname()[:2]
        running.should_exit = True
        thread.join(30)


HEAD = b"POST /api/answer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", HEAD + b"X-A: 1\r\n", HEAD + b'Content-Length: 50\r\n\r\n{"question"']
)
def test_who_does_not_finish_a_request_is_hung_up_on(served, sent):
    """Else 256 such connections, which cost nothing, would keep everybody else out."""
    slow = [socket.create_connection(served) for _ in range(270)]
    for connection in slow:
        connection.sendall(sent)
    for connection in slow:
        connection.settimeout(60)
        while connection.recv(65536):  # perhaps told so; then the end
            pass
        connection.close()
    body = b'{"question": "Where was Ada Brook born?"}'
    with socket.create_connection(served) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200") and b'"answer":"Oslo"' in answer


def test_a_malformed_head_request_is_hung_up_on(served, caplog):
    """The words of a refusal are no answer to HEAD; h11 refuses to send them, and uvicorn does not expect that."""
    with socket.create_connection(served) as connection:
        connection.settimeout(60)
        connection.sendall(b"HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 400") and answer.endswith(b"\r\n\r\n")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_who_leaves_in_the_middle_of_a_request_is_no_fault_of_ours(served, caplog):
    with socket.create_connection(served) as connection:
        connection.sendall(HEAD + b'Content-Length: 50\r\n\r\n{"question"')
    with urllib.request.urlopen(f"http://{served[0]}:{served[1]}/api/status", timeout=60) as response:
        assert response.status == 200
    time.sleep(0.2)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_whole_one(run):
    """From the configuration that training saved, until Ctrl-C."""
    command = [
        sys.executable, "-m", "realm_jax", "serve", f"--run_dir={run.path}", f"--gin_file={run.config_file('train')}",
        "--gin.serve.task=@open_qa.OpenQa()", "--gin.serve.port=0",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"ask at (http://127\.0\.0\.1:\d+)  \(Ctrl-C ends\)\n", line)
        assert found, line + process.communicate(timeout=60)[1]
        place = found[1]
        body = json.dumps({"question": "Where was Cleo Dahl born?"}).encode()
        request = urllib.request.Request(f"{place}/api/answer", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["answer"] == "Rome"
            assert "server" not in response.headers
        with urllib.request.urlopen(f"{place}/?q=Where+was+Cleo+Dahl+born", timeout=60) as response:
            assert 'id="answer" dir="auto">Rome<' in response.read().decode()
        for word in ("word", "कहाँ", "𞤀𞤣𞤤𞤢𞤥𞤣𞤤𞤢"):  # of up to 12 bytes a letter in an address
            question = " ".join([word] * 10_000)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{place}/?q={urllib.parse.quote_plus(question)}", timeout=60)
            assert refused.value.code == 400
            told = f"the question may have 1000 characters, got {len(question)}; shorten it"
            assert told in refused.value.read().decode()
            assert refused.value.headers["content-security-policy"].startswith("default-src 'none'")
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, ""), errors
        assert "checkpoint 600, index version 500 (exact, 7 documents, search recall 1.000)" in errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()
