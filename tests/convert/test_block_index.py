"""RealmForOpenQA's embeddings as an index version: row i is document i, and the converted run answers what the port answers."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.__main__ import main
from realm_jax.answering.loading import load_answerer
from realm_jax.config import bind
from realm_jax.convert import block_index, load_hugging_face, save_hugging_face
from realm_jax.convert.block_records import write_block_records
from realm_jax.convert.job import convert
from realm_jax.corpus.build import corpus as corpus_job
from realm_jax.corpus.store import Corpus
from realm_jax.data.inputs import SpecialIds, document_inputs, query_inputs
from realm_jax.models import Retriever
from realm_jax.retrieval.build_version import IndexSettings, build_version
from realm_jax.retrieval.recall import random_sentences
from realm_jax.retrieval.shards import map_embeddings
from realm_jax.retrieval.versions import list_versions, load_version, verify
from realm_jax.run_dir import RunDir
from realm_jax.training.checkpoint import load_params
from tests.convert.cases import Case
from tests.convert.made import VOCAB, change, golden_folder


def converted(place: Path, **settings) -> tuple[RunDir, Case]:
    """The golden RealmForOpenQA, its seven documents beside it, as a run."""
    folder, case = golden_folder("RealmForOpenQA", place / "theirs")
    write_block_records(folder / "block_records.jsonl", case.metadata["texts"]["blocks"])
    run = RunDir.of(place / "run")
    convert(run_dir=str(run.path), source=str(folder), **settings)
    return run, case


def index(run: RunDir, **settings) -> None:
    convert(run_dir=str(run.path), direction="index", **settings)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Case]:
    run, case = converted(tmp_path_factory.mktemp("asked"))
    assert main(["convert", f"--run_dir={run.path}", "--gin.convert.direction=index"]) == 0
    return run, case


def test_a_row_a_document(asked):
    run, case = asked
    assert list_versions(run.index) == [0]
    corpus = Corpus.open(run.corpus)
    manifest = verify(run.index_version(0), corpus_fingerprint=corpus.fingerprint, embed_dim=6, num_documents=7)
    assert manifest.backend == "scann" and manifest.search_recall == 1.0
    (shard,) = manifest.shards
    np.testing.assert_array_equal(map_embeddings(run.index_version(0), shard, 6), case.arrays["model/block_emb"])
    blocks = case.metadata["texts"]["blocks"]
    assert [corpus.block(document).text for document in range(7)] == blocks
    assert [corpus.source_id(document) for document in range(7)] == list("0123456")
    assert corpus.info.block_len == max(len(text.split()) for text in blocks) == 7


def test_the_port_and_the_converted_run_give_one_answer(asked):
    """The golden file holds the answer that RealmForOpenQA gave, out of its three best documents."""
    run, case = asked
    task = bind("predict", [str(run.weights / "open_qa.gin")], ["predict.questions='who'"])["task"]
    assert (task.num_read, task.num_retrieved, task.joint_len, task.query_len) == (3, 4, 18, 9)
    loaded = load_answerer(run, task)
    (answer,) = loaded.answerer.answer([case.metadata["texts"]["question"]])
    pieces = loaded.corpus.tokenizer.encode(answer.text).ids
    assert pieces.tolist() == case.arrays["out/answer_ids"].tolist() and answer.text

    # every document's score is that of the embedding that was given, whatever the document encoder would make of it
    model = load_hugging_face(run.path.parent / "theirs")
    ids, segments, mask = (
        jnp.asarray(case.arrays[f"in/{name}"], jnp.int32) for name in ("input_ids", "token_type_ids", "attention_mask")
    )
    params = {"params": model.params["retriever"]}
    query = Retriever(model.retriever).apply(params, ids, segments, mask > 0, method="embed_queries")
    scores = case.arrays["model/block_emb"] @ np.asarray(query[0])
    found = [document for document in answer.documents if document.document >= 0]
    assert [document.document for document in found] == np.argsort(-scores)[:3].tolist()
    np.testing.assert_allclose([d.retrieval_score for d in found], np.sort(scores)[:-4:-1], rtol=1e-4)
    embedded = loaded.answerer.embed_documents(
        [np.zeros(0, np.int32)] * 7, [loaded.corpus.bodies[document] for document in range(7)]
    )
    assert np.abs(embedded - case.arrays["model/block_emb"]).max() > 0.1


def test_predict_and_evaluate_with_the_run_file_that_it_wrote(asked, tmp_path: Path, capsys: pytest.CaptureFixture):
    run, case = asked
    file = f"--gin_file={run.weights / 'open_qa.gin'}"
    question = case.metadata["texts"]["question"]
    command = ["predict", f"--run_dir={run.path}", file, f"--gin.predict.questions={question}"]
    assert main([*command, f"--gin.predict.output={tmp_path / 'answers.jsonl'}"]) == 0
    prediction = json.loads((tmp_path / "answers.jsonl").read_text())["prediction"]
    bind("serve", [str(run.weights / "open_qa.gin")], [])
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": question, "answer": [prediction]}) + "\n")
    command = ["evaluate", f"--run_dir={run.path}", file, f"--gin.evaluate.questions={tmp_path / 'questions.jsonl'}"]
    assert main(command) == 1  # nearest_question needs to know what was trained on; told before any work
    assert "QUESTIONS is required" in capsys.readouterr().err
    assert main([*command, f"--gin.QUESTIONS={tmp_path / 'questions.jsonl'}"]) == 0
    figures = json.loads(run.evaluation("questions-answers").read_text())
    assert figures["rows"]["open_qa"]["exact_match"] == 1.0
    rows = json.loads(run.evaluation("questions").read_text())["rows"]
    assert set(rows) == {"bm25", "served_index"} and rows["served_index"]["version"] == 0


def test_twice_is_once_and_the_class_goes_out_as_it_came(asked, tmp_path: Path):
    run, case = asked
    manifest = run.index_version(0) / "manifest.json"
    before, built = manifest.read_bytes(), (run.corpus / "corpus.json").read_bytes()
    index(run)
    assert manifest.read_bytes() == before and (run.corpus / "corpus.json").read_bytes() == built
    convert(run_dir=str(run.path), direction="out", destination=str(tmp_path / "out"))
    again = load_hugging_face(tmp_path / "out")
    np.testing.assert_array_equal(again.block_embeds, case.arrays["model/block_emb"])
    own = load_hugging_face(run.path.parent / "theirs").params
    jax.tree.map(np.testing.assert_array_equal, dict(again.params), dict(own))


ODD = [
    "the old  bridge\twas",
    "the old bridge was",
    "town hall",
    "",
    "town hall",
    "\u200b",
    "a king " * 300,
    "river\x00\r\nmill",
]


@pytest.mark.parametrize("backend", ["exact", "scann"])
def test_repeated_empty_and_long_records_keep_their_rows(backend: str, tmp_path: Path):
    folder, _ = golden_folder("RealmForOpenQA", tmp_path / "theirs", num_block_records=len(ODD))
    rows = np.random.default_rng(0).normal(size=(len(ODD), 6)).astype(np.float16)  # half precision becomes float32
    change(folder, block_emb=rows)
    write_block_records(folder / "block_records.jsonl", ODD)
    run = RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(folder))
    index(run, backend=backend)
    corpus = Corpus.open(run.corpus)
    texts = [corpus.block(document).text for document in range(len(ODD))]
    assert texts[:3] == ["the old  bridge was", "the old bridge was", "town hall"] and texts[3:5] == ["", "town hall"]
    assert texts[6] == ("a king " * 300).strip() and texts[7] == "river\nmill"
    assert corpus.bodies.lengths().tolist() == [4, 4, 2, 0, 2, 0, 600, 2] and corpus.info.block_len == 600
    assert len(corpus.sentence_ends[7]) == 2
    found = load_version(run.index_version(0))
    np.testing.assert_array_equal(found.embeddings(np.arange(len(ODD))), rows.astype(np.float32))
    result = found.search(rows.astype(np.float32), len(ODD))
    exact = rows.astype(np.float32) @ rows.astype(np.float32).T
    np.testing.assert_array_equal(result.ids, np.argsort(-exact, axis=1))
    assert verify(run.index_version(0)).backend == backend
    # the long one is read as far as there is room, the empty one has no span
    task = bind("predict", [str(run.weights / "open_qa.gin")], ["predict.questions='who'"])["task"]
    task = dataclasses.replace(task, num_read=8, num_retrieved=8)
    (answer,) = load_answerer(run, task).answerer.answer(["what was built"])
    spans = {document.document: document.best_span for document in answer.documents}
    assert set(spans) == {-1, *range(len(ODD))} and spans[3] is None and spans[5] is None and spans[6] is not None


def test_several_shards_and_a_build_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, case = converted(tmp_path)
    monkeypatch.setattr(block_index, "IndexSettings", lambda backend: IndexSettings(backend=backend, shard_bytes=48))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("realm_jax.retrieval.build_version.publish", killed)
        with pytest.raises(KeyboardInterrupt):
            index(run)
    assert list_versions(run.index) == []
    index(run)
    manifest = verify(run.index_version(0))
    assert [shard.count for shard in manifest.shards] == [1, 2, 2, 2]
    rows = [map_embeddings(run.index_version(0), shard, 6) for shard in manifest.shards]
    np.testing.assert_array_equal(np.concatenate(rows), case.arrays["model/block_emb"])


def test_recall_is_measured_with_sentences_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`build_version` asks for the sentences of a view of the corpus, whose pieces are the documents' numbers."""
    run, case = converted(tmp_path)
    given = []

    def build(*args, **kwargs):
        given.append((args, kwargs))
        return build_version(*args, **kwargs)

    monkeypatch.setattr(block_index, "build_version", build)
    index(run)
    ((_, _, embed_documents, view, _), named) = given[0]
    assert view.fingerprint == Corpus.open(run.corpus).fingerprint
    special = SpecialIds.of(view.tokenizer)
    asked_for = np.array([4, 0, 6, -1])
    documents = document_inputs(view, asked_for, 8, special)
    np.testing.assert_array_equal(embed_documents(*documents)[:3], case.arrays["model/block_emb"][[4, 0, 6]])
    sentences = random_sentences(view, asked_for[:3])
    padding = [np.zeros(0, np.int32)] * (named["batches"].batch_size - 3)
    found = named["embed_queries"](*query_inputs(sentences + padding, named["batches"].query_len, special))[:3]
    model = load_hugging_face(tmp_path / "theirs")
    texts = [case.metadata["texts"]["blocks"][document] for document in (4, 0, 6)]
    inputs = query_inputs([view.tokenizer.encode(text).ids for text in texts], 12, special)
    expected = Retriever(model.retriever).apply(
        {"params": model.params["retriever"]}, *map(jnp.asarray, (*inputs, inputs.ids > 0)), method="embed_queries"
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_texts_may_come_with_the_index(tmp_path: Path):
    folder, case = golden_folder("RealmForOpenQA", tmp_path / "theirs")
    run = RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(folder))
    with pytest.raises(
        ValueError, match=r"has the embeddings of 7 documents, and not their texts; name those, .*block_records=FILE"
    ):
        index(run)
    write_block_records(tmp_path / "texts.jsonl", case.metadata["texts"]["blocks"])
    write_block_records(tmp_path / "six.jsonl", case.metadata["texts"]["blocks"][:6])
    with pytest.raises(
        ValueError, match=r"six.jsonl has 6 lines, block_emb 7 rows; take the records that belong to it"
    ):
        index(run, block_records=str(tmp_path / "six.jsonl"))
    assert not run.corpus.exists() and not run.index.exists()
    index(run, block_records=str(tmp_path / "texts.jsonl"))
    assert list_versions(run.index) == [0]
    index(run)
    index(run, block_records=str(tmp_path / "texts.jsonl"))
    write_block_records(tmp_path / "others.jsonl", case.metadata["texts"]["blocks"][::-1])
    with pytest.raises(ValueError, match=r"block_records.jsonl has other texts than .*others.jsonl; leave out"):
        index(run, block_records=str(tmp_path / "others.jsonl"))


