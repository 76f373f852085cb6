"""The generated encyclopedia: deterministic, exactly labelled, hard in the stated ways and no harder."""

import collections
import dataclasses
import hashlib
import itertools
import re
import subprocess
import sys

import pytest

from realm_jax.corpus.world import World, WorldConfig, generate
from realm_jax.corpus.world_phrases import FACTS, FRAMES, PASSING_MENTIONS


@pytest.fixture(scope="module")
def world() -> World:
    return generate(WorldConfig(num_articles=150, seed=3))


def _digest(world: World) -> str:
    return hashlib.sha256(repr(world).encode()).hexdigest()


def test_same_seed_same_world_in_another_process() -> None:
    program = (
        "import hashlib; from realm_jax.corpus.world import WorldConfig, generate;"
        "print(hashlib.sha256(repr(generate(WorldConfig(num_articles=60, seed=5))).encode()).hexdigest())"
    )
    here = _digest(generate(WorldConfig(num_articles=60, seed=5)))
    for hash_seed in ("0", "1"):  # no order of a set or hash may leak into the world
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
        there = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert there.stdout.strip() == here
    assert _digest(generate(WorldConfig(num_articles=60, seed=6))) != here


def test_counts(world: World) -> None:
    assert len(world.articles) == 150
    assert len({article.id for article in world.articles}) == 150
    assert len({article.title for article in world.articles}) == 150
    num_facts = len({(sentence.gold_id, sentence.relation) for sentence in world.sentences})
    assert 5 * 150 <= num_facts <= 7 * 150
    assert len(world.sentences) == 2 * num_facts
    assert len({sentence.id for sentence in world.sentences}) == len(world.sentences)
    assert len(world.questions) == 2 * 150


def test_spans_are_characters_of_their_text(world: World) -> None:
    names = {article.title for article in world.articles}
    for sentence in world.sentences:
        assert sentence.text[slice(*sentence.object_span)] == sentence.answer
        assert sentence.salient_spans == (sentence.object_span,)
        assert sentence.object_span in sentence.all_spans
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(sentence.all_spans))
        assert (sentence.text[0].isupper() or sentence.text[0].isdigit()) and sentence.text.endswith(".")
        assert not re.search(r"[{}]|,,|,\.|  | ,", sentence.text), sentence.text
    for article in world.articles:
        assert article.salient_spans
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(article.salient_spans))
        assert any(article.text[slice(*span)] in names for span in article.salient_spans)
        assert not re.search(r"[{}]|  | \.", article.text), article.text


def test_each_fact_is_in_its_article_twice_and_the_rest_of_the_article_still_tells_it(world: World) -> None:
    text_of = {article.id: article.text for article in world.articles}
    for sentence in world.sentences:
        *statements, summary = text_of[sentence.gold_id].split(". ")
        assert len(statements) >= 5 and summary.count(";") >= 4
        assert sentence.answer in summary
        assert any(sentence.answer in statement for statement in statements)


def test_a_fact_stands_in_one_article_only(world: World) -> None:
    """No article but the subject's own states a fact: the facts' wordings, filled in, are found nowhere else."""
    text_of = {article.id: article.text for article in world.articles}
    title_of = {article.id: article.title for article in world.articles}
    stated = {
        wording.replace("{s}", title_of[sentence.gold_id]).replace("{o}", sentence.answer).lower()
        for sentence in world.sentences
        for facts in FACTS.values()
        if sentence.relation in facts
        for wording in facts[sentence.relation].article[:2]
    }
    holders = collections.Counter(
        statement for text in text_of.values() for statement in {part.lower() for part in text.split(". ")} & stated
    )
    assert len(holders) > 300
    assert set(holders.values()) == {1}


def test_heldout_entities_are_never_subjects_of_training_sentences_or_questions(world: World) -> None:
    split_of = collections.defaultdict(set)
    for item in (*world.sentences, *world.questions):
        split_of[item.gold_id].add(item.split)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert sum(splits == {"heldout"} for splits in split_of.values()) == 30
    train, heldout = list(world.sentences_of("train")), list(world.sentences_of("heldout"))
    assert len(train) + len(heldout) == len(world.sentences)
    assert not {s.gold_id for s in train} & {s.gold_id for s in heldout}


def test_wordings_of_sentences_are_used_by_no_article() -> None:
    for facts in FACTS.values():
        assert len(facts) == 7
        in_articles = [wording for phrases in facts.values() for wording in phrases.article]
        in_sentences = [wording for phrases in facts.values() for wording in phrases.sentence]
        assert len(set(in_articles)) == 21 and len(set(in_sentences)) == 21
        assert not set(in_articles) & set(in_sentences)
        for phrases in facts.values():
            assert all(w.count("{s}") == 1 and w.count("{o}") == 1 for w in phrases.sentence)
            assert [w.count("{s}") for w in phrases.article] == [1, 1, 0]
            assert all(w.count("{o}") == 1 for w in (*phrases.article, phrases.clue))
            assert phrases.question.count("{s}") == 1
    assert all(frame.count("{c}") == 1 and len(re.findall(r"\{\d\}", frame)) == len(kinds) for frame, kinds in FRAMES)
    assert all("{s}" in wording and "{o}" in wording for wordings in PASSING_MENTIONS.values() for wording in wordings)


