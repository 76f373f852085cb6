"""What the embedded corpus is about: invented entities, their names, and the facts that are known of them."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar, NamedTuple, TypeVar

from realm_jax.corpus import world_draws as draws
from realm_jax.corpus.world_phrases import (
    FACTS,
    KINDS,
    TOWN_MODIFIERS,
    TRADES,
    WORK_ADJECTIVES,
    WORK_NOUNS,
    FactPhrases,
    Kind,
)

FIRST_YEAR, LAST_YEAR = 1600, 1999

T = TypeVar("T")


class Entity(NamedTuple):
    """What an article is about; `short` is the part of its name that others share ("Brask" of "Dara Brask")."""

    kind: Kind
    name: str
    short: str


class Fact(NamedTuple):
    """What is known of an entity: a relation, how it is worded, and its object, the answer."""

    relation: str
    phrases: FactPhrases
    object: str


class Pools(NamedTuple):
    """The entities in the order of their articles, and the names that objects are drawn from."""

    entities: list[Entity]
    names_by_kind: dict[str, list[str]]
    """What a fact's object is drawn from, by kind; "year", "river" and "region" have no articles."""


def invent_entities(num_articles: int, name_sharing: float, rng: Random) -> Pools:
    """Invents the entities, in random order, and the names that facts draw their objects from.

    Args:
      num_articles: how many entities.
      name_sharing: how many of them share a surname, a town's stem, a company's first word.
      rng: of the draws.

    Raises:
      ValueError: there are fewer names than entities.
    """
    make = _NameMaker(rng).make
    total_weight = sum(weight for _, weight in KINDS)
    counts = {kind: num_articles * weight // total_weight for kind, weight in KINDS}
    counts["person"] += num_articles - sum(counts.values())

    def words(kind: Kind, least: int) -> int:
        return max(least, round(counts[kind] / name_sharing))

    surnames = make("surname", words("person", 4))
    first_names = make("first", max(8, round(2 * counts["person"] ** 0.5)))
    stems = make("town", words("town", 3))
    # Half the companies bear a family's name, so that a name alone tells neither the kind nor the entity.
    num_company_words = words("company", 3)
    company_words = make("company", (num_company_words + 1) // 2) + draws.sample(rng, surnames, num_company_words // 2)
    bearers = {
        "person": [(first, last) for last in surnames for first in first_names],
        "town": [(modifier, stem) for stem in stems for modifier in ("", *TOWN_MODIFIERS)],
        "company": [(word, trade) for word in company_words for trade in TRADES],
        "work": [(adjective, noun) for adjective in WORK_ADJECTIVES for noun in WORK_NOUNS],
    }
    if counts["work"] > len(bearers["work"]) // 2:  # a larger world's titles name a family too
        num_titles = min(len(bearers["work"]), 1 + 3 * counts["work"] // len(surnames))
        titles = draws.sample(rng, bearers["work"], num_titles)
        bearers["work"] = [(f"{a} {n} of", last) for last in surnames for a, n in titles]
    entities = []
    for kind, _ in KINDS:
        for words_of_name in _distinct(rng, bearers[kind], counts[kind]):
            name = " ".join(word for word in words_of_name if word)
            short = words_of_name[0] if kind == "company" else words_of_name[-1]
            entities.append(Entity(kind, name, short))
    entities = draws.shuffled(rng, entities)
    names_by_kind: dict[str, list[str]] = {kind: [] for kind, _ in KINDS}
    for entity in entities:
        names_by_kind[entity.kind].append(entity.name)
    num_places = max(20, min(200, num_articles // 10))
    names_by_kind["river"] = make("river", num_places)
    names_by_kind["region"] = make("region", num_places)
    names_by_kind["year"] = [str(year) for year in range(FIRST_YEAR, LAST_YEAR + 1)]
    return Pools(entities, names_by_kind)


def invent_facts(entity: Entity, pools: Pools, count: int, rng: Random) -> list[Fact]:
    """Draws `count` facts about an entity, no two of which share their object: an answer is never right by accident."""
    known = FACTS[entity.kind]
    taken = {entity.name}
    facts = []
    for relation in draws.sample(rng, list(known), count):
        phrases = known[relation]
        name = draws.other(rng, pools.names_by_kind[phrases.object_kind], taken)
        taken.add(name)
        facts.append(Fact(relation, phrases, name))
    return facts


def revise_facts(entity: Entity, facts: Sequence[Fact], pools: Pools, share: float, rng: Random) -> list[Fact]:
    """The facts of a later day: about `share` of them with another object; still no two share theirs."""
    taken = {entity.name, *(fact.object for fact in facts)}
    revised = []
    for fact in facts:
        if rng.random() < share:
            name = draws.other(rng, pools.names_by_kind[fact.phrases.object_kind], taken)
            taken.add(name)
            fact = fact._replace(object=name)
        revised.append(fact)
    return revised


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
                draws.pick(rng, self.onsets) + draws.pick(rng, self.vowels) + draws.pick(rng, self.codas)
                for _ in range(num_syllables)
            )
            name = (stem + draws.pick(rng, self.endings[sort])).capitalize()
            if name in self._used:
                failures += 1
                # Nearly all short names are taken: longer ones from here on.
                num_syllables += failures % 100 == 0
                continue
            self._used.add(name)
            names.append(name)
        return names


def _distinct(rng: Random, items: Sequence[T], count: int) -> list[T]:
    """`count` distinct items without shuffling all of a long list."""
    if count > len(items):
        raise ValueError(f"the world has {len(items)} names for {count} entities; lower WorldConfig.name_sharing")
    if 2 * count > len(items):
        return draws.sample(rng, items, count)
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen[int(rng.random() * len(items))] = None
    return [items[i] for i in chosen]
