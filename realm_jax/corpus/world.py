"""The embedded corpus: a generated encyclopedia, a stream of sentences to mask and questions, each with its gold document.

Everything is invented and follows from a seed, so no name is known beforehand, nothing is downloaded, and retrieval can
be measured exactly. A fact (a year, a place, a person, ...) stands in exactly one article, where it is stated twice in
different words. The sentences to mask say it in words that no article uses and mention other entities besides, so that
neither the wording nor one shared name gives the document away. See `docs/world.md`.
"""

import dataclasses
from collections.abc import Iterator
from random import Random
from typing import Literal, NamedTuple

from realm_jax.corpus import world_draws as draws
from realm_jax.corpus.sources.article import Article
from realm_jax.corpus.world_entities import Entity, Fact, Pools, invent_entities, invent_facts, revise_facts
from realm_jax.corpus.world_phrases import FACTS
from realm_jax.corpus.world_texts import Shares, Span, write_article, write_sentence
from realm_jax.typed import check_fields

Split = Literal["train", "heldout"]

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
      revision: a later state of the same world: entities, names, wordings and questions are those of revision 0, but some facts
        have another object. Two later revisions are changes of revision 0 that know nothing of each other.
      revised_share: share of facts that a later revision changes.
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
    revision: int = 0
    revised_share: float = 0.5

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
        for name in ("partial_mentions", "passing_mentions", "paraphrases", "heldout_share", "revised_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"WorldConfig.{name} is a share in 0..1, got {getattr(self, name)}")
        for name in ("sentences_per_fact", "questions_per_article", "revision"):
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


def generate(config: WorldConfig) -> World:
    """Generates the encyclopedia, the sentences to mask and the questions of a seed."""
    rng = Random(config.seed)
    changes = Random(f"{config.seed}, revision {config.revision}")
    pools = invent_entities(config.num_articles, config.name_sharing, rng)
    heldout = set(draws.sample(rng, range(config.num_articles), round(config.heldout_share * config.num_articles)))
    world = World([], [], [])
    for i, entity in enumerate(pools.entities):
        article_id = f"world-{i:06d}"
        split: Split = "heldout" if i in heldout else "train"
        num_facts = config.min_facts + int(rng.random() * (config.max_facts - config.min_facts + 1))
        facts = invent_facts(entity, pools, num_facts, rng)
        subject = _Subject(article_id, split, entity)
        before = rng.getstate()
        told = _tell(subject, facts, pools, config, rng)
        asked = draws.sample(rng, range(len(facts)), min(config.questions_per_article, len(facts)))
        if config.revision:
            # Told anew from the same state: the draws of a telling may depend on objects, and only here may that show.
            facts = revise_facts(entity, facts, pools, config.revised_share, changes)
            aside = Random()
            aside.setstate(before)
            told = _tell(subject, facts, pools, config, aside)
        world.articles.append(told[0])
        world.sentences.extend(told[1])
        world.questions.extend(_question(subject, facts[number]) for number in asked)
    return world


class _Subject(NamedTuple):
    """An entity and what its article is called."""

    article_id: str
    split: Split
    entity: Entity


def _tell(
    subject: _Subject, facts: list[Fact], pools: Pools, config: WorldConfig, rng: Random
) -> tuple[Article, list[MaskableSentence]]:
    """The article and the sentences to mask about an entity."""
    article = write_article(subject.article_id, subject.entity, facts, pools, config.passing_mentions, rng)
    return article, list(_sentences(subject, facts, pools, config, rng))


def _question(subject: _Subject, fact: Fact) -> Question:
    article_id, split, entity = subject
    text = fact.phrases.question.replace("{s}", entity.name)
    return Question(f"{article_id}-q-{fact.relation}", text, fact.object, article_id, split)


def _sentences(
    subject: _Subject, facts: list[Fact], pools: Pools, config: WorldConfig, rng: Random
) -> Iterator[MaskableSentence]:
    article_id, split, entity = subject
    shares = Shares(config.paraphrases, config.partial_mentions, config.passing_mentions)
    for fact in facts:
        orders = draws.shuffled(rng, range(3))  # no wording twice for a fact, as long as there are others
        for number in range(config.sentences_per_fact):
            written = write_sentence(entity, fact, facts, orders[number % 3], pools, shares, rng)
            yield MaskableSentence(
                id=f"{article_id}-x-{fact.relation}-{number}",
                text=written.text,
                object_span=written.object_span,
                all_spans=written.all_spans,
                answer=fact.object,
                gold_id=article_id,
                split=split,
                relation=fact.relation,
                partial=written.partial,
                paraphrase=written.paraphrase,
            )