def corpus_of(run: RunDir, place: Path, texts: list[str], **settings) -> str:
    """What the corpus job makes of records."""
    write_block_records(place.with_suffix(".jsonl"), texts)
    defaults = {"min_pieces": 1, "tagger": "none", "num_workers": 0, "tokenizer": str(run.weights / "tokenizer")}
    settings = defaults | {"max_dropped_share": 1.0} | settings
    corpus_job(run_dir=str(run.path), output_dir=str(place), source=str(place.with_suffix(".jsonl")), **settings)
    return str(place)


def test_a_corpus_of_the_corpus_job_that_has_a_document_a_record(tmp_path: Path):
    run, case = converted(tmp_path)
    place = corpus_of(run, tmp_path / "made", case.metadata["texts"]["blocks"])
    index(run, corpus=place)
    assert verify(run.index_version(0)).corpus_fingerprint == Corpus.open(place).fingerprint
    assert not run.corpus.exists()
    task = bind("predict", [str(run.weights / "open_qa.gin")], ["predict.questions='who'"])["task"]
    assert task.corpus == place and load_answerer(run, task).answerer.answer(["who built"])[0].text


def test_a_corpus_in_which_rows_would_be_shifted(tmp_path: Path):
    run, case = converted(tmp_path)
    blocks = case.metadata["texts"]["blocks"]
    repeated = corpus_of(run, tmp_path / "repeated", [*blocks[:5], blocks[0], " ", blocks[5], "a"], min_pieces=2)
    with pytest.raises(
        ValueError,
        match=r"repeated has 6 documents \(dropped there: 1 empty text, 1 exact duplicate block, 1 too short\), expected one for "
        r"each of the 7 rows of the embeddings; leave out corpus, and one of a record a document is made",
    ):
        index(run, corpus=repeated)
    long = [*blocks[:6], "the king of the old city built a mill"]
    cut = corpus_of(run, tmp_path / "cut", long, block_len=8)
    with pytest.raises(
        ValueError, match=r"cut has 8 documents \(1 more than texts, by cutting\), expected one for each"
    ):
        index(run, corpus=cut)
    swapped = corpus_of(run, tmp_path / "swapped", [blocks[1], blocks[0], *blocks[2:]])
    with pytest.raises(
        ValueError,
        match=r"swapped: document 0 is 'a king built the north mill', expected the record of its row, 'the old b",
    ):
        index(run, corpus=swapped)
    (tmp_path / "other.txt").write_text("\n".join(VOCAB))
    pieces = corpus_of(run, tmp_path / "pieces", blocks, tokenizer=str(tmp_path / "other.txt"))
    with pytest.raises(
        ValueError, match=r"pieces has the pieces of tokenizer \w{12}, the converted model reads those of"
    ):
        index(run, corpus=pieces)
    corpus_of(run, run.corpus, [blocks[1], blocks[0], *blocks[2:]])
    with pytest.raises(
        ValueError, match=r"document 0 is .*; remove \S+/run/corpus, and one of a record a document is made"
    ):
        index(run)
    assert not run.index.exists()


