"""The serve job: what it refuses before it loads anything, and a whole one as users start it."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest

from realm_jax.serve import server
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
