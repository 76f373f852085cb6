"""What a language model learns from: what is read, what is learned, what gives way where there is no room."""

import numpy as np
import pytest

from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.instructions.example import InstructionExample
from realm_jax.instructions.prompts import PromptFormat
from realm_jax.instructions.texts import DocumentTexts, InstructionTexts, RecallTexts
from realm_jax.text.generator_tokenizer import as_generator_tokenizer
from realm_jax.text.loading import load_generator_tokenizer
from tests import tiny
from tests.text.made_llama import write_llama2, write_llama3

LENGTH = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return as_generator_tokenizer(corpus.tokenizer)


def example(prompt="who was in w3 ?", answer="w5 w6", **more):
    return InstructionExample("made", "open_qa", prompt, answer, prompt, (answer,), **more)


def words(corpus, ids):
    return corpus.tokenizer.decode(ids)


def test_an_instruction_follows_each_of_its_documents_and_its_answer_alone_is_learned(corpus, tokenizer):
    pieces, form = open_pieces(corpus, tokenizer), PromptFormat.of(tokenizer)
    documents = np.array([[3, 5, -1], [-1, -1, -1]], np.int64)
    texts = InstructionTexts([example(), example("w1 w2", "w9")], documents, pieces, tokenizer, 200)
    assert len(texts.lengths) == 3  # two documents, and the one without any by itself
    for number, document in enumerate([3, 5, -1]):
        text = texts.text(number)
        assert len(text.ids) == texts.lengths[number]
        asked, answer = ("who was in w3 ?", "w5 w6") if document >= 0 else ("w1 w2", "w9")
        assert text.ids[0] == tokenizer.bos_id and text.ids[-1] == tokenizer.eos_id
        assert text.ids[text.num_read : -1].tolist() == tokenizer.encode(f" {answer}").ids.tolist()
        background = text.ids[1 : text.num_read - len(tokenizer.encode(asked).ids)]
        if document < 0:
            assert len(background) == 0
            continue
        parts = [form.before, pieces.titles[document], form.after_title, pieces.bodies[document], form.after]
        assert background.tolist() == np.concatenate(parts).tolist()
    assert (texts.num_too_long, texts.num_unanswered, texts.num_cut, texts.num_without) == (0, 0, 0, 0)


def test_where_there_is_no_room_the_document_gives_way_and_never_the_question(corpus, tokenizer):
    pieces = open_pieces(corpus, tokenizer)
    prompt_len = len(tokenizer.encode("who was in w3 ?").ids)
    around = len(InstructionTexts([example()], np.array([[-1]]), pieces, tokenizer, 99).text(0).ids)
    whole = InstructionTexts([example()], np.array([[3]]), pieces, tokenizer, 400).text(0).ids
    for length in range(around, len(whole) + 1):
        texts = InstructionTexts([example()], np.array([[3]]), pieces, tokenizer, length)
        text = texts.text(0)
        assert len(text.ids) == texts.lengths[0] <= length
        assert text.ids[text.num_read - prompt_len : text.num_read].tolist() == tokenizer.encode("who was in w3 ?").ids.tolist()  # fmt: skip
        assert text.ids[text.num_read :].tolist() == [*tokenizer.encode(" w5 w6").ids, tokenizer.eos_id]
        alone, cut = len(text.ids) == around, around < len(text.ids) < len(whole)
        assert (texts.num_without, texts.num_cut) == (int(alone), int(cut))
    assert InstructionTexts([example()], np.array([[3]]), pieces, tokenizer, around - 1).num_too_long == 1
    assert len(InstructionTexts([example()], np.array([[3]]), pieces, tokenizer, around - 1).lengths) == 0


def test_an_answer_without_pieces_is_left_out_and_counted(corpus, tokenizer):
    texts = InstructionTexts(
        [example(answer="\u200b"), example()], np.array([[1], [2]]), open_pieces(corpus, tokenizer), tokenizer, 200
    )
    assert (texts.num_unanswered, len(texts.lengths)) == (1, 1)


def test_documents_are_learned_whole(corpus, tokenizer):
    pieces = open_pieces(corpus, tokenizer)
    texts = DocumentTexts(pieces, PromptFormat.of(tokenizer), LENGTH)
    sizes = []
    for number in range(len(texts.lengths)):
        text = texts.text(number)
        assert len(text.ids) == texts.lengths[number] <= LENGTH and text.num_read == 0
        sizes.append(len(text.ids))
    whole = pieces.titles.lengths() + pieces.bodies.lengths() + 2
    assert sorted(sizes) == sorted(np.minimum(whole[pieces.bodies.lengths() > 0], LENGTH).tolist())


def test_an_excerpt_stands_in_the_document_before_it(corpus, tokenizer):
    texts = RecallTexts(open_pieces(corpus, tokenizer), PromptFormat.of(tokenizer), LENGTH, seed=0, longest=6)
    assert len(texts.lengths) == 8 * corpus.num_documents
    for number in range(0, len(texts.lengths), 5):
        text = texts.text(number)
        assert len(text.ids) == texts.lengths[number] <= LENGTH
        excerpt = text.ids[text.num_read - 2 : -1].tolist()
        read = text.ids[: text.num_read - 2].tolist()
        assert 3 <= len(excerpt) <= 6
        assert any(read[at : at + len(excerpt)] == excerpt for at in range(len(read)))


def test_a_title_goes_before_a_stump_of_text_does():
    form = PromptFormat(2, 3, 0, *(np.asarray(ids, np.int32) for ids in ([9], [], [8], [7])))
    titles, bodies = np.full(6, 4), np.full(6, 20)
    kept = form.lengths(titles, bodies, np.asarray([40, 20, 15, 14, 10, 9]))
    assert kept.titles.tolist() == [4, 4, 4, 0, 0, 0]
    assert kept.bodies.tolist() == [20, 13, 8, 12, 8, 0]
    assert form.total(kept).tolist() == [27, 20, 15, 14, 10, 0]
    assert form.total(form.lengths(np.asarray([0, 3]), np.asarray([0, 0]), np.asarray([30, 30]))).tolist() == [0, 6]


@pytest.mark.parametrize("write", [write_llama2, write_llama3])
def test_a_title_stands_apart_from_what_is_before_it(tmp_path, write):
    write(tmp_path)
    tokenizer = load_generator_tokenizer(tmp_path)
    form = PromptFormat.of(tokenizer)
    background = form.background(tokenizer.encode("Berlin").ids, tokenizer.encode(" It is big.").ids)
    said = tokenizer.decode([*background, *tokenizer.encode("Q: How big?").ids])
    assert said.replace("\n", "|").replace("|| ", "||") == "Background: Berlin : It is big.||Q: How big?"
    kept = form.lengths(np.asarray([2]), np.asarray([4]), np.asarray([100]))
    assert int(form.total(kept)[0]) == len(form.background(np.zeros(2, np.int32), np.zeros(4, np.int32)))