def test_partial_mentions_name_the_shared_word_and_a_second_fact_of_the_subject(world: World) -> None:
    article_of = {article.id: article for article in world.articles}
    partial = [sentence for sentence in world.sentences if sentence.partial]
    assert 0.18 < len(partial) / len(world.sentences) < 0.32
    for sentence in partial:
        article = article_of[sentence.gold_id]
        mentions = [sentence.text[slice(*span)] for span in sentence.all_spans]
        assert set(mentions) & {article.title.split()[0], article.title.split()[-1], article.title}
        # The object and the clue's object; both stand in the gold article.
        assert sum(mention in article.text for mention in mentions) >= 2
    for sentence in world.sentences:
        if not sentence.partial:
            assert article_of[sentence.gold_id].title in sentence.text


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0.0, 0.0), (0.5, 0.43, 0.57), (1.0, 1.0, 1.0)])
def test_shares_are_kept(share: float, least: float, most: float) -> None:
    config = WorldConfig(num_articles=100, partial_mentions=share, passing_mentions=share, paraphrases=share)
    sentences = generate(config).sentences
    assert least <= sum(s.partial for s in sentences) / len(sentences) <= most
    assert least <= sum(s.paraphrase for s in sentences) / len(sentences) <= most
    framed = sum(len(s.all_spans) > 2 + s.partial for s in sentences) / len(sentences)  # by one guest or more
    assert least <= framed <= most


def test_names_are_shared_as_often_as_asked() -> None:
    for sharing in (1.0, 4.0):
        world = generate(WorldConfig(num_articles=200, name_sharing=sharing))
        surnames = {article.title.split()[-1] for article in world.articles}
        people = [
            a.title for a in world.articles if re.search(r"\b(born|married|Spouse|Pupil|grew up)\b", a.text, re.I)
        ]
        words = {title.split()[-1] for title in people}
        assert surnames and 0.5 * sharing < len(people) / len(words) < 2.2 * sharing


def test_bm25_like_overlap_does_not_give_the_document_away(world: World) -> None:
    """The rarest word that a query shares with any article is not enough to find the gold article."""
    bags = [(a.id, set(re.findall(r"\w+", f"{a.title} {a.text}".lower()))) for a in world.articles]
    frequency = collections.Counter(word for _, bag in bags for word in bag)
    right = 0
    sentences = [s for s in world.sentences if s.split == "heldout"]
    for sentence in sentences:
        start, end = sentence.object_span
        query = set(re.findall(r"\w+", (sentence.text[:start] + sentence.text[end:]).lower())) & set(frequency)
        rarest = min(sorted(query), key=frequency.__getitem__)
        right += next(article_id for article_id, bag in bags if rarest in bag) == sentence.gold_id
    assert 0.05 < right / len(sentences) < 0.5


def test_any_size() -> None:
    large = generate(WorldConfig(num_articles=1_000, sentences_per_fact=0, questions_per_article=0))
    assert len({article.title for article in large.articles}) == 1_000
    assert large.sentences == [] and large.questions == []
    assert len(generate(WorldConfig(num_articles=20)).articles) == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_articles": 3}, r"num_articles must lie in 20\.\.100000, got 3"),
        ({"min_facts": 6, "max_facts": 5}, "got min_facts=6, max_facts=5"),
        ({"max_facts": 8}, "max_facts <= 7"),
        ({"name_sharing": 0.5}, r"name_sharing must lie in 1\.\.20, got 0\.5"),
        ({"heldout_share": 1.2}, r"heldout_share is a share in 0\.\.1, got 1\.2"),
        ({"partial_mentions": -0.1}, "partial_mentions is a share"),
        ({"sentences_per_fact": -1}, "sentences_per_fact cannot be negative"),
    ],
)
def test_bad_configurations_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldConfig(**change)


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        WorldConfig().seed = 2  # type: ignore[misc]


def test_a_later_revision_changes_objects_and_nothing_else(world: World) -> None:
    later = generate(WorldConfig(num_articles=150, seed=3, revision=1))
    assert [article.title for article in later.articles] == [article.title for article in world.articles]
    assert [(q.id, q.question, q.split) for q in later.questions] == [
        (q.id, q.question, q.split) for q in world.questions
    ]
    changed = [now.answer != before.answer for now, before in zip(later.questions, world.questions, strict=True)]
    assert 0.4 < sum(changed) / len(changed) < 0.6
    before = {article.id: article.text for article in world.articles}
    for article, question in [(later.articles[int(q.gold_id[-6:])], q) for q in later.questions]:
        assert question.answer in article.text
        if question.answer not in before[question.gold_id]:  # the words around it are the same
            assert len(article.text.split(" ")) == pytest.approx(len(before[question.gold_id].split(" ")), abs=12)


def test_revisions_are_of_revision_0_and_of_no_other() -> None:
    worlds = [generate(WorldConfig(num_articles=60, seed=5, revision=revision)) for revision in (0, 1, 2)]
    again = generate(WorldConfig(num_articles=60, seed=5, revision=1))
    assert _digest(again) == _digest(worlds[1])
    assert len({_digest(each) for each in worlds}) == 3
    assert _digest(generate(WorldConfig(num_articles=60, seed=5, revision=3, revised_share=0.0))) == _digest(worlds[0])
    with pytest.raises(ValueError, match="revision"):
        WorldConfig(revision=-1)
    with pytest.raises(ValueError, match="revised_share"):
        WorldConfig(revised_share=1.5)
