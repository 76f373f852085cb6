import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from realm_jax.corpus.blocks import Block, piece_rows
from realm_jax.corpus.ragged import Ragged
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.writer import CorpusWriter, content_fingerprint, make_corpus
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer

WORDS = ["ann", "bob", "was", "born", "in", "oslo", "rome", "19", "##31", "."]


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer([*SPECIAL_PIECES, *WORDS])


def block(source, number, text, sentences, spans=(), title="Ann"):
    return Block(
        f"{source}#{number}",
        source,
        title,
        text,
        np.asarray(sentences, np.int32).reshape(-1, 2),
        np.asarray(spans, np.int32).reshape(-1, 2),
    )


@pytest.fixture
def blocks():
    return [
        block("é1", 0, "Ann was born. Bob was.", [(0, 13), (14, 22)], [(0, 3), (14, 17)]),
        block("é1", 1, "In 1931.", [(0, 8)], [(3, 7)]),
        block("2", 0, "Rome.", [(0, 5)], title=""),
    ]


@pytest.fixture
def corpus(tmp_path, blocks, tokenizer):
    return make_corpus(tmp_path / "corpus", blocks, tokenizer)


def test_arrays(corpus, tokenizer):
    assert corpus.num_documents == 3 and corpus.info.num_pieces == 7 + 4 + 2 and corpus.info.num_sources == 2
    assert [tokenizer.decode(corpus.bodies[i]) for i in range(3)] == [
        "ann was born . bob was .",
        "in 1931 .",
        "rome .",
    ]
    assert [corpus.titles[i].tolist() for i in range(3)] == [[5], [5], []]
    assert [corpus.sentence_ends[i].tolist() for i in range(3)] == [[4, 7], [4], [2]]
    assert [corpus.salient_spans[i].tolist() for i in range(3)] == [[[0, 1], [4, 5]], [[1, 3]], []]
    assert corpus.salient_spans[2].shape == (0, 2)
    assert corpus.bodies[0].dtype == np.int32
    assert corpus.bodies.lengths().tolist() == [7, 4, 2] and len(corpus.bodies) == 3


def test_sixteen_bits_when_the_vocabulary_allows(corpus, tmp_path, blocks):
    def value_type(directory):
        return np.load(directory / "tokens/bodies.values.npy", mmap_mode="r").dtype

    assert value_type(corpus.directory) == np.uint16
    large = WordPieceTokenizer([*SPECIAL_PIECES, *WORDS, *(f"piece{i}" for i in range(1 << 16))])
    assert value_type(make_corpus(tmp_path / "large", blocks, large, with_text=False).directory) == np.int32


def test_gather(corpus):
    ids = np.array([[2, -1], [0, 1]])
    got = corpus.bodies.gather(ids, max_len=5)
    assert got.dtype == np.int32 and got.shape == (2, 2, 5)
    assert got[0].tolist() == [[11, 14, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert got[1].tolist() == [corpus.bodies[0][:5].tolist(), [*corpus.bodies[1].tolist(), 0]]
    assert corpus.bodies.lengths(ids).tolist() == [[2, 0], [7, 4]]
    assert corpus.bodies.gather(np.array([2], np.int32), 3, pad=-1).tolist() == [[11, 14, -1]]
    assert corpus.salient_spans.gather(np.array([1, 2]), 2).tolist() == [[[1, 3], [0, 0]], [[0, 0], [0, 0]]]
    with pytest.raises(ValueError, match="document ids below 3, got 3"):
        corpus.bodies.gather(np.array([0, 3]), 5)
    for wrong in (3, -1):
        with pytest.raises(IndexError):
            corpus.bodies[wrong]


def test_gather_against_a_loop():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 20, 300)
    values = rng.integers(1, 60000, lengths.sum()).astype(np.uint16)
    ragged = Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))
    ids = rng.integers(-1, 300, (7, 11))
    got = ragged.gather(ids, 12)
    for place in np.ndindex(ids.shape):
        row = ragged[ids[place]][:12] if ids[place] >= 0 else []
        np.testing.assert_array_equal(got[place], np.pad(np.asarray(row, np.int32), (0, 12 - len(row))))


def test_sources(corpus):
    assert [corpus.source_id(i) for i in range(3)] == ["é1", "é1", "2"]
    assert corpus.documents_of("é1").tolist() == [0, 1] and corpus.documents_of("2").tolist() == [2]
    assert corpus.documents_of("1").tolist() == [] and corpus.documents_of("").tolist() == []


def test_a_source_in_two_places(tmp_path, tokenizer):
    names = ["a", "b", "a", "a", "c"]
    corpus = make_corpus(tmp_path, [block(name, 0, "Rome.", [(0, 5)]) for name in names], tokenizer, with_text=False)
    assert corpus.documents_of("a").tolist() == [0, 2, 3] and corpus.documents_of("c").tolist() == [4]


