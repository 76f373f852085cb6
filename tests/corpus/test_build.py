import dataclasses
import gzip
import json

import numpy as np
import pytest

from realm_jax.corpus import build as build_module
from realm_jax.corpus.build import corpus
from realm_jax.corpus.sample import sample_texts
from realm_jax.corpus.store import Corpus
from realm_jax.corpus.world import WorldConfig, generate
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer

PEOPLE = ["Zoë Brandt", "Amélie Noir", "Bob Ashworth", "Ida Lindqvist"]
PLACES = ["Köln", "Oslo", "Rome", "Lisbon", "Graz"]


def text_of(i):
    person, place = PEOPLE[i % 4], PLACES[i % 5]
    return (
        f"{person} was born in {place} in {1900 + i}. The family moved to {PLACES[(i + 1) % 5]} in {1905 + i}.\n"
        f"In {1920 + i} {person} founded a museum of clocks. It holds {i + 3} clocks and {2 * i} books."
    )


def write_jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def articles():
    return [{"id": str(i), "title": PEOPLE[i % 4], "text": text_of(i)} for i in range(30)]


@pytest.fixture
def build(tmp_path):
    """Runs the job with small settings; a keyword overrides."""

    def run(source, name="run", **settings):
        settings = {"vocab_size": 70, "block_len": 40} | settings
        corpus(run_dir=str(tmp_path / name), source=source, **settings)
        return Corpus.open(tmp_path / name / "corpus")

    return run


def test_text_to_corpus(build, articles, tmp_path):
    source = write_jsonl(tmp_path / "articles.jsonl", articles)
    made = build(source, licence="CC0")
    info = made.info
    assert info.num_sources == 30 and info.num_documents > 30 and info.vocab_size == 70
    assert info.licence == "CC0" and info.source == source and info.dropped == {}
    assert info.counts["articles"] == 30 and info.counts["sentences"] == 120
    assert info.counts["characters"] == sum(len(a["text"]) for a in articles)
    assert made.bodies.lengths().max() <= 40
    assert made.salient_spans.lengths().sum() == info.counts["salient_spans"] > 60
    rows = made.documents_of("7")
    assert [made.source_id(i) for i in rows] == ["7"] * len(rows)
    assert "".join("".join(made.block(i).text.split()) for i in rows) == "".join(text_of(7).split())
    for i in rows:
        block = made.block(i)
        assert block.title == PEOPLE[3] and made.tokenizer.encode(block.text).ids.tolist() == made.bodies[i].tolist()
        spans = [made.tokenizer.decode(made.bodies[i][s:e]) for s, e in made.salient_spans[i]]
        assert spans == [block.text[s:e].lower() for s, e in block.salient_spans]