def test_what_has_no_index_to_give(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"holds no converted model; convert a RealmForOpenQA into it first \(--gin\.convert\.source="
    ):
        index(RunDir.of(tmp_path / "nothing"))
    folder, _ = golden_folder("RealmEmbedder", tmp_path / "theirs", VOCAB)
    run = RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(folder))
    with pytest.raises(
        ValueError, match=r"was converted from RealmEmbedder, which has no embeddings .*expected RealmFor"
    ):
        index(run)
    with pytest.raises(ValueError, match=r"direction='index' adds an index to --run_dir; leave out source='x'"):
        index(run, source="x")
    with pytest.raises(ValueError, match=r"direction='index' adds an index to --run_dir; leave out destination='x'"):
        index(run, destination="x")
    with pytest.raises(ValueError, match=r"corpus is for direction='index', got direction='out'; leave out corpus='x'"):
        convert(run_dir=str(run.path), direction="out", corpus="x")


def test_an_index_of_other_rows_is_left_alone(tmp_path: Path):
    run, case = converted(tmp_path)
    index(run)
    np.save(run.weights / "block_embeddings.npy", case.arrays["model/block_emb"] + 1)
    with pytest.raises(ValueError, match=r"index version 0 is already published in .* made from another snapshot"):
        index(run)
    np.save(run.weights / "block_embeddings.npy", np.full((7, 6), np.nan, np.float32))
    (run.index_version(0) / "manifest.json").unlink()
    with pytest.raises(ValueError, match="finite"):
        index(run)
    assert list_versions(run.index) == []


