"""The embedded corpus: a generated encyclopedia, a stream of sentences to mask and questions, each with its gold document.

Everything is invented and follows from a seed, so no name is known beforehand, nothing is downloaded, and retrieval can
be measured exactly. A fact (a year, a place, a person, ...) stands in exactly one article, where it is stated twice in
different words. The sentences to mask say it in words that no article uses and mention other entities besides, so that
neither the wording nor one shared name gives the document away. See `docs/world.md`.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import ClassVar, Literal, NamedTuple, TypeVar

from realm_jax.corpus.sources.article import Article
from realm_jax.corpus.world_phrases import (
    FACTS,
    FRAMES,
    KINDS,
    PASSING_MENTIONS,
    STAND_INS,
    TOWN_MODIFIERS,
    TRADES,
    WORK_ADJECTIVES,
    WORK_NOUNS,
    FactPhrases,
    Kind,
)
from realm_jax.typed import check_fields

Span = tuple[int, int]
Split = Literal["train", "heldout"]

FIRST_YEAR, LAST_YEAR = 1600, 1999
MAX_ARTICLES = 100_000


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """Size, seed and difficulty of the generated encyclopedia.

    Attributes:
      num_articles: articles, one an entity; two fifths people, a fifth each of towns, companies and works.
      seed: everything follows from it; two worlds of different seeds share no names but by chance.
      min_facts, max_facts: facts an article states (at most 7 are known of an entity).
      name_sharing: how many entities share a surname, a town's stem, a company's first word. 1 makes them nearly unique.
      partial_mentions: share of sentences to mask that name their subject by the shared word alone ("Brask"); another
        fact about it then tells which one is meant ("Brask, a pupil of Dara Vol,").
      passing_mentions: share of articles that also mention an unrelated entity, and of sentences to mask that are framed
        by two or three others ("Speaking in Velm, Dara Vol said that ...").
      paraphrases: share of sentences to mask worded with templates that no article uses; the others reuse an article's.
      sentences_per_fact: sentences to mask for each fact.
      questions_per_article: questions asked of each article.
      heldout_share: share of entities that no training sentence and no training question is about.
    """

    num_articles: int = 2000
    seed: int = 0
    min_facts: int = 5
    max_facts: int = 7
    name_sharing: float = 2.0
    partial_mentions: float = 0.25
    passing_mentions: float = 0.5
    paraphrases: float = 1.0
    sentences_per_fact: int = 2
    questions_per_article: int = 2
    heldout_share: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self)
        facts_known = min(len(facts) for facts in FACTS.values())
        if not 20 <= self.num_articles <= MAX_ARTICLES:
            raise ValueError(f"WorldConfig.num_articles must lie in 20..{MAX_ARTICLES}, got {self.num_articles}")
        if not 1 <= self.min_facts <= self.max_facts <= facts_known:
            raise ValueError(
                f"WorldConfig needs 1 <= min_facts <= max_facts <= {facts_known}, "
                f"got min_facts={self.min_facts}, max_facts={self.max_facts}"
            )
        if not 1.0 <= self.name_sharing <= 20.0:
            raise ValueError(f"WorldConfig.name_sharing must lie in 1..20, got {self.name_sharing}")
        for name in ("partial_mentions", "passing_mentions", "paraphrases", "heldout_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"WorldConfig.{name} is a share in 0..1, got {getattr(self, name)}")
        for name in ("sentences_per_fact", "questions_per_article"):
            if getattr(self, name) < 0:
                raise ValueError(f"WorldConfig.{name} cannot be negative, got {getattr(self, name)}")


class MaskableSentence(NamedTuple):
    """One sentence of the stream to mask; all spans are half-open character offsets into `text`."""

    id: str
    text: str
    object_span: Span
    all_spans: tuple[Span, ...]
    """Every name and year of the sentence, the object and the subject among them; sorted, disjoint."""
    answer: str
    gold_id: str
    """The id of the only article that holds the answer."""
    split: Split
    relation: str
    partial: bool
    """Whether the subject is named by its shared word alone."""
    paraphrase: bool
    """Whether the fact is worded as no article words it."""

    @property
    def salient_spans(self) -> tuple[Span, ...]:
        """What is worth masking: the object, which needs the document. The subject's name is what the query needs."""
        return (self.object_span,)


