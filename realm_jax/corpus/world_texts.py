"""How the embedded corpus is told: articles that state each fact twice, and sentences to mask in other words."""

import functools
import re
from random import Random
from typing import NamedTuple

from realm_jax.corpus import world_draws as draws
from realm_jax.corpus.sources.article import Article
from realm_jax.corpus.world_entities import Entity, Fact, Pools
from realm_jax.corpus.world_phrases import FRAMES, PASSING_MENTIONS, STAND_INS

Span = tuple[int, int]


class _Text:
    """A text in the making that remembers where its names are."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0
        self.spans: list[Span] = []

    def add(self, text: str) -> None:
        self.parts.append(text)
        self.length += len(text)

    def mention(self, name: str) -> Span:
        span = (self.length, self.length + len(name))
        self.add(name)
        self.spans.append(span)
        return span

    def __str__(self) -> str:
        return "".join(self.parts)


_FIELDS = re.compile(r"\{(\w)\}")


@functools.cache
def _parsed(template: str) -> tuple[str, ...]:
    """The template's literals (at even places) and fields (at odd ones), its first letter made a capital."""
    parts = _FIELDS.split(template)
    parts[0] = parts[0][:1].upper() + parts[0][1:]
    return tuple(parts)


@functools.cache
def _parsed_inside(template: str) -> tuple[str, ...]:
    return tuple(_FIELDS.split(template))


def write_article(
    article_id: str, entity: Entity, facts: list[Fact], pools: Pools, passing_mentions: float, rng: Random
) -> Article:
    """Writes every fact twice: in a sentence of its own, and in a summary line of catch phrases at the end.

    `passing_mentions` is the chance of a further sentence that mentions an unrelated entity.
    """
    sentences = [(draws.pick(rng, fact.phrases.article[:2]), fact.object) for fact in facts]
    if rng.random() < passing_mentions:
        mentioned = draws.other(rng, pools.names_by_kind[entity.kind], {entity.name, *(fact.object for fact in facts)})
        place = int(rng.random() * len(sentences)) + 1
        sentences.insert(place, (draws.pick(rng, PASSING_MENTIONS[entity.kind]), mentioned))

    text = _Text()
    for number, (wording, object_name) in enumerate(sentences):
        start = text.length
        for i, part in enumerate(_parsed(wording)):
            if i % 2 == 0:
                text.add(part)
            elif part == "o":
                text.mention(object_name)
            else:
                _mention_subject(text, entity, full=number == 0, at_start=text.length == start, rng=rng)
        text.add(". ")

    for number, fact in enumerate(draws.shuffled(rng, facts)):
        before, after = fact.phrases.article[2].split("{o}")
        text.add(before if number else before[:1].upper() + before[1:])
        text.mention(fact.object)
        text.add(after + ("; " if number + 1 < len(facts) else "."))
    return Article(article_id, entity.name, str(text), salient_spans=tuple(text.spans))


def _mention_subject(text: _Text, entity: Entity, *, full: bool, at_start: bool, rng: Random) -> None:
    draw = rng.random()
    if full or draw < 0.5:
        text.mention(entity.name)
    elif draw < 0.75:
        text.mention(entity.short)
    else:
        stand_in = STAND_INS[entity.kind]
        text.add(stand_in[:1].upper() + stand_in[1:] if at_start else stand_in)


class Shares(NamedTuple):
    """How often sentences to mask are hard in which way: see `WorldConfig`."""

    paraphrases: float
    partial_mentions: float
    passing_mentions: float


class SentenceText(NamedTuple):
    """A sentence to mask; spans are half-open character offsets into `text`."""

    text: str
    object_span: Span
    all_spans: tuple[Span, ...]
    partial: bool
    paraphrase: bool


def write_sentence(
    entity: Entity, fact: Fact, facts: list[Fact], wording_id: int, pools: Pools, shares: Shares, rng: Random
) -> SentenceText:
    """Words one fact as a sentence from elsewhere would, with its subject named in full or in part.

    Args:
      entity: the subject.
      fact: what is said of it.
      facts: all that its article says; one of the others may tell which bearer of a shared name is meant.
      wording_id: which of the three wordings.
      pools: where the entities mentioned beside come from.
      shares: how often what makes it hard is used.
      rng: of the draws.
    """
    paraphrase = rng.random() < shares.paraphrases
    # An article's third wording is the summary's, without a subject.
    wording = fact.phrases.sentence[wording_id] if paraphrase else fact.phrases.article[wording_id % 2]
    partial = rng.random() < shares.partial_mentions and len(facts) > 1
    clue = draws.pick(rng, [other for other in facts if other is not fact]) if partial else None
    taken = {entity.name, *(each.object for each in facts)}
    frame, guests = draws.pick(rng, FRAMES) if rng.random() < shares.passing_mentions else ("{c}", ())

    text = _Text()
    object_span = (0, 0)
    for i, part in enumerate(_parsed(frame)):
        if i % 2 == 0:
            text.add(part)
        elif part == "c":
            clause = _parsed(wording) if text.length == 0 else _parsed_inside(wording)
            object_span = _add_clause(text, clause, entity, fact, clue)
        else:
            guest = draws.other(rng, pools.names_by_kind[guests[int(part)]], taken)
            taken.add(guest)
            text.mention(guest)
    text.add(".")
    return SentenceText(str(text), object_span, tuple(text.spans), partial, paraphrase)


def _add_clause(text: _Text, parts: tuple[str, ...], entity: Entity, fact: Fact, clue: Fact | None) -> Span:
    """Adds the fact; with a clue the subject is named by its shared word and the clue. Returns the object's span."""
    object_span = (0, 0)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            text.add(part)
        elif part == "o":
            object_span = text.mention(fact.object)
        elif clue is None:
            text.mention(entity.name)
        else:
            text.mention(entity.short)
            before, after = clue.phrases.clue.split("{o}")
            text.add(f", {before}")
            text.mention(clue.object)
            following = parts[i + 1] if i + 1 < len(parts) else ""
            # No second mark where the clause or the sentence has one anyway.
            text.add(after if following[:1] == "," or not following else f"{after},")
    return object_span
