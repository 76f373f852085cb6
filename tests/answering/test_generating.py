"""Answers that a generator writes: what it reads, the probabilities that it is trained with, and whose words they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.answering.documents import CorpusDocuments, Text
from realm_jax.answering.explaining import explained
from realm_jax.answering.generating import ClosedBookAnswerer, Generator
from realm_jax.answering.loading import answerer_of, generator_of
from realm_jax.corpus.writer import make_corpus
from realm_jax.data.inputs import SpecialIds, query_inputs
from realm_jax.data.questions import Question
from realm_jax.data.rag import RagExamples
from realm_jax.evaluation.answering import evaluate_answering
from realm_jax.generation import GenerationConfig
from realm_jax.retrieval.exact import ExactIndex
from realm_jax.serve.page import render
from realm_jax.tasks.rag import Rag, init_params
from realm_jax.text.generator_tokenizer import as_generator_tokenizer
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer
from tests import tiny
from tests.answering import made_world
from tests.answering.made_world import TEXTS, bag
from tests.text.made_bpe import byte_level_tokenizer

QUESTIONS = ["Where was Ada Brook born?", "Over which river does the bridge lead?", "Which place has the festival?"]
MARGINALS = ["sequence", "token", "joint"]
END = 20.0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return made_world.corpus(tmp_path_factory.mktemp("z"))


@pytest.fixture(scope="module")
def settings(corpus, tmp_path_factory):
    place = tmp_path_factory.mktemp("q") / "questions.jsonl"
    place.write_text('{"question": "Where was Ada Brook born?", "answer": ["Oslo"]}\n')
    return Rag(
        corpus=str(corpus.directory),
        questions=str(place),
        retriever=made_world.task("").retriever,
        generator=tiny.encoder_decoder(
            vocab_size=corpus.tokenizer.vocab_size, pad_id=0, bos_id=2, eos_id=3, decoder_start_id=3, forced_eos_id=3,
            max_length=96, initializer_range=0.8,
        ),
        num_documents=3,
        query_len=24,
        source_len=96,
        target_len=8,
        document_len=48,
        generation=GenerationConfig(max_length=7, min_length=4, num_beams=3, length_penalty=0.7),
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(settings):
    """Random ones that are inclined to end: what is cut at max_length has an end that the search was made to write."""
    made = init_params(jax.random.key(1), retriever=settings.retriever, generator=settings.generator)
    made["generator"]["output_bias"] = made["generator"]["output_bias"].at[settings.generator.eos_id].add(END)
    return made | {"retriever": made_world.params()["retriever"]}


@pytest.fixture(scope="module")
def index():
    return ExactIndex(np.stack([bag(f"{title} {text}") for title, text in TEXTS.items()]).astype(np.float32))


def made(settings, params, corpus, index, **changes):
    return answerer_of(dataclasses.replace(settings, **changes), params, CorpusDocuments(corpus), index)


@pytest.mark.parametrize("marginal", MARGINALS)
def test_an_answer_has_the_probability_that_training_gives_it(settings, params, corpus, index, marginal):
    """Two ways to log p(y|x): found step by step with a cache, and read with teacher forcing by the task's loss."""
    answerer = made(settings, params, corpus, index, marginal=marginal)
    task = dataclasses.replace(settings, marginal=marginal).build(seed=0)
    for question in QUESTIONS:
        (answer,) = answerer.answer([question])
        ids = corpus.tokenizer.encode(answer.text).ids
        assert 0 < len(ids) < 5  # it ended by itself
        pieces = corpus.tokenizer.encode(question).ids
        query = query_inputs([pieces], settings.query_len, SpecialIds.of(corpus.tokenizer))
        documents = np.array([[found.document for found in answer.documents]], np.int64)
        examples = RagExamples(query, (Question(question),), (pieces,), (ids,))
        batch = jax.tree.map(
            jnp.asarray, task.retrieval.join_embedded(examples, documents, index.embeddings(documents))
        )
        loss, _ = task.loss(params, batch, None)
        assert float(jnp.exp(-loss.total)) == pytest.approx(answer.prob, rel=1e-3)


