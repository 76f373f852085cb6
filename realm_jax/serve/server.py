"""The serve job: a page and an API to ask a fine-tuned run, on this machine's own address unless told otherwise."""

import contextlib
import importlib.util
import ipaddress
import logging
import socket

from realm_jax.answering.collection import Collection
from realm_jax.answering.loading import Answering, load_answerer
from realm_jax.retrieval.manifest import Backend
from realm_jax.run_dir import RunDir

logger = logging.getLogger(__name__)

_NEEDED = ("starlette", "uvicorn")


def serve(
    *,
    run_dir: str,
    task: Answering,
    host: str = "127.0.0.1",
    port: int = 8000,
    editable: bool = True,
    step: int | None = None,
    index_version: int | None = None,
    backend: Backend | None = None,
    max_question_chars: int = 1_000,
    max_document_chars: int = 100_000,
    max_added_blocks: int = 2_000,
    max_waiting: int = 32,
) -> None:
    """Serves a page to ask a run that was fine-tuned on questions, and a JSON API beside it, until Ctrl-C.

    The answer is shown in its document, the other candidates with p(z|x). Documents can be added and removed: they are
    kept in memory alone, the run and its corpus stay as they are.

    Args:
      run_dir: the run.
      task: its settings, as it was trained with.
      host: address to listen on. Any but a loopback address lets others in: nobody is asked for a password.
      port: to listen on; 0 for any that is free.
      editable: whether documents may be added and removed.
      step: which checkpoint; None for the newest.
      index_version: which index version; None for the one that the run serves, or its newest.
      backend: None for the one that the index was built for; "exact" searches all documents.
      max_question_chars: longer questions are refused.
      max_document_chars: longer documents are refused.
      max_added_blocks: blocks that may be added in all.
      max_waiting: requests at work or waiting; further ones are told to try again.

    Raises:
      ValueError: a run of another kind, parts that do not fit each other, an address that is taken, the extra is missing.
      FileNotFoundError: the run has no such checkpoint.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"the serve job needs {' and '.join(missing)}: pip install 'realm_jax[serve]'")
    for name, value in (
        ("max_question_chars", max_question_chars),
        ("max_document_chars", max_document_chars),
        ("max_waiting", max_waiting),
    ):
        if value < 1:
            raise ValueError(f"serve.{name} must be at least 1, got {value}")
    from realm_jax.serve.app import make_app
    from realm_jax.serve.guard import LOOPBACK
    from realm_jax.serve.http_server import http_server
    from realm_jax.serve.service import Service

    run = RunDir.of(run_dir)
    with contextlib.closing(_listen(host, port)) as listening:
        loaded = load_answerer(run, task, step=step, index_version=index_version, backend=backend)
        logger.info("%s", loaded.describe())
        collection = Collection(
            loaded.answerer,
            loaded.corpus,
            loaded.index,
            max_question_chars=max_question_chars,
            max_document_chars=max_document_chars,
            max_added=max_added_blocks,
        )
        service = Service(run, loaded, collection, editable=editable)
        service.warm_up()
        local = is_loopback(host)
        if not local:
            logger.warning(
                "listening on %s: whoever reaches this machine may ask%s", host, " and change documents" * editable
            )
        app = make_app(service, hosts=LOOPBACK | {host} if local else None, max_waiting=max_waiting)
        print(f"ask at {address(listening)}  (Ctrl-C ends)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
            http_server(app, max_question_chars).run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address(listening: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    """Takes the address before anything is loaded.

    Raises:
      ValueError: it is taken, or is none of this machine.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"serve.port must lie between 0 and 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host} port {port} ({error.strerror or error}); choose another with --gin.serve.port"
        ) from error
