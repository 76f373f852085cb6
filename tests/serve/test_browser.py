"""The page in a real browser: ask, read, add, ask again, remove, with the keyboard alone. Writes its picture when asked.

`make browser` runs it and fails without a Chromium; here alone is it skipped. CONTRIBUTING.md names its two variables.
"""

import contextlib
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from realm_jax.serve.app import make_app
from realm_jax.serve.guard import LOOPBACK
from realm_jax.serve.http_server import http_server
from realm_jax.serve.server import address

QUESTION = "Where was the painter Ada Brook born?"


@contextlib.contextmanager
def served(app):
    """Serves an app from a thread; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = http_server(app, 1000)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.02)
            yield address(listening)
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def browser():
    found = os.environ.get("REALM_JAX_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    found = found or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium; install one, or name one as REALM_JAX_CHROMIUM")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])  # pages of ours alone
        yield browser
        browser.close()


def test_ask_read_add_ask_again_remove(browser, make_service):
    with served(make_app(make_service(), hosts=LOOPBACK)) as place:
        context = browser.new_context(viewport={"width": 900, "height": 760}, device_scale_factor=2)
        page = context.new_page()
        complaints, elsewhere = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: elsewhere.append(request.url) if not request.url.startswith(place) else None)

        page.goto(place)
        page.wait_for_function("document.activeElement.id === 'q'")  # the question box gets the focus by itself
        page.keyboard.type(QUESTION)
        page.keyboard.press("Enter")
        page.wait_for_selector("#answer")
        assert page.inner_text("#answer") == "Oslo"
        assert page.inner_text("#document mark") == "Oslo"
        assert page.inner_text("#document").startswith("Ada Brook was a painter.")
        rows = page.query_selector_all("#candidates .candidate")
        assert len(rows) == 4 and rows[0].query_selector(".tag").inner_text() == "answered"
        assert "null document" in rows[-1].inner_text()
        probs = [float(row.query_selector(".prob span").inner_text()) for row in rows]
        bars = [row.query_selector(".prob i").bounding_box()["width"] for row in rows]
        whole = rows[0].query_selector(".prob").bounding_box()["width"]
        assert sum(probs) == pytest.approx(1, abs=0.003)
        assert [bar / whole for bar in bars] == pytest.approx(probs, abs=0.02)
        assert page.inner_text("#version").startswith("version 500, ") and "old" in page.inner_text("#version")

        page.focus("#title")
        page.keyboard.type("Ada Brook, painter")
        page.keyboard.press("Tab")
        page.keyboard.type(
            "Letters found last year show that Ada Brook, the painter, was born in Nice & not elsewhere."
        )
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("ul.changes")
        assert page.input_value("#q") == QUESTION and page.inner_text("#answer") == "Nice"
        assert "in Nice & not elsewhere." in page.inner_text("#document")
        first = page.query_selector("#candidates .candidate")
        assert [tag.inner_text() for tag in first.query_selector_all(".tag")] == ["answered", "added"]
        assert page.inner_text("#searched") == "8"
        if place_of_picture := os.environ.get("REALM_JAX_SCREENSHOT"):
            page.evaluate("document.activeElement.blur()")
            page.screenshot(path=Path(place_of_picture), full_page=True)

        page.keyboard.press("Escape")
        first.query_selector("button").click()
        page.wait_for_selector("ul.changes", state="detached")
        assert page.inner_text("#answer") == "Oslo" and page.inner_text("#searched") == "7"

        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 23)"
        page.set_viewport_size({"width": 380, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        assert not complaints and not elsewhere
        context.close()


def test_hostile_text_stays_text(browser, make_service):
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    with served(make_app(make_service(), hosts=LOOPBACK)) as place:
        page = browser.new_page()
        dialogs = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(place)
        page.fill("#title", f"{hostile} Ada Brook Ada Brook Ada Brook")
        page.fill("#text", "Ada Brook was born in </mark><b>Rome</b>")
        page.click("#add")
        page.wait_for_selector("ul.changes")
        page.fill("#q", f"Ada Brook {hostile}")
        page.click("#ask")
        page.wait_for_selector("#answer")
        assert page.inner_text("#answer") == "Rome" and hostile in page.inner_text("#candidates")
        assert page.inner_text("#document") == "Ada Brook was born in </mark><b>Rome</b>"
        assert page.query_selector("img") is None and page.query_selector("script") is None and not dialogs
        page.goto(place + "/?q=" + "word+" * 10_000)
        assert "the question may have 1000 characters, got 50000; shorten it" in page.inner_text("#error")
        page.close()


def test_a_document_of_markup_is_shown_and_not_run(browser, make_service):
    hostile = (
        "<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)><a href=javascript:alert(4)>Ada</a>"
    )
    with served(make_app(make_service(), hosts=LOOPBACK)) as place:
        page = browser.new_page()
        dialogs, requests, complaints = [], [], []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        title, text = f"{hostile} Ada Brook Ada Brook Ada Brook", f"Ada Brook was born in Rome {hostile}"
        assert page.request.delete(f"{place}/api/documents/0").status == 200  # it says Oslo
        assert page.request.post(f"{place}/api/documents", data={"title": title, "text": text}).status == 201
        page.goto(f"{place}/?q=Ada+Brook")
        assert page.inner_text("#answer") == "Rome"
        # the rest of it is another block
        assert page.inner_text("#document") == "Ada Brook was born in Rome <script>alert(1)</script><img src=x"
        assert title in page.inner_text("ul.changes")
        for element in ("script", "img", "svg", "a[href^='javascript:']"):
            assert page.query_selector(element) is None, element
        page.wait_for_timeout(300)  # what would load or run late
        assert not dialogs and not complaints and requests == [f"{place}/?q=Ada+Brook"]
        page.close()


def test_text_runs_in_the_direction_of_its_script(browser, make_service):
    with served(make_app(make_service(), hosts=LOOPBACK)) as place:
        page = browser.new_page()
        page.goto(place + "/?q=Ada+Brook")
        assert page.evaluate("getComputedStyle(document.querySelector('#document')).direction") == "ltr"
        page.fill("#title", "أدا بروك Ada Brook Ada Brook")
        page.fill("#text", "ولدت Ada Brook في Nice")
        page.click("#add")
        page.wait_for_selector("ul.changes")
        assert page.inner_text("#answer") == "Nice"
        for place_of_text in ("#document", "#candidates .candidate .text", "#candidates .candidate b"):
            element = page.query_selector(place_of_text)
            assert element.evaluate("element => getComputedStyle(element).direction") == "rtl", place_of_text
        page.close()