def test_blocks_come_back(corpus, blocks):
    for i, want in enumerate(blocks):
        got = corpus.block(i)
        assert got[:4] == want[:4]
        np.testing.assert_array_equal(got.sentence_spans, want.sentence_spans)
        np.testing.assert_array_equal(got.salient_spans, want.salient_spans)
    with pytest.raises(IndexError):
        corpus.block(3)


def test_blocks_are_a_tfds_data_set(corpus):
    source = tfds.builder_from_directory(str(corpus.directory / "blocks")).as_data_source(split="train")
    assert len(source) == 3
    assert source[1]["text"] == b"In 1931." and source[1]["salient_spans"].tolist() == [[3, 7]]
    assert [record["source_id"].decode() for record in source.__getitems__([2, 0])] == ["2", "é1"]


def test_without_text(tmp_path, blocks, tokenizer):
    corpus = make_corpus(tmp_path, blocks, tokenizer, with_text=False)
    assert not (tmp_path / "blocks").exists()
    with pytest.raises(ValueError, match="was made without text"):
        corpus.block(0)


def test_gold_documents_and_answers(tmp_path, blocks, tokenizer, corpus):
    assert corpus.gold_documents is None and corpus.answers(0) == ()
    stream = make_corpus(
        tmp_path / "x", blocks, tokenizer, gold_documents=[4, -1, 0], answers=[("Oslo", "né"), (), ("1931",)]
    )
    assert stream.gold_documents.tolist() == [4, -1, 0] and stream.gold_documents.dtype == np.int64
    assert [stream.answers(i) for i in range(3)] == [("Oslo", "né"), (), ("1931",)]
    assert stream.fingerprint != corpus.fingerprint


def test_tokenizer_and_pickle(corpus, tokenizer):
    assert corpus.tokenizer.fingerprint == tokenizer.fingerprint == corpus.info.tokenizer_fingerprint
    copy = pickle.loads(pickle.dumps(corpus))
    np.testing.assert_array_equal(copy.bodies[0], corpus.bodies[0])


def test_fingerprint_follows_the_content(tmp_path, blocks, tokenizer, corpus):
    again = make_corpus(tmp_path / "again", blocks, tokenizer, with_text=False)
    assert again.fingerprint == corpus.fingerprint
    other = make_corpus(tmp_path / "other", blocks[:2], tokenizer, with_text=False)
    assert other.fingerprint != corpus.fingerprint
    assert content_fingerprint({"a": "1"}, "t") != content_fingerprint({"a": "1"}, "u")


def test_writing_in_batches_is_the_same(tmp_path, blocks, tokenizer, corpus):
    with CorpusWriter(tmp_path / "batches", tokenizer, block_len=288) as writer:
        for part in (blocks[:1], [], blocks[1:]):
            writer.add(piece_rows(part, tokenizer, 32), [b.source_id for b in part])
        assert writer.finish().fingerprint == corpus.fingerprint


def test_empty_corpus(tmp_path, tokenizer):
    corpus = make_corpus(tmp_path, [], tokenizer)
    assert corpus.num_documents == 0 and corpus.documents_of("a").tolist() == []
    assert corpus.bodies.gather(np.array([-1, -1]), 3).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_too_long_block(tmp_path, blocks, tokenizer):
    with pytest.raises(ValueError, match="blocks of at most 3 pieces, got one of 7"):
        make_corpus(tmp_path, blocks, tokenizer, block_len=3)


def test_not_a_corpus(tmp_path):
    with pytest.raises(ValueError, match=r"no corpus at .*expected a corpus.json"):
        Corpus.open(tmp_path / "nothing")
    (tmp_path / "tokens").mkdir()
    with pytest.raises(ValueError, match="unfinished corpus"):
        Corpus.open(tmp_path)


def test_unfinished_build_is_not_a_corpus(tmp_path, blocks, tokenizer, corpus):
    with CorpusWriter(corpus.directory, tokenizer, block_len=288) as writer:
        writer.add(piece_rows(blocks, tokenizer, 32), [b.source_id for b in blocks])
    with pytest.raises(ValueError, match=r"unfinished corpus .* run the corpus job again"):
        Corpus.open(corpus.directory)


