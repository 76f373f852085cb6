"""The tagger from CoNLL files to a corpus: it learns a trivial rule, and its spans come through the corpus job."""

import dataclasses
import json
import pickle
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import config
from realm_jax.convert import load_hugging_face
from realm_jax.convert.job import convert
from realm_jax.corpus import build as build_module
from realm_jax.corpus.build import corpus
from realm_jax.corpus.ner_tagger import NerTagger, fingerprint
from realm_jax.corpus.salient_spans import BatchTagger, RuleTagger, SalientSpanTagger, TaggedSpan
from realm_jax.corpus.sentences import sentence_spans
from realm_jax.corpus.store import Corpus
from realm_jax.data.conll import read_conll
from realm_jax.evaluation.tagging import tagger as tagger_job
from realm_jax.models.token_tagger import TokenTagger
from realm_jax.run_dir import RunDir, read_json
from realm_jax.tasks.tagger import Tagger, adopt, tagger_loss
from realm_jax.text.word_piece import WordPieceTokenizer
from realm_jax.training.checkpoint import load_params
from realm_jax.training.loop import train
from realm_jax.training.metrics import read_metrics, series
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.snapshots import flatten_params
from tests import tiny
from tests.convert.made import VOCAB, golden_folder, sentence_transformer

FIRST = ["Ann", "Zoë", "Müller", "Rex", "Ivo", "Kim"]
PLACES = ["Köln", "York", "Oslo", "Łódź"]
OTHERS = ["was", "saw", "the", "old", "house", "in", "and", "so", "often"]