def test_same_input_gives_the_same_corpus(build, articles, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", articles)
    one, two = build(source, "one"), build(source, "two")
    assert one.fingerprint == two.fingerprint
    assert (one.directory / "corpus.json").read_bytes() == (two.directory / "corpus.json").read_bytes()
    assert build(source, "three", block_len=80).fingerprint != one.fingerprint


def test_workers_change_nothing(build, articles, tmp_path, monkeypatch):
    monkeypatch.setattr("realm_jax.corpus.cutting.BATCH_CHARS", 500)
    monkeypatch.setattr("realm_jax.corpus.cutting.BATCHES_BEFORE_WORKERS", 2)
    source = write_jsonl(
        tmp_path / "a.jsonl", [*articles, {"id": "again", "text": text_of(3)}, {"text": ""}, {"text": "Hi."}]
    )
    one, two = build(source, "one", num_workers=0), build(source, "two", num_workers=2)
    assert (one.directory / "corpus.json").read_bytes() == (two.directory / "corpus.json").read_bytes()
    for file in ("blocks/realm_blocks-train.array_record-00000-of-00001", "salient_spans.json"):
        assert (one.directory / file).read_bytes() == (two.directory / file).read_bytes()


def test_a_worker_for_each_core_by_default(build, articles, tmp_path, monkeypatch):
    asked = []
    cut_in_order = build_module.cut_in_order

    def note(cutter, batches, num_workers):
        asked.append(num_workers)
        return cut_in_order(cutter, batches, 0)

    monkeypatch.setattr(build_module, "cut_in_order", note)
    source = write_jsonl(tmp_path / "a.jsonl", articles)
    for cores, settings in ((6, {}), (1, {}), (6, {"num_workers": 2})):
        monkeypatch.setattr(build_module, "available_cores", lambda cores=cores: cores)
        build(source, str(len(asked)), **settings)
    assert asked == [6, 0, 2]


def test_what_is_dropped_is_counted(build, articles, tmp_path):
    bad = [
        *articles,
        {**articles[3], "id": "again"},
        {"id": "s", "title": "", "text": "Hi."},
        {"id": "e", "title": "", "text": " "},
        {"id": "long", "text": "x" * 8_000_001},
        {"id": "7", "text": "Another seventh article, of the same id."},
        "{not json",
    ]
    path = tmp_path / "a.jsonl"
    write_jsonl(path, bad)
    with path.open("ab") as file:
        file.write(b'{"id": "u", "text": "\xff\xfe no"}\n')
    made = build(str(path), max_dropped_share=0.2)
    assert made.info.dropped == {
        "duplicate id": 1,
        "empty text": 1,
        "exact duplicate block": 4,
        "malformed record": 1,
        "not UTF-8": 1,
        "over-long record": 1,
        "too short": 1,
    }
    assert made.documents_of("again").tolist() == [] and made.info.num_sources == 30


def test_documents_without_salient_spans_are_kept_and_counted(build, articles, tmp_path):
    plain = {"id": "p", "title": "", "text": "nothing of note happens in this text of plain words."}
    made = build(write_jsonl(tmp_path / "a.jsonl", [*articles, plain]))
    num_without = np.count_nonzero(made.salient_spans.lengths() == 0)
    assert made.info.counts["documents_without_salient_spans"] == num_without > 0 and made.info.dropped == {}
    assert made.salient_spans[int(made.documents_of("p")[0])].shape == (0, 2)
    without = build(write_jsonl(tmp_path / "a.jsonl", articles), "none", tagger="none")
    assert without.info.counts["salient_spans"] == 0
    assert without.info.counts["documents_without_salient_spans"] == without.num_documents


def test_too_much_dropped(build, articles, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [*articles, *["{no"] * 10])
    with pytest.raises(ValueError, match=r"10 of 40 records of .* cannot be used \(10 malformed record\)"):
        build(source)
    assert not (tmp_path / "run/corpus").exists()  # found before the slow work
    assert build(source, max_dropped_share=0.25).info.dropped == {"malformed record": 10}


def test_too_much_dropped_where_no_sample_was_read(build, articles, tmp_path):
    z = build(write_jsonl(tmp_path / "z.jsonl", articles), "z")
    source = write_jsonl(tmp_path / "a.jsonl", [*articles, *["{no"] * 5])
    given = {"tokenizer": str(z.directory / "tokenizer"), "tagger": "none"}
    with pytest.raises(
        ValueError, match=r"5 of 35 records of .*a.jsonl cannot be used .*max_dropped_share=0.1; repair"
    ):
        build(source, **given)
    with pytest.raises(ValueError, match="unfinished corpus"):
        Corpus.open(tmp_path / "run/corpus")
    assert build(source, **given, max_dropped_share=0.15).info.dropped == {"malformed record": 5}


def test_own_folder_just_works(tmp_path, caplog):
    folder = tmp_path / "my/docs"
    folder.mkdir(parents=True)
    for i in range(6):
        (folder / f"note {i}.md").write_text(f"# Note {i}\n\n{text_of(i)}\n", encoding="utf-8")
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    with caplog.at_level("WARNING"):
        info = corpus(run_dir=str(tmp_path / "run"), source=str(folder))
    assert "vocabulary lowered from 30522" in caplog.text and info.vocab_size < 1000
    made = Corpus.open(tmp_path / "run/corpus")
    assert made.num_documents == 6 and made.info.block_len == 288
    assert {made.block(i).title for i in range(6)} == {f"Note {i}" for i in range(6)}


def test_several_sources_and_compressed_files(build, articles, tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", articles[:10])
    second = tmp_path / "b.jsonl.gz"
    with gzip.open(second, "wt") as file:
        file.writelines(json.dumps(article) + "\n" for article in articles[10:])
    made = build((first, str(second)))
    assert made.info.num_sources == 30 and made.documents_of("29").size
    assert "renamed_ids" not in made.info.counts  # ids that do not meet stay as they are


def test_ids_that_meet_are_told_apart(build, articles, tmp_path, caplog):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "5").write_text(text_of(40))
    sources = (
        write_jsonl(tmp_path / "a.jsonl", articles[:20]),
        write_jsonl(tmp_path / "b.jsonl", [{"id": str(i), "text": text_of(i + 20)} for i in range(8)]),
        str(folder),
    )
    with caplog.at_level("WARNING"):
        made = build(sources)
    assert made.info.counts["renamed_ids"] == 9 and made.info.num_sources == 29 and made.info.dropped == {}
    assert caplog.text.count("id '0' is in more than one source; there it becomes '2:0', and others likewise") == 1
    for source_id, i in (("5", 5), ("2:5", 25), ("3:5", 40)):
        rows = made.documents_of(source_id)
        assert "".join("".join(made.block(row).text.split()) for row in rows) == "".join(text_of(i).split())
    assert made.documents_of("2:8").size == 0


def test_a_finished_corpus_is_used_again(build, articles, tmp_path, caplog, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", articles)
    first = build(source)
    monkeypatch.setattr(build_module, "train_sentencepiece", None)  # nothing may be built
    with caplog.at_level("INFO"):
        assert build(source).fingerprint == first.fingerprint
    assert "used again" in caplog.text
    with pytest.raises(ValueError, match=r"other settings \(block_len=40 there, 64 asked for\).*output_dir.*delete"):
        build(source, block_len=64)
    write_jsonl(tmp_path / "a.jsonl", articles[1:])
    with pytest.raises(ValueError, match="the text has changed"):
        build(source)


def test_how_far_it_is_stands_in_the_log(build, articles, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(build_module, "TELL_EVERY_SECS", 0.0)
    with caplog.at_level("INFO"):
        made = build(write_jsonl(tmp_path / "a.jsonl", articles), num_workers=1)
    assert f"{made.num_documents} documents so far, 100 % of the text" in caplog.text


def test_a_damaged_corpus_is_built_again(build, articles, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", articles)
    first = build(source)
    (first.directory / "tokens/bodies.values.npy").write_bytes(b"")
    assert build(source).fingerprint == first.fingerprint


def test_an_interrupted_build_leaves_no_corpus(build, articles, tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", articles)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("realm_jax.corpus.dataset.BlockWriter.finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(source)
    with pytest.raises(ValueError, match="unfinished corpus"):
        Corpus.open(tmp_path / "run/corpus")
    assert build(source).fingerprint == build(source, "other").fingerprint
    assert sorted(f.name for f in (tmp_path / "run/corpus/blocks").iterdir()) == sorted(
        f.name for f in (tmp_path / "other/corpus/blocks").iterdir()
    )


def test_a_second_corpus_with_the_same_tokenizer(build, articles, tmp_path):
    z = build(write_jsonl(tmp_path / "z.jsonl", articles), "z")
    x = build(
        write_jsonl(tmp_path / "x.jsonl", [{"text": text_of(i)} for i in range(40, 50)]),
        "x",
        tokenizer=str(z.directory / "tokenizer"),
        tagger=f"rules:{z.directory / 'salient_spans.json'}",
    )
    assert x.info.tokenizer_fingerprint == z.info.tokenizer_fingerprint
    assert x.info.settings["tokenizer"] == z.info.tokenizer_fingerprint


def test_byte_pair_tokenizer(build, articles, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", articles)
    one, two, unigram = (
        build(source, "1", tokenizer="train:bpe"),
        build(source, "2", tokenizer="train:bpe"),
        build(source),
    )
    assert one.fingerprint == two.fingerprint != unigram.fingerprint
    assert one.info.settings["tokenizer"] == "train:bpe" and one.info.vocab_size == 70


def test_bert_vocabulary(build, articles, tmp_path):
    vocab = tmp_path / "vocab.txt"
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [*SPECIAL_PIECES, ".", "was", "born", "in", *letters, *(f"##{c}" for c in letters)]
    vocab.write_text("\n".join(words) + "\n")
    made = build(write_jsonl(tmp_path / "a.jsonl", articles), tokenizer=str(vocab), block_len=200)
    assert made.info.vocab_size == len(words)
    assert made.tokenizer.decode(made.bodies[0]).startswith("zoe brandt was born in koln in 1900 .")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_len": 4}, "block_len of at least 8 pieces, got 4"),
        ({"min_pieces": 0}, "min_pieces of at least 1, got 0"),
        ({"title_len": -1}, "title_len of at least 0, got -1"),
        ({"num_workers": -1}, "num_workers of at least 0, got -1"),
        ({"max_dropped_share": 1.5}, "max_dropped_share between 0 and 1, got 1.5"),
        ({"tagger": "magic"}, "expected tagger .* got 'magic'"),
        ({"tokenizer": "nowhere"}, "no tokenizer at nowhere"),
        ({"world": WorldConfig(num_articles=20)}, 'world settings are for source="world"'),
        ({"source_format": "docx"}, "expected a source format among"),
        ({"source": ()}, "expected one source"),
        ({"vocab_size": 0}, "vocab_size of at least 6 pieces, got 0"),
        ({"pipeline_options": (), "num_workers": 2}, "a pipeline has the workers .*got num_workers=2; leave it out"),
        ({"pipeline_options": (), "source": "world"}, 'source to name text for a pipeline, got "world"'),
        ({"pipeline_dir": "shared"}, r"pipeline_dir is for a pipeline; give pipeline_options \(\(\)"),
        ({"output_dir": __file__}, f"corpus.output_dir: expected a folder, got {__file__}.* is a file; name another"),
        (
            {"output_dir": "/proc/none"},
            r"corpus.output_dir: expected a folder that can be written to, got /proc/none \(.*name",
        ),
    ],
)
def test_mistakes_are_told_before_the_work(build, articles, tmp_path, settings, message):
    source = write_jsonl(tmp_path / "a.jsonl", articles)
    with pytest.raises(ValueError, match=message):
        build(**({"source": source} | settings))
    assert not (tmp_path / "run").exists()


def test_a_pipeline_without_beam(build, articles, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs Apache Beam: pip install 'realm_jax\[beam\]', on the workers too"):
        build(write_jsonl(tmp_path / "a.jsonl", articles), pipeline_options=())
    assert not (tmp_path / "run").exists()


def test_what_is_written_does_not_lie_among_the_documents(build, tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.txt").write_text(text_of(i))
    for settings, name in (({"output_dir": str(folder / ".." / "docs")}, "output_dir"), ({"name": "docs"}, "run_dir")):
        with pytest.raises(ValueError, match=f"got {name}=.*docs, which is the source; name another {name}"):
            build(str(folder), **settings)
    assert len(list(folder.iterdir())) == 6


@pytest.mark.parametrize(("run", "output"), [("docs/run", None), ("run", "docs/corpora/mine")])
def test_a_run_below_its_source_is_no_part_of_it(tmp_path, monkeypatch, run, output):
    folder = tmp_path / "docs"
    (folder / "corpora").mkdir(parents=True)
    for i in range(6):
        (folder / f"{i}.txt").write_text(text_of(i))
    settings = {"run_dir": str(tmp_path / run), "source": str(folder), "vocab_size": 60, "block_len": 40}
    settings |= {"output_dir": str(tmp_path / output)} if output else {}
    first = corpus(**settings)
    assert first.num_sources == 6
    (tmp_path / (output or run) / "notes.txt").write_text(text_of(7))
    monkeypatch.setattr(build_module, "train_sentencepiece", None)  # nothing may be built
    assert corpus(**settings) == first
    (folder / "6.txt").write_text(text_of(6))
    with pytest.raises(ValueError, match="the text has changed"):
        corpus(**settings)


def test_missing_and_empty_sources(build, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        build(str(tmp_path / "nothing-here"))
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": "Hi."}] * 3)
    with pytest.raises(ValueError, match=r"no text for a corpus in .*a.jsonl \(.*3 too short"):
        build(source, tokenizer=str(_letters(tmp_path)), tagger="none")


def _letters(tmp_path):
    WordPieceTokenizer([*SPECIAL_PIECES, "hi", "."]).save(tmp_path / "letters")
    return tmp_path / "letters"


def test_sample_is_bounded_and_repeats():
    texts = [f"{i}" * 10 for i in range(1, 10)] * 20
    sample = sample_texts(texts, 300, seed=0)
    assert sum(map(len, sample.texts)) <= 300 and len(sample.texts) >= 29
    assert sample.num_read == 180 and sample.is_whole and sample.chars_read == 1800
    assert sample == sample_texts(iter(texts), 300, seed=0)
    assert sample.texts != sample_texts(texts, 300, seed=1).texts
    assert sample_texts(texts, 10**6, seed=0).texts == texts
    assert [len(text) for text in sample_texts(["x" * 1000], 50, seed=0).texts] == [50]
    part = sample_texts(texts, 300, seed=0, max_read_chars=500)
    assert not part.is_whole and part.num_read == 50


@pytest.fixture(scope="module")
def world_corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    config = WorldConfig(num_articles=40, seed=3)
    corpus(run_dir=str(directory), source="world", world=config, vocab_size=400)
    return Corpus.open(directory / "corpus"), config


def test_world(world_corpus):
    made, config = world_corpus
    world = generate(config)
    assert made.num_documents == 40 and made.info.settings["world"] == dataclasses.asdict(config)
    assert made.info.counts["unknown_pieces"] == 0
    assert made.block(5).text == world.articles[5].text
    total = 0
    for name, split in (("x_train", "train"), ("x_heldout", "heldout")):
        stream = Corpus.open(made.directory / name)
        sentences = list(world.sentences_of(split))
        assert stream.num_documents == len(sentences)
        assert stream.info.tokenizer_fingerprint == made.info.tokenizer_fingerprint
        for row in (0, 11, len(sentences) - 1):
            gold = int(stream.gold_documents[row])
            assert made.source_id(gold) == sentences[row].gold_id
            assert stream.answers(row) == (sentences[row].answer,)
            assert sentences[row].answer in made.block(gold).text
            (start, end) = stream.salient_spans[row][0]
            assert stream.tokenizer.decode(stream.bodies[row][start:end]) == sentences[row].answer.lower()
        total += len(sentences)
    assert total == len(world.sentences)


def test_world_questions(world_corpus):
    made, config = world_corpus
    records = [json.loads(line) for line in (made.directory / "questions.jsonl").read_text().splitlines()]
    assert len(records) == len(generate(config).questions)
    for record in records[::7]:
        assert made.source_id(record["gold_document"]) == record["gold_id"]
        assert record["answer"][0] in made.block(record["gold_document"]).text
    assert {record["split"] for record in records} == {"train", "heldout"}
    for split in ("train", "heldout"):
        own = (made.directory / f"questions_{split}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in own] == [record for record in records if record["split"] == split]


def test_world_with_short_blocks(tmp_path):
    corpus(run_dir=str(tmp_path), world=WorldConfig(num_articles=30), vocab_size=400, block_len=32)
    made, stream = Corpus.open(tmp_path / "corpus"), Corpus.open(tmp_path / "corpus/x_train")
    assert made.num_documents > 60
    for row in range(0, stream.num_documents, 17):
        assert stream.answers(row)[0] in made.block(int(stream.gold_documents[row])).text


def test_real_text(shared_data, build):
    made = build(str(shared_data / "openqa/passages.jsonl.gz"), vocab_size=2000, block_len=128, sample_chars=100_000)
    assert made.info.num_sources > 5000 and made.info.num_pieces > 500_000
    assert made.info.counts["documents_without_salient_spans"] < 0.1 * made.num_documents
    for i in range(0, made.num_documents, 997):
        block = made.block(i)
        assert made.sentence_ends[i][-1] == len(made.bodies[i]) <= 128
        assert all(block.text[s:e].strip() == block.text[s:e] for s, e in block.sentence_spans)