@pytest.mark.parametrize("marginal", MARGINALS)
def test_documents_are_weighed_before_and_after_the_answer(settings, params, corpus, index, marginal):
    (answer,) = made(settings, params, corpus, index, marginal=marginal).answer(QUESTIONS[:1])
    scores = np.array([bag(QUESTIONS[0]) @ bag(f"{title} {text}") for title, text in TEXTS.items()]) * made_world.SCALE
    best = np.argsort(-scores)[:3]
    assert [found.document for found in answer.documents] == best.tolist()
    weights = np.exp(scores[best])
    np.testing.assert_allclose([found.prob for found in answer.documents], weights / weights.sum(), rtol=1e-4)
    assert [found.title for found in answer.documents] == [list(TEXTS)[number] for number in best]
    assert all(found.best_span is None for found in answer.documents)
    if marginal == "joint":
        assert answer.document is None and all(found.posterior is None for found in answer.documents)
        return
    posteriors = [found.posterior for found in answer.documents]
    assert sum(posteriors) == pytest.approx(1.0, abs=1e-5)
    assert answer.document is answer.documents[int(np.argmax(posteriors))]


def test_of_rag_token_every_piece_has_its_documents(settings, params, corpus, index):
    (answer,) = made(settings, params, corpus, index, marginal="token").answer(QUESTIONS[:1])
    assert "".join(token.text for token in answer.tokens).strip() == answer.text and len(answer.tokens) > 1
    for token in answer.tokens:
        assert len(token.posteriors) == 3 and sum(token.posteriors) == pytest.approx(1.0, abs=1e-5)
    assert not made(settings, params, corpus, index).answer(QUESTIONS[:1])[0].tokens


@pytest.mark.parametrize("marginal", MARGINALS)
def test_together_is_as_alone(settings, params, corpus, index, marginal):
    answerer = made(settings, params, corpus, index, marginal=marginal)
    together = answerer.answer(QUESTIONS)
    for question, answer in zip(QUESTIONS, together, strict=True):
        (alone,) = answerer.answer([question])
        assert alone.text == answer.text and alone.prob == pytest.approx(answer.prob, rel=1e-4)
    assert answerer.answer([]) == []


@pytest.mark.parametrize("marginal", MARGINALS)
def test_where_nothing_is_found_the_question_alone_is_answered(settings, params, corpus, index, marginal):
    # without a penalty RAG-Sequence, which ranks by log p(y|x), and a search agree on which is the best
    settings = dataclasses.replace(settings, generation=dataclasses.replace(settings.generation, length_penalty=0.0))
    answerer = made(settings, params, corpus, index, marginal=marginal)
    nothing = lambda questions, count: np.full((len(questions), count), -1, np.int64)  # noqa: E731
    expected = ClosedBookAnswerer(generator_of(settings, params)).answer(QUESTIONS)
    for answer, alone in zip(answerer.answer(QUESTIONS, nothing), expected, strict=True):
        assert answer.text == alone.text and answer.prob == pytest.approx(alone.prob, rel=1e-4)
        assert answer.documents == () == alone.documents and answer.document is None and not answer.tokens
    (mixed,) = answerer.answer(QUESTIONS[:1], lambda questions, count: np.array([[0, -1, -1]]))
    assert [(found.document, found.prob) for found in mixed.documents] == [(0, 1.0)]
    with pytest.raises(ValueError, match="a generator without documents reads none"):
        ClosedBookAnswerer(generator_of(settings, params)).answer(QUESTIONS, nothing)


def test_a_generation_that_reaches_its_end_is_an_answer(settings, params, corpus, index):
    """Two tokens, the last forced to be the end."""
    short = GenerationConfig(max_length=3, num_beams=1)
    (answer,) = made(settings, params, corpus, index, generation=short).answer(QUESTIONS[:1])
    assert len(corpus.tokenizer.encode(answer.text).ids) <= 1 and 0 < answer.prob < 1


def test_documents_without_a_title_are_read(settings, params, corpus, index, tmp_path):
    untitled = make_corpus(
        tmp_path / "bare", [tiny.article("", [text], source=title) for title, text in TEXTS.items()], corpus.tokenizer
    )
    (answer,) = made(settings, params, untitled, index).answer(QUESTIONS[:1])
    assert answer.text and {found.title for found in answer.documents} == {""}