def write_conll(path, seed, num_sentences):
    """The rule: what has a capital is a name; two persons' words side by side are one. Sentences begin in lower case."""
    rng = random.Random(seed)
    lines = []
    for _ in range(num_sentences):
        rows = [(rng.choice(OTHERS), "O")]
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.5:
                rows += [(rng.choice(FIRST), "B-PER"), (rng.choice(FIRST), "I-PER")]
            else:
                rows.append((rng.choice(PLACES), "B-LOC"))
            rows += [(rng.choice(OTHERS), "O") for _ in range(rng.randint(1, 3))]
        lines += [f"{word}\t{tag}" for word, tag in [*rows, (".", "O")]] + [""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def settings(folder, **changes):
    encoder = tiny.encoder(
        vocab_size=160, num_segments=4, dropout_rate=0.0, attention_dropout_rate=0.0, convolution_width=3, norm="pre"
    )
    defaults = {"files": str(folder / "train.conll"), "encoder": encoder, "kinds": ("LOC", "PER")}
    return Tagger(**(defaults | {"vocab_size": 36, "lengths": (16, 24)} | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tagger trained for a few steps, measured and exported."""
    folder = tmp_path_factory.mktemp("tagger")
    write_conll(folder / "train.conll", 0, 300)
    write_conll(folder / "test.conll", 1, 100)
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=5)
    train(run_dir=str(folder / "run"), task=settings(folder), optimizer=optimizer, num_steps=120, batch_size=32)
    RuleTagger.fit(["the old house and so often in the house"]).save(folder / "words.json")
    results = tagger_job(
        run_dir=str(folder / "run"),
        task=settings(folder),
        test_files=str(folder / "test.conll"),
        word_counts=str(folder / "words.json"),
    )
    return folder, results


@pytest.fixture(scope="module")
def model(run):
    return NerTagger.load(run[0] / "run" / "tagger")


def test_the_loss_is_the_mean_over_words(run):
    folder, _ = run
    task = settings(folder).build(seed=0)
    assert task.retrieval is None and task.can_accumulate and set(task.data) == {"tokenizer", "corpus"}
    params = jax.jit(task.init)(jax.random.key(0))
    assert list(params) == ["tagger"] and set(params["tagger"]) == {"encoder", "output"}
    batch = task.batch(task.examples(0, 4, slice(None)))
    loss, metrics = jax.jit(lambda p, b: tagger_loss(p, b, None, config=settings(folder).model))(params, batch)
    ids, segments = map(jnp.asarray, batch.inputs)
    logits = TokenTagger(settings(folder).model).apply({"params": params["tagger"]}, ids, segments, ids != 0)
    logits = np.asarray(logits, np.float64)
    assert logits.shape == (*batch.labels.shape, 5)
    total = right = in_name = names = 0.0
    for row, place in zip(*np.nonzero(batch.labels >= 0), strict=True):
        scores, label = logits[row, place], batch.labels[row, place]
        total += np.log(np.exp(scores).sum()) - scores[label]
        right += scores.argmax() == label
        names += label > 0
        in_name += label > 0 and scores.argmax() == label
    assert float(loss.weight) == (batch.labels >= 0).sum() > names > 0
    assert float(loss.total) == pytest.approx(total, rel=1e-4)
    assert [float(x) for x in metrics["label_accuracy"]] == [right, float(loss.weight)]
    assert [float(x) for x in metrics["name_accuracy"]] == [in_name, names]


def test_it_learns_the_rule(run):
    folder, results = run
    figures = results["files"][str(folder / "test.conll")]
    assert figures["model"]["exact"]["f1"] > 0.9 and figures["model"]["names"] > 200
    assert set(figures["model"]["recall_by_kind"]) == {"LOC", "PER"}
    assert figures["rules"]["names"] == figures["model"]["names"] and figures["rules"]["exact"]["f1"] > 0.5
    assert read_json(folder / "run/evaluation/names.json") == results and results["step"] == 120
    _, losses = series(read_metrics(folder / "run"), "loss")
    assert losses[-5:].mean() < 0.3 * losses[:3].mean()
    assert 0.9 < series(read_metrics(folder / "run"), "name_accuracy")[1][-5:].mean() <= 1.0


def test_offsets_in_a_text_of_several_sentences(model):
    text = "so Ann Müller saw 😀 Köln.\nand the  Zoë Rex, in 1990, was in Łódź"
    sentences = sentence_spans(text)
    assert len(sentences) == 2
    tagged = model.batch_tagged([text], [sentences])[0]
    assert [(text[start:end], kind) for start, end, kind in tagged] == [
        ("Ann Müller", "PER"), ("Köln", "LOC"), ("Zoë Rex", "PER"), ("1990", "date"), ("Łódź", "LOC"),
    ]  # fmt: skip
    assert tagged[-1].end == len(text)
    assert model.spans(text, sentences) == [(start, end) for start, end, _ in tagged]
    assert isinstance(model, BatchTagger) and isinstance(model, SalientSpanTagger)
    assert not isinstance(RuleTagger(), BatchTagger)
    # what lies in no given sentence is not tagged
    assert model.spans(text, sentences[1:]) == model.spans(text, sentences)[2:]


def test_texts_are_tagged_alike_alone_and_together(model, run):
    test = read_conll(run[0] / "test.conll").sentences[:70]
    texts = [" ".join(sentence.words) for sentence in test] + ["", "\u200d", " ".join(test[0].words * 9)]
    sentences = [[(0, len(text))] if text.strip() else [] for text in texts]
    together = model.batch_spans(texts, sentences)
    assert together == [model.spans(text, spans) for text, spans in zip(texts, sentences, strict=True)]
    assert together[-3] == [] and sum(map(len, together)) > 150
    small = NerTagger.load(run[0] / "run" / "tagger", batch_size=8)
    assert small.batch_size == 8 and small.batch_spans(texts, sentences) == together
    assert model.batch_spans([], []) == []


def test_a_long_sentence_is_read_in_windows(model):
    words = ["so", "Ann", "Müller", "was", "in", "Köln", "and"] * 12
    text = " ".join(words)
    assert len(model.tokenizer.encode(text).ids) > 3 * model.lengths[-1]
    names = model.names([text])[0]
    found = [text[start:end] for start, end, _ in names]
    assert found == ["Ann Müller", "Köln"] * 12


def test_the_longer_of_a_name_and_a_date_stays(model, monkeypatch):
    text = "Open 1990 and May 1991 so"
    monkeypatch.setattr(
        model, "_names", lambda texts: [[TaggedSpan(0, 9, "ORG"), TaggedSpan(14, 17, "PER")]] * len(texts)
    )
    assert model.batch_tagged([text], [[(0, len(text))]])[0] == [TaggedSpan(0, 9, "ORG"), TaggedSpan(14, 22, "date")]


def articles(folder):
    rng = random.Random(5)
    texts = []
    for i in range(40):
        person, place = f"{rng.choice(FIRST)} {rng.choice(FIRST)}", rng.choice(PLACES)
        texts.append(f"the {person} was in {place} in {1900 + i}. so often {person} saw the house in {place}")
    path = folder / "articles.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)))
    return str(path), texts


def test_spans_through_the_corpus_job(run, model, tmp_path, monkeypatch):
    source, texts = articles(tmp_path)
    settings = {"source": source, "vocab_size": 48, "block_len": 80, "tagger": f"model:{run[0]}/run/tagger"}
    cores = []
    monkeypatch.setattr(build_module, "available_cores", lambda: cores.append(1) or 2)
    info = corpus(run_dir=str(tmp_path / "run"), **settings)
    made = Corpus.open(tmp_path / "run/corpus")
    right = 0
    for i in range(made.num_documents):
        block = made.block(i)
        found = [block.text[start:end] for start, end in block.salient_spans.tolist()]
        assert block.text == texts[i]
        assert [tuple(span) for span in block.salient_spans.tolist()] == model.spans(texts[i], sentence_spans(texts[i]))
        pieces = [made.tokenizer.decode(made.bodies[i][a:b]) for a, b in made.salient_spans[i].tolist()]
        assert [piece.casefold() for piece in pieces] == [name.casefold() for name in found]
        words = texts[i].replace(".", "").split()
        person, place = " ".join(words[1:3]), words[5]
        right += found == [person, place, words[7], person, place]
    assert made.num_documents == 40 and right >= 36
    assert info.settings["tagger"] == f"model:{fingerprint(run[0] / 'run/tagger')}"
    # the same tagger elsewhere is the same; another is another
    shutil.copytree(run[0] / "run/tagger", tmp_path / "copy")
    again = corpus(run_dir=str(tmp_path / "run"), **(settings | {"tagger": f"model:{tmp_path}/copy"}))
    assert again.fingerprint == info.fingerprint
    with pytest.raises(ValueError, match=r"other settings \(tagger='model:\w+' there, 'rules' asked for"):
        corpus(run_dir=str(tmp_path / "run"), **(settings | {"tagger": "rules"}))


def test_a_loaded_tagger_goes_to_a_worker(model):
    there = pickle.loads(pickle.dumps(model))
    text = "so Ann Müller saw Köln in 1990."
    assert there.spans(text, [(0, len(text))]) == model.spans(text, [(0, len(text))]) == [(3, 13), (18, 22), (26, 30)]
    assert there.batch_size == model.batch_size


def test_a_tagger_made_by_hand_cannot_go_to_a_worker(model):
    by_hand = NerTagger(model.config, model.params, model.tokenizer, kinds=("LOC", "PER"), lengths=(16, 24))
    with pytest.raises(ValueError, match="only a tagger that was loaded from its directory"):
        by_hand.__reduce__()


def test_wrong_tokenizers_and_parameters_are_refused(run, tmp_path):
    folder, _ = run
    other = settings(folder, vocab_size=34)
    with pytest.raises(
        ValueError, match=r"was trained on the pieces of tokenizer \w{12}, these settings give \w{12}; use"
    ):
        tagger_job(run_dir=str(folder / "run"), task=other)
    with pytest.raises(ValueError, match=r"parameter \['output'\]\['bias'\]: expected \(3,\), got \(5,\)"):
        tagger_job(run_dir=str(folder / "run"), task=settings(folder, kinds=()), output_dir=str(tmp_path / "x"))
    place = tmp_path / "tagger"
    shutil.copytree(folder / "run/tagger", place)
    shutil.rmtree(place / "tokenizer")
    tiny.tokenizer().save(place / "tokenizer")
    with pytest.raises(ValueError, match=r"was trained on the pieces of tokenizer .*put that one back"):
        NerTagger.load(place)
    (place / "params.safetensors").write_bytes((place / "params.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"params.safetensors does not have the checksum of tagger.json"):
        NerTagger.load(place)
    (place / "params.safetensors").unlink()
    with pytest.raises(ValueError, match="does not have the checksum"):
        NerTagger.load(place)
    (place / "tagger.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a record of the format 'realm_jax tagger 1'"):
        NerTagger.load(place)
    with pytest.raises(ValueError, match=r"no tagger at nowhere: expected a directory with tagger.json"):
        corpus(run_dir=str(tmp_path / "run"), source="world", tagger="model:nowhere")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_task_is_refused(run, tmp_path, monkeypatch):
    folder, _ = run
    monkeypatch.setattr("realm_jax.evaluation.tagging.load_params", lambda *_: (120, {"retriever": {}}))
    with pytest.raises(ValueError, match="has trained retriever and no tagger; name a run of the tagger task"):
        tagger_job(run_dir=str(folder / "run"), task=settings(folder))


def test_exported_twice_is_the_same_and_replaces(run, model, tmp_path):
    folder, _ = run
    model.save(tmp_path / "again")
    (tmp_path / "again" / "left_over").write_text("")
    model.save(tmp_path / "again")
    names = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert names == ["params.safetensors", "tagger.json", "tokenizer"]
    assert fingerprint(tmp_path / "again") == fingerprint(folder / "run/tagger")
    theirs, ours = flatten_params(NerTagger.load(tmp_path / "again").params), flatten_params(model.params)
    assert all(np.array_equal(theirs[name], ours[name]) for name in theirs.keys() | ours.keys())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": ()}, "names no CoNLL file"),
        ({"lengths": ()}, "ascending lengths of at least 4 pieces, got"),
        ({"lengths": (24, 16)}, r"ascending lengths of at least 4 pieces, got \(24, 16\)"),
        ({"lengths": (16, 128)}, "the longest is 128, the encoder has max_length=64"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


def test_an_encoder_of_too_few_pieces(run):
    folder, _ = run
    small = dataclasses.replace(settings(folder).encoder, vocab_size=35)
    with pytest.raises(ValueError, match="the tagger has vocab_size=35, but its tokenizer has 36 pieces"):
        settings(folder, encoder=small).build(seed=0)
    with pytest.raises(FileNotFoundError, match="no file at nowhere"):
        settings(folder, files=("nowhere",)).build(seed=0)


# one step with a rate of zero: what is trained is what it started from
STILL = OptimizerConfig(frozen_steps=(("tagger", 9),))


def started(place, task, *warm_start):
    train(
        run_dir=str(place),
        task=task,
        optimizer=STILL,
        num_steps=1,
        batch_size=8,
        warm_start=tuple(map(str, warm_start)),
    )
    return load_params(RunDir.of(place))[1]["tagger"]


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def converted(place, folder, learner):
    """A converted run, the tagger's settings for it, and the BERT that the learner of this path has."""
    convert(run_dir=str(place / "bert"), source=str(folder))
    write_conll(place / "train.conll", 0, 30)
    encoder = load_hugging_face(folder).retriever.encoder
    task = settings(place, encoder=encoder, tokenizer=str(place / "bert/weights/tokenizer"), lengths=(16, 20))
    given = load_params(RunDir.of(place / "bert"))[1]
    for name in learner:
        given = given[name]
    return task, given["encoder"]


@pytest.mark.slow
def test_it_starts_from_a_converted_bert_with_a_head_at_random(tmp_path):
    folder, _ = golden_folder("BertForPreTraining", tmp_path / "theirs", VOCAB)
    task, encoder = converted(tmp_path, folder, ("knowledge_encoder",))
    afresh, warm = started(tmp_path / "afresh", task), started(tmp_path / "warm", task, tmp_path / "bert")
    same(warm["encoder"], encoder)
    same(warm["output"], afresh["output"])
    assert warm["output"]["kernel"].shape == (8, 5) and warm["output"]["kernel"].std() > 0.01
    tables = [params["encoder"]["token_embedding"]["embedding"] for params in (warm, afresh)]
    assert not np.allclose(*tables)
    # a tagger gives its head too
    same(started(tmp_path / "both", task, tmp_path / "bert", tmp_path / "afresh"), afresh)


@pytest.mark.slow
def test_it_starts_from_a_sentence_encoder(tmp_path):
    task, encoder = converted(tmp_path, sentence_transformer(tmp_path / "theirs"), ("retriever", "shared_encoder"))
    same(started(tmp_path / "warm", task, tmp_path / "bert")["encoder"], encoder)
    others = dataclasses.replace(task, encoder=dataclasses.replace(task.encoder, num_segments=4))
    with pytest.raises(ValueError, match="the tagger has other shapes than this run's; use the model settings"):
        started(tmp_path / "shapes", others, tmp_path / "bert")
    WordPieceTokenizer([*VOCAB[:5], *VOCAB[:4:-1]]).save(tmp_path / "others")
    with pytest.raises(ValueError, match="was trained on the pieces of tokenizer"):
        started(tmp_path / "pieces", dataclasses.replace(task, tokenizer=str(tmp_path / "others")), tmp_path / "bert")


def test_which_encoder_of_several():
    reader = {"encoder": "span reader's", "span_hidden": 0}
    knowledge = {"encoder": "knowledge encoder's", "transform": 0}
    tied = {"shared_encoder": {"encoder": "shared", "projection": 0}}
    untied = {"query_encoder": {"encoder": "query's"}, "document_encoder": {"encoder": "document's"}}
    expected = [
        ({"span_reader": reader, "retriever": tied, "knowledge_encoder": knowledge}, "knowledge encoder's"),
        ({"span_reader": reader, "retriever": tied}, "shared"),
        ({"span_reader": reader, "retriever": untied}, "document's"),
        ({"span_reader": reader}, "span reader's"),
    ]
    for found, encoder in expected:
        assert adopt(found) == {"tagger": {"encoder": encoder}}
    tagger = {"tagger": {"encoder": "own", "output": "own"}}
    assert adopt(tagger | {"knowledge_encoder": knowledge})["tagger"] == tagger["tagger"]


def test_a_run_without_an_encoder_is_no_start(run, tmp_path, monkeypatch):
    folder, _ = run
    monkeypatch.setattr(
        "realm_jax.training.loop.load_params", lambda *_, **__: (3, {"something": {"kernel": np.zeros(2)}})
    )
    with pytest.raises(ValueError, match="holds something, this task needs tagger"):
        started(tmp_path / "new", settings(folder), folder / "run")


def test_a_run_file_takes_the_shape_of_a_converted_encoder(tmp_path):
    """What docs/tagger.md tells for MiniLM, and for a BERT of another size."""
    bert = tmp_path / "bert"
    convert(run_dir=str(bert), source=str(sentence_transformer(tmp_path / "theirs")))
    bound = config.bind(
        "train",
        ["runs/tagger_bert.gin", str(bert / "weights" / "retriever.gin")],
        [
            "FILES='eng.train'",
            f"TOKENIZER='{bert}/weights/tokenizer'",
            f"WARM_START=('{bert}',)",
            "tagger.Tagger.encoder=@converted_retriever/transformer.TransformerConfig()",
            "tagger.Tagger.lengths=(16, 20)",
        ],
    )
    expected = load_hugging_face(tmp_path / "theirs").retriever.encoder
    assert dataclasses.replace(bound["task"].encoder, dtype="float32", remat=False) == expected
    assert bound["warm_start"] == (str(bert),)
