"""Conversations out of single messages, each of which names the one that it answers (OpenAssistant's form)."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from realm_jax.instructions.fields import MISSING_FIELD, WRONG_TYPE, RecordError, clean, plain, value_at
from realm_jax.instructions.records import OnDefect, Record
from realm_jax.instructions.templates import LEFT_OUT, Template, Threads

NO_PARENT = "message that answers none of those read"
NOT_IN_TURN = "message of the same side as the one before it"
NO_REPLY = "message that nobody answered"
_MAX_TURNS = 1000


class _Message(NamedTuple):
    where: str
    parent: str
    role: str
    text: str
    rank: int


def conversations(
    records: Iterable[tuple[str, Record]], template: Template, threads: Threads, on_defect: OnDefect
) -> Iterator[tuple[str, Record]]:
    """For each message that was answered the conversation up to it, and the best answer: {"id", "questions", "answers"}.

    All messages are held in memory. Messages that `template.keep` leaves out, and what answers them, give none.

    Args:
      records: the messages, in any order; the result does not depend on it.
      template: of the data set.
      threads: its `threads`.
      on_defect: called for what cannot be used.
    """
    messages: dict[str, _Message] = {}
    for where, record in records:
        try:
            if template.is_kept(record):
                message_id, message = _message(plain(record), threads, where)
                messages[message_id] = message
            else:
                on_defect(where, LEFT_OUT)
        except RecordError as error:
            on_defect(where, error.cause)
    best: dict[str, str] = {}
    for message_id, message in messages.items():
        if message.role != threads.answers or not message.parent:
            continue
        other = best.get(message.parent)
        if other is None or (message.rank, message_id) < (messages[other].rank, other):
            best[message.parent] = message_id
    for message_id, message in messages.items():
        if message.role == threads.asks:
            try:
                yield message.where, _conversation(message_id, messages, best, threads)
            except RecordError as error:
                on_defect(message.where, error.cause)


def _message(record: Record, threads: Threads, where: str) -> tuple[str, _Message]:
    message_id = clean(value_at(record, (threads.message,)), "the id of a message")
    role = clean(value_at(record, (threads.role,)), "the role of a message")
    if not message_id:
        raise RecordError(MISSING_FIELD, "an empty id of a message")
    if role not in (threads.asks, threads.answers):
        raise RecordError(WRONG_TYPE, f"a role {role[:80]!r}, not {threads.asks!r} or {threads.answers!r}")
    parent = value_at(record, (threads.parent,))
    text = clean(value_at(record, (threads.text,)), "the text of a message")
    try:
        rank = value_at(record, (threads.rank,))
    except RecordError:  # a message without siblings need not have one
        rank = None
    rank = rank if isinstance(rank, int) and not isinstance(rank, bool) else 0
    return message_id, _Message(where, clean(parent, "a parent") if parent is not None else "", role, text, rank)


def _conversation(message_id: str, messages: dict[str, _Message], best: dict[str, str], threads: Threads) -> Record:
    if message_id not in best:
        raise RecordError(NO_REPLY, message_id)
    said = [messages[best[message_id]].text]
    wanted, at = threads.asks, message_id
    while at:
        if at not in messages or len(said) > 2 * _MAX_TURNS:  # the second: messages that answer each other in a circle
            raise RecordError(NO_PARENT, at)
        message = messages[at]
        if message.role != wanted:
            raise RecordError(NOT_IN_TURN, at)
        said.append(message.text)
        wanted, at = (threads.answers if wanted == threads.asks else threads.asks), message.parent
    said.reverse()
    if len(said) % 2:
        raise RecordError(NOT_IN_TURN, message_id)
    return {"id": message_id, "questions": said[::2], "answers": said[1::2]}