def test_what_does_not_fit_is_refused(settings, params, corpus, index):
    with pytest.raises(
        ValueError, match=r"not of this generator: parameter .*expected .*, got .*; give the job the EncoderDec"
    ):
        made(settings, params, corpus, index, generator=dataclasses.replace(settings.generator, num_encoder_layers=3))
    with pytest.raises(ValueError, match="max_length: expected at most 97"):
        dataclasses.replace(settings, generation=GenerationConfig(max_length=98))
    generator = Generator.__new__(Generator)
    with pytest.raises(ValueError, match="source_len must be at most the generator's max_length 96, got 97"):
        Generator.__init__(
            generator, settings.generator, params["generator"], settings.open_generator_tokenizer(corpus),
            settings.generation, source_len=97, marginal="token",
        )  # fmt: skip


def test_answers_are_drawn_by_a_seed(settings, params, corpus, index):
    def drawn(seed):
        drawing = GenerationConfig(sample=True, seed=seed, max_length=7, min_length=5, temperature=3.0)
        answerer = made(settings, params, corpus, index, generation=drawing)
        return [answerer.answer(QUESTIONS)[0].text for _ in range(4)]

    first = drawn(0)
    assert len(set(first)) > 1 and drawn(0) == first and drawn(1) != first


def test_of_a_single_document_rag_sequence_is_itself(settings, params, corpus, index):
    """Ranked by log p(y|x), whatever the searches' penalty: as with several documents of which one is there."""
    alone = made(settings, params, corpus, index, num_documents=1).answer(QUESTIONS)
    best = [[answer.documents[0].document, -1, -1] for answer in alone]
    among = made(settings, params, corpus, index).answer(QUESTIONS, lambda texts, count: np.asarray(best, np.int64))
    for one, other in zip(alone, among, strict=True):
        assert one.text == other.text and one.prob == pytest.approx(other.prob, rel=1e-4)
        assert [found.posterior for found in one.documents] == [1.0]


def test_a_corpus_smaller_than_what_is_read_is_read_whole(settings, params, corpus, tmp_path):
    titles = list(TEXTS)[:2]
    two = make_corpus(tmp_path / "two", [tiny.article(title, [TEXTS[title]]) for title in titles], corpus.tokenizer)
    index = ExactIndex(np.stack([bag(f"{title} {TEXTS[title]}") for title in titles]).astype(np.float32))
    (answer,) = made(settings, params, two, index).answer(QUESTIONS[:1])
    assert {found.document for found in answer.documents} == {0, 1} and answer.text
    assert sum(found.posterior for found in answer.documents) == pytest.approx(1.0, abs=1e-5)


def _generator(settings, params, tokenizer):
    generator = Generator.__new__(Generator)
    generator.tokenizer, generator.config = tokenizer, settings.generator
    return generator


def test_word_pieces_are_spelled_as_the_texts_read_them(settings, params):
    tokenizer = as_generator_tokenizer(
        WordPieceTokenizer([*SPECIAL_PIECES, *"0123456789,'-", "##7", "##8", "##3", "o", "hara", "zoe", "##s", "the"])
    )
    generator = _generator(settings, params, tokenizer)

    def written(text, *read):
        return generator.text(np.asarray([*tokenizer.encode(text).ids, settings.generator.eos_id], np.int32), read)

    assert written("5,783", "There are 5,783 of them.") == "5,783"
    assert written("o'hara", "zoe", "It was O'Hara, the") == "O'Hara"
    assert written("zoe", "the Zoës") == "Zoë"  # and without the space that other pieces begin with
    # nowhere: what is written together in names and numbers is put together
    assert tokenizer.decode(tokenizer.encode("5,783 o'hara").ids) == "5 , 783 o ' hara"
    assert written("5,7 o'hara", "zoe") == "5,7 o'hara"
    assert written("", "the") == ""


def test_pieces_of_bytes_add_up_to_the_text(settings, params):
    tokenizer = byte_level_tokenizer()
    generator = _generator(settings, params, tokenizer)
    for text in ("don't do n't it ' s 東京 é, x . y", "東", "a"):
        ids = tokenizer.encode(text).ids
        pieces = generator.spelled(ids)
        assert len(pieces) == len(ids) and "".join(pieces) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)