def test_the_embedder_of_the_documents(tmp_path: Path):
    """Of the same shape as the questions' and with its own weights; documents that are added are embedded with it."""
    theirs, _ = golden_folder("RealmForOpenQA", tmp_path / "model")
    model = load_hugging_face(theirs)
    shaken = jax.tree.map(lambda value: value * 1.5, model.params["retriever"])
    documents = type(model)({"retriever": shaken}, retriever=model.retriever, tokenizer=model.tokenizer)
    save_hugging_face(tmp_path / "embedder", "RealmEmbedder", documents)
    run, _ = converted(tmp_path, document_embedder=str(tmp_path / "embedder"))
    found = load_params(run)[1]["retriever"]
    jax.tree.map(np.testing.assert_array_equal, found["query_encoder"], model.params["retriever"]["shared_encoder"])
    jax.tree.map(np.testing.assert_array_equal, found["document_encoder"], shaken["shared_encoder"])
    index(run)
    task = bind("predict", [str(run.weights / "open_qa.gin")], ["predict.questions='who'"])["task"]
    assert not task.retriever.tied
    answerer = load_answerer(run, task).answerer
    ids = [np.arange(5, 9, dtype=np.int32)]
    embedded = answerer.embed_documents([np.zeros(0, np.int32)], ids)
    row = jnp.asarray([[2, 3, *ids[0].tolist(), 3]], jnp.int32)
    segments = jnp.asarray([[0, 0, 1, 1, 1, 1, 1]], jnp.int32)
    expected = Retriever(model.retriever).apply({"params": shaken}, row, segments, row > 0, method="embed_documents")
    np.testing.assert_allclose(embedded, expected, atol=1e-5)