@pytest.mark.parametrize("name", ["bodies.values", "bodies.offsets", "salient_spans.values", "source_hashes"])
def test_damaged_files(corpus, name):
    path = corpus.directory / "tokens" / f"{name}.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(ValueError, match=rf"{name}.npy is damaged or cut short .*build the corpus again"):
        Corpus.open(corpus.directory)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name}.npy is damaged or cut short"):
        Corpus.open(corpus.directory)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name}.npy is missing; build the corpus again"):
        Corpus.open(corpus.directory)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bodies.offsets", np.float64([0, 7, 9, 13]), "expected whole numbers in rows, got float64"),
        ("bodies.offsets", np.uint64([0, 7, 9, 13]), "expected a row of offsets, got uint64"),
        ("bodies.offsets", np.int64(3), "expected whole numbers in rows, got int64"),
        ("bodies.offsets", np.array([0, 1, 2, 3], object), "is damaged or cut short"),
        ("bodies.offsets", b"\x93NUMPY\x01\x00\x08\x00{'descr':", "is damaged or cut short"),
        ("bodies.offsets", np.int64([0, -5, 9, 13]), "offsets of an array are damaged"),
        ("bodies.offsets", np.int64([0, 99, 9, 13]), "offsets of an array are damaged"),
        ("source_first", np.int64([2, 2, 3]), "source_first.npy is damaged"),
        ("source_first", np.int64([0, 1 << 40, 3]), "source_first.npy is damaged"),
    ],
)
def test_arrays_of_hostile_content(corpus, name, content, message):
    """Nothing is unpickled, and no row or source of a corpus that somebody changed is read from elsewhere in the file."""
    path = corpus.directory / "tokens" / f"{name}.npy"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match=message):
        changed = Corpus.open(corpus.directory)
        changed.bodies[0]
        changed.bodies.gather(np.array([0]), 4)
        changed.source_id(0)
        changed.documents_of("é1")


def test_arrays_of_another_corpus(corpus, tmp_path, blocks, tokenizer):
    other = make_corpus(tmp_path / "other", blocks[:1], tokenizer)
    target = corpus.directory / "tokens/bodies.values.npy"
    target.write_bytes((other.directory / "tokens/bodies.values.npy").read_bytes())
    with pytest.raises(ValueError, match=r"bodies.values.npy: expected 13 rows, got 7"):
        Corpus.open(corpus.directory)


def test_wrong_tokenizer_and_blocks(corpus, tmp_path, blocks):
    WordPieceTokenizer([*SPECIAL_PIECES, *WORDS, "more"]).save(corpus.directory / "tokenizer")
    with pytest.raises(ValueError, match="is not the tokenizer of this corpus"):
        _ = corpus.tokenizer
    for file in (corpus.directory / "blocks").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="no readable block data set"):
        corpus.block(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not hold JSON: .*"),
        ("[" * 100_000, "does not hold JSON: .*"),
        ("[1]", "expected format_version 1, got list"),
        ('{"format_version": 9}', "expected format_version 1, got 9"),
        ('{"format_version": 1}', "lacks a field: .*"),
    ],
)
def test_bad_corpus_json(corpus, content, message):
    (corpus.directory / "corpus.json").write_text(content)
    with pytest.raises(ValueError, match=f"{message}; remove {corpus.directory} and build the corpus again"):
        Corpus.open(corpus.directory)


def test_wikipedia_sized_store_opens_at_once(corpus):
    """13 353 718 documents of 288 pieces, in sparse files: 7.7 GB of pieces that no disk has to hold."""
    documents, block_len = 13_353_718, 288
    sizes = {"titles": 4, "bodies": block_len, "sentence_ends": 10, "salient_spans": 8}

    def sparse(name, length, dtype, width=()):
        path = corpus.directory / "tokens" / f"{name}.npy"
        with path.open("wb") as file:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (length, *width)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + length * int(np.prod(width)) * np.dtype(dtype).itemsize)
        return path

    def last(path, value):
        array = np.load(path, mmap_mode="r+")
        array[-1] = value
        array.flush()

    for name, size in sizes.items():
        width = (2,) if name == "salient_spans" else ()
        sparse(f"{name}.values", documents * size, np.uint16, width)
        offsets = sparse(f"{name}.offsets", documents + 1, np.int64)
        last(offsets, documents * size)
        array = np.load(offsets, mmap_mode="r+")
        array[9_000_000:9_000_002] = np.array([9_000_000, 9_000_001]) * size
        array.flush()
    sparse("source_ids.values", 0, np.uint8)
    sparse("source_ids.offsets", documents + 1, np.int64)
    last(sparse("source_first", documents + 1, np.int64), documents)
    sparse("source_hashes", documents, np.uint64)
    sparse("source_order", documents, np.int64)
    info = json.loads((corpus.directory / "corpus.json").read_text())
    info |= {"num_documents": documents, "num_sources": documents, "num_pieces": documents * block_len}
    (corpus.directory / "corpus.json").write_text(json.dumps(info))

    measure = f"""
import resource, time
from realm_jax.corpus.store import Corpus
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
corpus = Corpus.open({str(corpus.directory)!r})
opened = time.perf_counter() - start
row = corpus.bodies[9_000_000]
assert len(row) == {block_len} and corpus.num_documents == {documents}, len(row)
print(opened, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    output = subprocess.run(
        [sys.executable, "-c", measure], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    secs, kilobytes = map(float, output.split())
    assert secs < 1.0 and kilobytes < 20_000, output
