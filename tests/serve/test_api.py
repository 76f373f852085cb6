"""The API and the page in process: what they answer, and what they refuse and how."""

import concurrent.futures
import html
import json
import re
import shutil
import threading
import time

import pytest
from starlette.testclient import TestClient

from realm_jax.answering.collection import Collection
from realm_jax.answering.loading import load_answerer
from realm_jax.corpus.store import Corpus
from realm_jax.serve.app import make_app
from realm_jax.serve.desk import Desk
from realm_jax.serve.guard import LOOPBACK
from realm_jax.serve.service import Service
from tests.answering import made_run, made_world

QUESTION = "Where was Ada Brook born?"
FORM = "application/x-www-form-urlencoded"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&lt;'


@pytest.fixture
def make_client(make_service):
    clients = []

    def make(max_waiting=8, **settings):
        app = make_app(make_service(**settings), hosts=LOOPBACK, max_waiting=max_waiting)
        client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False, follow_redirects=True)
        clients.append(client.__enter__())
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client):
    return make_client()


def ask(client, question=QUESTION):
    response = client.post("/api/answer", json={"question": question})
    assert response.status_code == 200, response.text
    return response.json()


def add(client, title, text):
    response = client.post("/api/documents", json={"title": title, "text": text})
    assert response.status_code == 201, response.text
    return response.json()


def shown(client, path):
    """Status and text of a page, its tags taken out."""
    response = client.get(path)
    return response.status_code, html.unescape(re.sub(r"<[^>]+>", "", response.text.split("</style>")[1]))


def test_an_answer_tells_which_documents_answered_and_from_which_index(client):
    answer = ask(client)
    assert (answer["question"], answer["answer"], answer["document"]) == (QUESTION, "Oslo", "0")
    probs = [found["prob"] for found in answer["documents"]]
    assert sum(probs) == pytest.approx(1) and probs[0] == max(probs) and len(probs) == 4
    first, null = answer["documents"][0], answer["documents"][-1]
    span = first["span"]
    assert first["text"][span["start"] : span["end"]] == span["text"] == "Oslo"
    assert (first["id"], first["is_answer"], first["is_added"]) == ("0", True, False)
    assert (null["id"], null["is_null"], null["span"], null["number"]) == (None, True, None, -1)
    assert answer["index"]["version"] == made_run.VERSION and answer["index"]["search_recall"] == 1.0
    assert 0 <= answer["index"]["age_secs"] < 3600 and answer["ms"] > 0 and answer["pieces_left_out"] == 0


def test_the_status(client):
    status = client.get("/api/status").json()
    assert (status["run"], status["checkpoint_step"], status["problem"]) == ("encyclopedia", made_run.STEP, None)
    expected = {"version": 500, "newest_version": 500, "age_steps": 100, "backend": "exact", "search_recall": 1.0}
    assert {name: status["index"][name] for name in expected} == expected
    assert status["documents"] == {"searched": 7, "corpus": 7, "added": 0, "removed": 0}
    assert status["limits"] == {"question_chars": 1000, "document_chars": 100000}


def test_over_scann_the_answer_changes_with_the_documents(params, tmp_path):
    """ScaNN is what an index is unless told otherwise."""
    run = made_run.make_run(tmp_path / "run", params, made_world.corpus(tmp_path / "corpus"), "scann")
    loaded = load_answerer(run, made_world.task(tmp_path / "corpus"))
    service = Service(run, loaded, Collection(loaded.answerer, Corpus.open(tmp_path / "corpus"), loaded.index))
    with TestClient(make_app(service, hosts=LOOPBACK), base_url="http://127.0.0.1") as client:
        assert client.get("/api/status").json()["index"]["backend"] == "scann"
        assert ask(client)["answer"] == "Oslo"
        add(client, "Ada Brook", "Ada Brook, born in Nice.")
        assert (ask(client)["answer"], ask(client)["document"]) == ("Nice", "added-1")
        for name in ("added-1", "0", "3"):
            assert client.delete(f"/api/documents/{name}").status_code == 200
        found = [document["id"] for document in ask(client)["documents"]]
        assert len(found) == 4 and not {"added-1", "0", "3"} & set(found)
        for number in (1, 2, 4, 5):  # two documents read where three are asked for
            client.delete(f"/api/documents/{number}")
        assert [document["id"] for document in ask(client)["documents"]] == ["6", None]
        client.delete("/api/documents/6")
        answer = ask(client)
        assert (answer["answer"], answer["document"], len(answer["documents"])) == ("", None, 1)
        text = shown(client, f"/?q={QUESTION}")[1]
        assert "no answer" in text and "no document was found" in text and "could be read" not in text
        client.post("/api/documents/0/restore")
        assert ask(client)["answer"] == "Oslo"