class Question(NamedTuple):
    """A question with its one answer and the id of the article that holds it."""

    id: str
    question: str
    answer: str
    gold_id: str
    split: Split


class World(NamedTuple):
    """What `generate` makes."""

    articles: list[Article]
    sentences: list[MaskableSentence]
    questions: list[Question]

    def sentences_of(self, split: Split) -> Iterator[MaskableSentence]:
        """The sentences to mask whose subject is a training entity, or a held-out one."""
        return (sentence for sentence in self.sentences if sentence.split == split)


class _Entity(NamedTuple):
    kind: Kind
    name: str
    short: str


class _Fact(NamedTuple):
    relation: str
    phrases: FactPhrases
    object: str


class _Pools(NamedTuple):
    entities: list[_Entity]
    names_by_kind: dict[str, list[str]]
    """What a fact's object is drawn from, by kind; "year", "river" and "region" have no articles."""


def generate(config: WorldConfig) -> World:
    """Generates the encyclopedia, the sentences to mask and the questions of a seed."""
    rng = Random(config.seed)
    pools = _invent_entities(config, rng)
    heldout = set(_sample(rng, range(config.num_articles), round(config.heldout_share * config.num_articles)))
    articles: list[Article] = []
    sentences: list[MaskableSentence] = []
    questions: list[Question] = []
    for i, entity in enumerate(pools.entities):
        article_id = f"world-{i:06d}"
        split: Split = "heldout" if i in heldout else "train"
        facts = _invent_facts(entity, pools, config, rng)
        articles.append(_write_article(article_id, entity, facts, pools, config, rng))
        for fact in facts:
            orders = _shuffled(rng, range(3))  # no wording twice for a fact, as long as there are others
            for number in range(config.sentences_per_fact):
                subject = (f"{article_id}-x-{fact.relation}-{number}", article_id, split, entity)
                sentences.append(_write_sentence(subject, fact, facts, orders[number % 3], pools, config, rng))
        for fact in _sample(rng, facts, min(config.questions_per_article, len(facts))):
            text = fact.phrases.question.replace("{s}", entity.name)
            questions.append(Question(f"{article_id}-q-{fact.relation}", text, fact.object, article_id, split))
    return World(articles, sentences, questions)


# Only Random.random() is used below: its stream is the same in every Python version, that of its other methods is not.

T = TypeVar("T")


