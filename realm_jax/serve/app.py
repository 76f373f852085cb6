"""The page and the API over a service: routes, bounds, and errors as the caller can read them."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from realm_jax.answering.collection import CorpusChanged, NotUsable, UnknownDocument
from realm_jax.serve.desk import Desk
from realm_jax.serve.guard import Guard
from realm_jax.serve.page import render
from realm_jax.serve.requests import CHARACTER_BYTES, Bound, Refused, read_form, read_json
from realm_jax.serve.service import Service

_STATUS = {NotUsable: 400, UnknownDocument: 404, CorpusChanged: 503}


def make_app(service: Service, *, hosts: frozenset[str] | None, max_waiting: int = 32) -> ASGIApp:
    """The application.

    Args:
      service: what answers.
      hosts: see `Guard`.
      max_waiting: requests at work or waiting; further ones get status 503.
    """
    handlers = _Handlers(service, max_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        handlers.desk = Desk(max_waiting)
        yield

    routes = [
        Route("/", handlers.page, methods=["GET"]),
        Route("/add", handlers.page_add, methods=["POST"]),
        Route("/remove", handlers.page_remove, methods=["POST"]),
        Route("/restore", handlers.page_restore, methods=["POST"]),
        Route("/api/answer", handlers.answer, methods=["POST"]),
        Route("/api/status", handlers.status, methods=["GET"]),
        Route("/api/documents", handlers.documents, methods=["GET"]),
        Route("/api/documents", handlers.add, methods=["POST"]),
        Route("/api/documents/{name}", handlers.remove, methods=["DELETE"]),
        Route("/api/documents/{name}/restore", handlers.restore, methods=["POST"]),
    ]
    errors: dict[Any, Any] = dict.fromkeys((Refused, HTTPException, *_STATUS), handlers.refuse)
    errors[Exception] = handlers.fail
    # around everything: also what Starlette says of its own accord
    return Guard(Starlette(routes=routes, exception_handlers=errors, lifespan=lifespan), hosts)


class _Handlers:
    """One method a route. All work of the service is done at the desk."""

    def __init__(self, service: Service, max_waiting: int):
        self._service = service
        limits = service.collection
        chars, document_chars = limits.max_question_chars, limits.max_document_chars
        self._question_bound = Bound(CHARACTER_BYTES * chars + 1024, f"a question of {chars} characters")
        self._document_bound = Bound(
            CHARACTER_BYTES * (document_chars + 2 * chars) + 1024,
            f"a document of {document_chars} characters and a title of {chars}",
        )
        self.desk: Desk

    async def answer(self, request: Request) -> Response:
        (question,) = await read_json(request, self._question_bound, question="")
        return JSONResponse(await self.desk.do(lambda: self._service.answer(question)))

    async def status(self, request: Request) -> Response:
        return JSONResponse(self._service.status())

    async def documents(self, request: Request) -> Response:
        return JSONResponse(self._service.documents())

    async def add(self, request: Request) -> Response:
        self._check_editable()
        title, text = await read_json(request, self._document_bound, title="", text="")
        return JSONResponse(await self.desk.do(lambda: self._service.add(title, text)), 201)

    async def remove(self, request: Request) -> Response:
        self._check_editable()
        name = request.path_params["name"]
        await self.desk.do(lambda: self._service.collection.remove(name))
        return JSONResponse({"id": name, "removed": True})

    async def restore(self, request: Request) -> Response:
        self._check_editable()
        name = request.path_params["name"]
        await self.desk.do(lambda: self._service.collection.restore(name))
        return JSONResponse({"id": name, "removed": False})

    async def page(self, request: Request) -> Response:
        question = request.query_params.get("q", "")
        if not question.strip():
            return self._page()
        try:
            answer = await self.desk.do(lambda: self._service.answer(question))
        except (NotUsable, CorpusChanged) as error:
            shown = question[: self._service.collection.max_question_chars].encode("utf-8", "replace").decode()
            return self._page(_status_of(error), question=shown, error=str(error))
        return self._page(answer=answer, question=answer["question"])

    async def page_add(self, request: Request) -> Response:
        self._check_editable()
        question, title, text = await read_form(request, self._document_bound, "q", "title", "text")
        try:
            await self.desk.do(lambda: self._service.add(title, text))
        except NotUsable as error:
            return self._page(400, question=question, title=title, text=text, error=str(error))
        return _back(question)

    async def page_remove(self, request: Request) -> Response:
        self._check_editable()
        question, name = await read_form(request, self._question_bound, "q", "id")
        await self.desk.do(lambda: self._service.collection.remove(name))
        return _back(question)

    async def page_restore(self, request: Request) -> Response:
        self._check_editable()
        question, name = await read_form(request, self._question_bound, "q", "id")
        await self.desk.do(lambda: self._service.collection.restore(name))
        return _back(question)

    def refuse(self, request: Request, error: Exception) -> Response:
        """Any error that says what is wrong with the request."""
        if isinstance(error, Refused):
            status, message, headers = error.status, error.message, error.headers
        elif isinstance(error, HTTPException):
            status, message, headers = error.status_code, error.detail, dict(error.headers or {})
        else:
            status, message, headers = _status_of(error), str(error), {}
        return self._told(request, status, message, headers)

    def fail(self, request: Request, error: Exception) -> Response:
        """A fault of ours: the caller learns that there is one; the server writes which to its log."""
        return self._told(request, 500, "this could not be answered; the terminal of the page says why", {})

    def _told(self, request: Request, status: int, message: str, headers: dict[str, str]) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": message}, status, headers)
        response = self._page(status, error=message)
        response.headers.update(headers)
        return response

    def _page(self, status_code: int = 200, **shown: Any) -> Response:
        return HTMLResponse(render(self._service.status(), self._service.documents(), **shown), status_code)

    def _check_editable(self) -> None:
        if not self._service.editable:
            raise Refused(403, "documents cannot be changed here: the page was started with serve.editable=False")


def _status_of(error: Exception) -> int:
    return next(status for kind, status in _STATUS.items() if isinstance(error, kind))


def _back(question: str) -> Response:
    """To the page with the same question, asked anew."""
    return RedirectResponse("/?" + urlencode({"q": question}) if question else "/", 303)