def test_the_answer_changes_with_the_documents(client):
    assert ask(client)["answer"] == "Oslo"
    made = add(client, "Ada Brook", "Ada Brook, born in Nice.")
    assert made == {"id": "added-1", "title": "Ada Brook", "numbers": [7]}
    answer = ask(client)
    assert (answer["answer"], answer["document"], answer["documents"][0]["is_added"]) == ("Nice", "added-1", True)
    assert client.get("/api/status").json()["documents"] == {"searched": 8, "corpus": 7, "added": 1, "removed": 0}

    assert client.delete("/api/documents/added-1").json() == {"id": "added-1", "removed": True}
    assert ask(client)["answer"] == "Oslo"
    assert client.delete("/api/documents/0").status_code == 200
    answer = ask(client)
    assert answer["answer"] != "Oslo" and "0" not in [found["id"] for found in answer["documents"]]
    assert client.get("/api/documents").json() == {"added": [], "removed": [{"id": "0", "title": "Ada Brook"}]}
    assert client.post("/api/documents/0/restore").json() == {"id": "0", "removed": False}
    assert ask(client)["answer"] == "Oslo"
    assert add(client, "", "graz")["id"] == "added-2"  # a name is never used twice


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "the question is empty; ask something"),
        (" \t\r\n ", "the question is empty; ask something"),
        ("\x00\x01\x07", "the question is empty; ask something"),
        ("where " * 10_000, "the question may have 1000 characters, got 60000; shorten it"),
        ("who \ud800 there", "the question is no Unicode text: it holds half a surrogate pair"),
    ],
)
def test_questions_that_are_refused(client, question, message):
    body = json.dumps({"question": question})  # \ud800 is legal JSON
    response = client.post("/api/answer", content=body, headers={"content-type": "application/json"})
    if len(question) > 50_000:  # refused before it is read
        told = "a request may hold a question of 1000 characters (13024 bytes), got 60016 bytes; shorten it"
        assert (response.status_code, response.json()) == (413, {"error": told})
        question = question[:1200]
        message = "the question may have 1000 characters, got 1200; shorten it"
        response = client.post("/api/answer", json={"question": question})
    assert (response.status_code, response.json()) == (400, {"error": message})
    if "\ud800" not in question and question.strip():
        response = client.get("/", params={"q": question})
        assert response.status_code == 400 and message in response.text


@pytest.mark.parametrize(
    "question", ["奥斯陆在哪里？", "где Ада?", "أين أدا", "🙂🙂", "a\x00da\u202e\u0301 brook", HOSTILE, "Ω" * 1000]
)
def test_questions_in_any_script_are_answered(client, question):
    assert ask(client, question)["answer"]
    response = client.get("/", params={"q": question})
    assert response.status_code == 200 and "<script>" not in response.text and "<img" not in response.text


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        ("{", "application/json", 400, "got what is no JSON"),
        ("[1]", "application/json", 400, 'expected JSON such as {"question": "…"}, got list'),
        ('{"question": 3}', "application/json", 400, "expected a string for 'question', got int"),
        ('{"query": "a"}', "application/json", 400, "got ['query']"),
        ("[" * 9000, "application/json", 400, "got what is no JSON"),
        ("\udcff".encode("utf-8", "surrogateescape"), "application/json", 400, "got what is no JSON"),
        ('{"question": "a"}', "text/plain", 415, "expected the header Content-Type: application/json"),
    ],
)
def test_requests_that_are_no_questions(client, body, kind, status, message):
    response = client.post("/api/answer", content=body, headers={"content-type": kind})
    assert response.status_code == status and message in response.json()["error"]


def test_bodies_are_read_no_further_than_they_may_be_long(client):
    def chunks():  # without a length announced
        for _ in range(14):
            yield b" " * 1000

    for content, got in ((chunks(), "more"), (b" " * 14_000, "14000 bytes")):
        response = client.post("/api/answer", content=content, headers={"content-type": "application/json"})
        told = f"a request may hold a question of 1000 characters (13024 bytes), got {got}; shorten it"
        assert (response.status_code, response.json()) == (413, {"error": told})
    response = client.post("/add", content=b"a" * 1_300_000, headers={"content-type": FORM})
    assert response.status_code == 413
    assert "a document of 100000 characters and a title of 1000 (1225024 bytes), got 1300000 bytes" in response.text