def test_an_embedder_that_cannot_have_made_the_rows(tmp_path: Path):
    folder, _ = golden_folder("RealmForOpenQA", tmp_path / "model")
    run = str(tmp_path / "run")
    reader, _ = golden_folder("RealmReader", tmp_path / "reader")
    with pytest.raises(
        ValueError, match="document_embedder is a RealmReader without a retriever; name a RealmEmbedder"
    ):
        convert(run_dir=run, source=str(folder), document_embedder=str(reader))
    bert, _ = golden_folder("BertModel", tmp_path / "bert", VOCAB)
    with pytest.raises(
        ValueError, match=r"document_embedder has .*projection_size None \(the source 6\).*; name the Realm"
    ):
        convert(run_dir=run, source=str(folder), document_embedder=str(bert))
    model = load_hugging_face(folder)
    other = type(model)(model.params, retriever=model.retriever, tokenizer=type(model.tokenizer)(VOCAB))
    save_hugging_face(tmp_path / "pieces", "RealmEmbedder", other)
    with pytest.raises(ValueError, match=r"document_embedder has the vocabulary \w{12}, the source \w{12}; name the"):
        convert(run_dir=run, source=str(folder), document_embedder=str(tmp_path / "pieces"))
    with pytest.raises(
        ValueError,
        match=r"has .*projection_size 6 \(the source None\).*; name the BertModel that was trained beside the source",
    ):
        convert(run_dir=run, source=str(bert), document_embedder=str(folder))
    vocab = str(bert / "vocab.txt")
    with pytest.raises(
        ValueError, match=r"is for RealmForOpenQA, .*DPRQuestionEncoder, .*and the source is a RealmReader"
    ):
        convert(run_dir=run, source=str(reader), document_embedder=str(folder), tokenizer=vocab)
    assert not Path(run).exists()