def test_scores_that_are_no_numbers_are_refused(settings, params, corpus, index):
    generator = made(settings, params, corpus, index)._generator
    sources = generator.sources(QUESTIONS[:1], np.array([[0, 1]], np.int64), {0: Text("a", "b"), 1: Text("c", "d")})
    for wrong in (np.nan, np.inf):
        with pytest.raises(FloatingPointError, match="the run has diverged"):
            generator.write(sources, np.array([[0.0, wrong]], np.float32))


def test_it_is_evaluated_beside_itself_without_documents(settings, params, corpus, index):
    """The references are what each row wrote itself, so that the others' scores say whether they are other answers."""
    written = made(settings, params, corpus, index).answer(QUESTIONS)
    asked = [Question(question, (answer.text,)) for question, answer in zip(QUESTIONS, written, strict=True)]
    rows, answers = evaluate_answering(settings, params, corpus, index, asked, texts=True)
    assert [answer.text for answer in answers] == [answer.text for answer in written]
    assert list(rows) == ["rag", "closed_book", "nearest_question"]
    assert rows["rag"]["exact_match"] == rows["rag"]["f1"] == rows["rag"]["rouge_l"] == 1.0
    alone = ClosedBookAnswerer(generator_of(settings, params)).answer(QUESTIONS)
    same = [one.text == other.text for one, other in zip(alone, written, strict=True)]
    assert rows["closed_book"]["exact_match"] == pytest.approx(np.mean(same)) and not all(same)
    assert rows["nearest_question"]["exact_match"] == 0.0  # the one training question's answer is Oslo
    without = dataclasses.replace(settings, num_documents=0)
    rows, answers = evaluate_answering(without, {"generator": params["generator"]}, corpus, None, asked)
    assert list(rows) == ["rag"] and [answer.text for answer in answers] == [answer.text for answer in alone]


def test_it_is_explained_in_text(settings, params, corpus, index):
    (answer,) = made(settings, params, corpus, index, marginal="token").answer(QUESTIONS[:1])
    lines = explained(answer).splitlines()
    assert lines[1].startswith(f"answer    {answer.text}") and lines[2] == "p(z|x)  and p(z|x,y)"
    assert sum(line.startswith("* ") for line in lines) == 1
    starred = next(line for line in lines if line.startswith("* "))
    assert answer.document.title in starred and f" {answer.document.posterior:.3f}  score" in starred
    assert lines[-2] == "each piece with the document that it leaned on most"
    assert lines[-1].count("[") == len(answer.tokens)


def test_the_page_shows_answer_posteriors_and_sources():
    status = {"run": "r", "index": {"age_secs": 1.0, "version": 1, "age_steps": 0, "backend": "exact", "search_recall": 1.0,
              "newest_version": 1}, "documents": {"searched": 2}, "limits": {"question_chars": 9, "document_chars": 9},
              "editable": False, "problem": None, "checkpoint_step": 1}  # fmt: skip
    documents = [
        {"id": str(number), "number": number, "is_null": False, "is_answer": number == 1, "is_added": False, "title": f"<i>T{number}",
         "text": "a <b>text", "score": 1.0, "prob": 0.5, "posterior": 0.25 + 0.5 * number, "span": None}
        for number in (0, 1)
    ]  # fmt: skip
    answer = {"question": "q", "answer": "new <york>", "prob": 0.1, "document": "1", "documents": documents, "pieces_left_out": 0,
              "tokens": [{"text": "new", "posteriors": (0.2, 0.8)}, {"text": " <york>", "posteriors": (0.9, 0.1)}], "ms": 3.0}  # fmt: skip
    page = render(status, {"added": [], "removed": []}, answer, question="q")
    assert 'id="answer" dir="auto">new &lt;york&gt;</p>' in page and "most of it from <b" in page
    assert (
        'title="80 % from document 2">new<sup>2</sup>' in page
        and 'title="90 % from document 1"> &lt;york&gt;<sup>1</sup>' in page
    )
    assert (
        page.count("p(z|x,y) 0.250") == page.count("p(z|x,y) 0.750") == 1
        and "<york>" not in page
        and "<i>T" not in page
    )
    assert page.count('class="tag">answered') == 1 and "best span" not in page