@pytest.mark.parametrize(
    ("length", "status", "message"),
    [
        ("-1", 400, "expected a number of bytes as Content-Length, got '-1'"),
        ("x", 400, "expected a number of bytes as Content-Length, got 'x'"),
        ("\xb2", 400, "expected a number of bytes as Content-Length"),  # a digit to Python
        ("1" * 5000, 413, "(13024 bytes), got a Content-Length of 5000 digits; shorten it"),
    ],
)
def test_lengths_that_are_announced_wrongly(client, length, status, message):
    headers = {"content-type": "application/json", "content-length": length.encode("latin-1")}
    response = client.post("/api/answer", content=b"{}", headers=headers)
    assert response.status_code == status and message in response.json()["error"]


def test_what_is_not_there(client):
    for method, path, status, message in (
        (
            "DELETE",
            "/api/documents/7",
            404,
            "there is no document '7'; those of the corpus are 0 to 6, added ones: none",
        ),
        ("DELETE", "/api/documents/-1", 404, "there is no document '-1'"),
        ("DELETE", "/api/documents/%D9%A3", 404, "there is no document"),  # a digit, of Arabic
        ("DELETE", "/api/documents/added-1", 404, "there is no document 'added-1'"),
        ("POST", "/api/documents/3/restore", 404, "document 3 was not removed"),
        ("GET", "/api/nothing", 404, "Not Found"),
        ("GET", "/api/answer", 405, "Method Not Allowed"),
    ):
        response = client.request(method, path)
        assert response.status_code == status and message in response.json()["error"], path
    client.delete("/api/documents/3")
    assert client.delete("/api/documents/3").json() == {"error": "document 3 is removed already"}