def _pick(rng: Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def _shuffled(rng: Random, items: Sequence[T]) -> list[T]:
    result = list(items)
    for i in range(len(result) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        result[i], result[j] = result[j], result[i]
    return result


def _sample(rng: Random, items: Sequence[T], size: int) -> list[T]:
    return _shuffled(rng, items)[:size]


def _other(rng: Random, items: Sequence[str], taken: Iterable[str]) -> str:
    """One of the items that is none of the taken; there are always more items than taken ones."""
    while True:
        item = _pick(rng, items)
        if item not in taken:
            return item


class _NameMaker:
    """Invents words from syllables, each of them once."""

    onsets = tuple("b br d dr f g gr h j k kl l m n p pr r s st sk t tr th v z".split())
    vowels = tuple("a e i o u a e o ai ea".split())
    codas = ("", "", "", "l", "n", "r", "s", "th", "m", "k", "nd", "rt", "x")
    endings: ClassVar[dict[str, tuple[str, ...]]] = {
        "first": ("a", "o", "en", "is", "eth", "ik", "an"),
        "surname": ("er", "ock", "ell", "ard", "ish", "un", "ov", "ane"),
        "town": ("ton", "burg", "by", "haven", "ford", "mere", "stad", "wick"),
        "company": ("co", "ex", "ina", "ium", "or", "yx"),
        "river": ("ava", "eno", "ira", "une"),
        "region": ("ia", "land", "mark", "esse"),
    }

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def make(self, sort: str, count: int) -> list[str]:
        rng = self._rng
        names: list[str] = []
        num_syllables, failures = 1, 0
        while len(names) < count:
            stem = "".join(
                _pick(rng, self.onsets) + _pick(rng, self.vowels) + _pick(rng, self.codas) for _ in range(num_syllables)
            )
            name = (stem + _pick(rng, self.endings[sort])).capitalize()
            if name in self._used:
                failures += 1
                # Nearly all short names are taken: longer ones from here on.
                num_syllables += failures % 100 == 0
                continue
            self._used.add(name)
            names.append(name)
        return names


def _invent_entities(config: WorldConfig, rng: Random) -> _Pools:
    """Invents the entities, in random order, and the names that facts draw their objects from."""
    make = _NameMaker(rng).make
    total_weight = sum(weight for _, weight in KINDS)
    counts = {kind: config.num_articles * weight // total_weight for kind, weight in KINDS}
    counts["person"] += config.num_articles - sum(counts.values())

    def words(kind: Kind, least: int) -> int:
        return max(least, round(counts[kind] / config.name_sharing))

    surnames = make("surname", words("person", 4))
    first_names = make("first", max(8, round(2 * counts["person"] ** 0.5)))
    stems = make("town", words("town", 3))
    # Half the companies bear a family's name, so that a name alone tells neither the kind nor the entity.
    num_company_words = words("company", 3)
    company_words = make("company", (num_company_words + 1) // 2) + _sample(rng, surnames, num_company_words // 2)
    bearers = {
        "person": [(first, last) for last in surnames for first in first_names],
        "town": [(modifier, stem) for stem in stems for modifier in ("", *TOWN_MODIFIERS)],
        "company": [(word, trade) for word in company_words for trade in TRADES],
        "work": [(adjective, noun) for adjective in WORK_ADJECTIVES for noun in WORK_NOUNS],
    }
    if counts["work"] > len(bearers["work"]) // 2:  # a larger world's titles name a family too
        num_titles = min(len(bearers["work"]), 1 + 3 * counts["work"] // len(surnames))
        titles = _sample(rng, bearers["work"], num_titles)
        bearers["work"] = [(f"{a} {n} of", last) for last in surnames for a, n in titles]
    entities = []
    for kind, _ in KINDS:
        for words_of_name in _distinct(rng, bearers[kind], counts[kind]):
            name = " ".join(word for word in words_of_name if word)
            short = words_of_name[0] if kind == "company" else words_of_name[-1]
            entities.append(_Entity(kind, name, short))
    entities = _shuffled(rng, entities)
    names_by_kind: dict[str, list[str]] = {kind: [] for kind, _ in KINDS}
    for entity in entities:
        names_by_kind[entity.kind].append(entity.name)
    num_places = max(20, min(200, config.num_articles // 10))
    names_by_kind["river"] = make("river", num_places)
    names_by_kind["region"] = make("region", num_places)
    names_by_kind["year"] = [str(year) for year in range(FIRST_YEAR, LAST_YEAR + 1)]
    return _Pools(entities, names_by_kind)


def _distinct(rng: Random, items: Sequence[T], count: int) -> list[T]:
    """`count` distinct items without shuffling all of a long list."""
    if count > len(items):
        raise ValueError(f"the world has {len(items)} names for {count} entities; lower WorldConfig.name_sharing")
    if 2 * count > len(items):
        return _sample(rng, items, count)
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen[int(rng.random() * len(items))] = None
    return [items[i] for i in chosen]


def _invent_facts(entity: _Entity, pools: _Pools, config: WorldConfig, rng: Random) -> list[_Fact]:
    known = FACTS[entity.kind]
    count = config.min_facts + int(rng.random() * (config.max_facts - config.min_facts + 1))
    taken = {entity.name}
    facts = []
    for relation in _sample(rng, list(known), count):
        phrases = known[relation]
        name = _other(rng, pools.names_by_kind[phrases.object_kind], taken)
        taken.add(name)  # no two facts of an article share their object: an answer is never right by accident
        facts.append(_Fact(relation, phrases, name))
    return facts


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


def _write_article(
    article_id: str, entity: _Entity, facts: list[_Fact], pools: _Pools, config: WorldConfig, rng: Random
) -> Article:
    """Writes every fact twice: in a sentence of its own, and in a summary line of catch phrases at the end."""
    sentences = [(_pick(rng, fact.phrases.article[:2]), fact.object) for fact in facts]
    if rng.random() < config.passing_mentions:
        mentioned = _other(rng, pools.names_by_kind[entity.kind], {entity.name, *(fact.object for fact in facts)})
        place = int(rng.random() * len(sentences)) + 1
        sentences.insert(place, (_pick(rng, PASSING_MENTIONS[entity.kind]), mentioned))

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

    for number, fact in enumerate(_shuffled(rng, facts)):
        before, after = fact.phrases.article[2].split("{o}")
        text.add(before if number else before[:1].upper() + before[1:])
        text.mention(fact.object)
        text.add(after + ("; " if number + 1 < len(facts) else "."))
    return Article(article_id, entity.name, str(text), salient_spans=tuple(text.spans))


def _mention_subject(text: _Text, entity: _Entity, *, full: bool, at_start: bool, rng: Random) -> None:
    draw = rng.random()
    if full or draw < 0.5:
        text.mention(entity.name)
    elif draw < 0.75:
        text.mention(entity.short)
    else:
        stand_in = STAND_INS[entity.kind]
        text.add(stand_in[:1].upper() + stand_in[1:] if at_start else stand_in)


def _write_sentence(
    subject: tuple[str, str, Split, _Entity],
    fact: _Fact,
    facts: list[_Fact],
    wording_id: int,
    pools: _Pools,
    config: WorldConfig,
    rng: Random,
) -> MaskableSentence:
    """Words one fact as a sentence from elsewhere would, with its subject named in full or in part."""
    sentence_id, article_id, split, entity = subject
    paraphrase = rng.random() < config.paraphrases
    # An article's third wording is the summary's, without a subject.
    wording = fact.phrases.sentence[wording_id] if paraphrase else fact.phrases.article[wording_id % 2]
    partial = rng.random() < config.partial_mentions and len(facts) > 1
    clue = _pick(rng, [other for other in facts if other is not fact]) if partial else None
    taken = {entity.name, *(each.object for each in facts)}
    frame, guests = _pick(rng, FRAMES) if rng.random() < config.passing_mentions else ("{c}", ())

    text = _Text()
    object_span = (0, 0)

    def add_clause(parts: tuple[str, ...]) -> None:
        nonlocal object_span
        for i, part in enumerate(parts):
            if i % 2 == 0:
                text.add(part)
            elif part == "o":
                object_span = text.mention(fact.object)
            else:
                text.mention(entity.short if clue else entity.name)
                if clue:
                    before, after = clue.phrases.clue.split("{o}")
                    text.add(f", {before}")
                    text.mention(clue.object)
                    following = parts[i + 1] if i + 1 < len(parts) else ""
                    # No second mark where the clause or the sentence has one anyway.
                    text.add(after if following[:1] == "," or not following else f"{after},")

    for i, part in enumerate(_parsed(frame)):
        if i % 2 == 0:
            text.add(part)
        elif part == "c":
            add_clause(_parsed(wording) if text.length == 0 else _parsed_inside(wording))
        else:
            guest = _other(rng, pools.names_by_kind[guests[int(part)]], taken)
            taken.add(guest)
            text.mention(guest)
    text.add(".")
    return MaskableSentence(
        sentence_id,
        str(text),
        object_span,
        tuple(text.spans),
        fact.object,
        article_id,
        split,
        fact.relation,
        partial,
        paraphrase,
    )