@pytest.mark.parametrize(
    ("title", "text", "message"),
    [
        ("a", "", "the document is empty; give it some text"),
        ("a", " \x00\n", "the document is empty; give it some text"),
        ("a" * 1001, "b", "the title may have 1000 characters, got 1001; shorten it"),
        ("a", "b" * 100_001, "the document may have 100000 characters, got 100001; shorten it"),
        ("a", "\udc80", "the document is no Unicode text: it holds half a surrogate pair"),
        ("\udc80", "b", "the title is no Unicode text: it holds half a surrogate pair"),
    ],
)
def test_documents_that_are_refused(client, title, text, message):
    response = client.post(
        "/api/documents",
        content=json.dumps({"title": title, "text": text}),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400 and message in response.json()["error"]
    assert client.get("/api/documents").json()["added"] == []


def test_hostile_documents_are_shown_as_text(client):
    add(client, HOSTILE, f"{HOSTILE} Ada Brook, Ada Brook was born in Lima </mark><script>alert(3)</script>")
    response = client.get("/", params={"q": QUESTION})
    assert '<p class="answer" id="answer" dir="auto">Lima</p>' in response.text
    for tag in ("<script", "<img", "alert(1)</", "onerror=alert(2)>&"):
        assert tag not in response.text
    assert html.escape(HOSTILE, quote=False).replace('"', "&#34;") in response.text
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_page_says_what_the_null_document_is(client):
    """Its weight is of p(z|x) alone: who extracts answers cannot do so without a document."""
    _, text = shown(client, f"/?q={QUESTION}")
    assert "an empty document, scored like the others: with nothing in it to read, it never answers" in text


def test_the_forms_of_the_page(client):
    page = client.post("/add", data={"q": QUESTION, "title": "Ada Brook", "text": "Ada Brook, born in Graz."})
    assert str(page.url).endswith("/?q=Where+was+Ada+Brook+born%3F") and "<mark>Graz</mark>" in page.text
    page = client.post("/remove", data={"q": QUESTION, "id": "added-1"})
    assert '<p class="answer" id="answer" dir="auto">Oslo</p>' in page.text
    page = client.post("/remove", data={"q": QUESTION, "id": "0"})
    assert "put back Ada Brook" in page.text and '<p class="answer" id="answer" dir="auto">Oslo</p>' not in page.text
    page = client.post("/restore", data={"q": QUESTION, "id": "0"})
    assert '<p class="answer" id="answer" dir="auto">Oslo</p>' in page.text
    page = client.post("/add", data={"q": QUESTION, "title": "kept", "text": " "})
    assert page.status_code == 400 and "the document is empty; give it some text" in page.text
    assert 'value="kept"' in page.text  # what was typed is not lost
    for data, status in (({"id": "99"}, 404), ({"id": ""}, 404)):
        assert client.post("/remove", data=data).status_code == status
    assert client.post("/add", content=b"\xff", headers={"content-type": FORM}).status_code == 400
    assert client.post("/add", json={}).status_code == 415
    assert client.get("/").status_code == 200 and 'id="answer"' not in client.get("/").text


def test_other_sites_are_refused(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/", headers={"host": "localhost:8000"}).status_code == 200
    for origin in ("http://evil.example", "null", "", "http://127.0.0.1:9", "http://[::1", "http://[127.0.0.1]"):
        for path in ("/remove", "/api/documents/1/restore"):
            response = client.post(path, data={"id": "0"}, headers={"origin": origin})
            assert response.status_code == 403 and "changes come from this page alone" in response.json()["error"]
            assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert client.post("/remove", data={"id": "0"}, headers={"origin": "http://127.0.0.1"}).status_code == 200


def test_a_page_that_shows_and_changes_nothing(make_client):
    client = make_client(editable=False)
    assert ask(client)["answer"] == "Oslo"
    text = client.get("/", params={"q": QUESTION}).text
    assert "<form method=" not in text and 'action="/remove"' not in text and 'action="/add"' not in text
    for response in (
        client.delete("/api/documents/0"),
        client.post("/api/documents", json={"text": "a"}),
        client.post("/remove", data={"id": "0"}),
    ):
        assert response.status_code == 403 and "serve.editable=False" in response.text


def test_many_clients_at_once_are_all_answered(make_client):
    client = make_client(max_waiting=40)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        texts = [f"Ada Brook number {number} , Ada Brook , born in Nice" for number in range(10)]
        asked = [pool.submit(ask, client) for _ in range(20)]
        added = [pool.submit(add, client, "", text) for text in texts]
        answers = [future.result()["answer"] for future in asked]
        names = [future.result()["id"] for future in added]
    assert set(answers) <= {"Oslo", "Nice"} and sorted(names) == sorted(f"added-{n}" for n in range(1, 11))
    numbers = [number for text in client.get("/api/documents").json()["added"] for number in text["numbers"]]
    assert sorted(numbers) == list(range(7, 17)) and ask(client)["answer"] == "Nice"


def test_more_clients_than_can_wait_are_told_to_come_back(make_client, monkeypatch):
    desks = []

    def make_desk(max_waiting):
        desks.append(Desk(max_waiting))
        return desks[-1]

    monkeypatch.setattr("realm_jax.serve.app.Desk", make_desk)
    client = make_client(max_waiting=2)
    begun, go_on = threading.Semaphore(0), threading.Event()
    answer = Collection.answer

    def slow(self, question):
        begun.release()
        assert go_on.wait(60)
        return answer(self, question)

    monkeypatch.setattr(Collection, "answer", slow)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, client)
        assert begun.acquire(timeout=60)
        second = pool.submit(ask, client)
        while desks[0].waiting < 2:
            time.sleep(0.01)
        response = client.post("/api/answer", json={"question": "a"})
        go_on.set()
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert "2 requests wait already; try again" in response.json()["error"]
        assert first.result()["answer"] == second.result()["answer"] == "Oslo"
    assert ask(client)["answer"] == "Oslo"


def test_a_corpus_that_vanishes_or_changes_under_the_page(make_client, make_service, tmp_path):
    client = make_client(own_corpus=True)
    assert ask(client)["answer"] == "Oslo"
    content = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps(content | {"fingerprint": "another"}))
    response = client.post("/api/answer", json={"question": QUESTION})
    assert (
        response.status_code == 503 and "was built anew; embed it and start the page again" in response.json()["error"]
    )
    shutil.rmtree(tmp_path / "corpus")
    response = client.post("/api/answer", json={"question": QUESTION})
    assert response.status_code == 503 and "corpus is gone (no corpus at" in response.json()["error"]
    assert "is gone" in client.get("/api/status").json()["problem"]
    status, text = shown(client, f"/?q={QUESTION}")
    assert status == 503 and text.count("is gone") == 1
    assert client.get("/").status_code == 200


def test_a_fault_of_ours_is_told_without_its_details(client, monkeypatch):
    monkeypatch.setattr(Collection, "answer", lambda self, question: 1 / 0)
    response = client.post("/api/answer", json={"question": QUESTION})
    assert (response.status_code, response.json()) == (
        500,
        {"error": "this could not be answered; the terminal of the page says why"},
    )
    assert "default-src 'none'" in response.headers["content-security-policy"]
    response = client.get("/", params={"q": QUESTION})
    assert response.status_code == 500 and "ZeroDivisionError" not in response.text
