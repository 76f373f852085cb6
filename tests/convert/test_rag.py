"""DPR, BART and RAG: folders out and in with both tokenizers, and the convert job on them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from realm_jax import config
from realm_jax.convert import Model, load_hugging_face, rag, save_hugging_face
from realm_jax.convert.generator_settings import generator_config, generator_settings, rag_generation, rag_task
from realm_jax.convert.job import convert
from realm_jax.generation import GenerationConfig
from realm_jax.models import EncoderDecoder
from realm_jax.run_dir import RunDir, write_text_atomically
from realm_jax.text.loading import load_generator_tokenizer, load_tokenizer
from realm_jax.text.word_piece import WordPieceTokenizer
from realm_jax.training.checkpoint import NO_VERSION, Checkpoints, ResumeUnit, check_tokenizer, load_params
from realm_jax.training.state import TrainState
from tests import tiny
from tests.convert.made import VOCAB, change, golden_folder
from tests.convert.made_rag import GENERATOR, made, random_params
from tests.text.made_bpe import byte_level_tokenizer


def same(one: Any, other: Any) -> None:
    assert jax.tree.structure(dict(one)) == jax.tree.structure(dict(other))
    jax.tree.map(np.testing.assert_array_equal, dict(one), dict(other))


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


RUN_FILE = """from __gin__ import dynamic_registration
from realm_jax.models import encoder_decoder
from realm_jax.models import retriever
from realm_jax.models import transformer
from realm_jax.tasks import rag
from realm_jax.training import loop
from realm_jax.training import optimizer

loop.train:
  task = @rag.Rag()
  optimizer = @optimizer.OptimizerConfig()
  num_steps = 1
  batch_size = 8
rag.Rag:
  corpus = '{corpus}'
  questions = 'nowhere'
  retriever = @retriever.RetrieverConfig()
  generator = @encoder_decoder.EncoderDecoderConfig()
  generator_tokenizer = '{tokenizer}'
  num_documents = 4
  source_len = 48
  target_len = 20
retriever.RetrieverConfig:
  encoder = @transformer.TransformerConfig()
  projection_size = None
  tied = False
"""


def say(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(settings_of(folder) | changes))
    return folder


@pytest.mark.parametrize("name", rag.RAG_CLASSES)
def test_a_rag_goes_out_and_comes_in(name: str, tmp_path: Path):
    model = made()
    assert save_hugging_face(tmp_path / "rag", name, model) == []
    files = {str(path.relative_to(tmp_path / "rag")) for path in (tmp_path / "rag").rglob("*") if path.is_file()}
    assert files == {
        "config.json", "model.safetensors", "question_encoder_tokenizer/vocab.txt",
        "question_encoder_tokenizer/tokenizer_config.json", "generator_tokenizer/vocab.json",
        "generator_tokenizer/merges.txt", "generator_tokenizer/tokenizer_config.json",
    }  # fmt: skip
    said = settings_of(tmp_path / "rag")
    assert said["model_type"] == "rag" and said["architectures"] == [name]
    assert (said["question_encoder"]["model_type"], said["generator"]["model_type"]) == ("dpr", "bart")
    assert said["generator"]["forced_bos_token_id"] == 0 and said["generator"]["max_position_embeddings"] == 64
    assert (said["title_sep"], said["doc_sep"], said["retrieval_vector_size"]) == (" / ", " // ", 32)
    names = safetensors.numpy.load_file(tmp_path / "rag" / "model.safetensors").keys()
    prefix = "" if name == "RagModel" else "rag."
    assert all(
        one.startswith((f"{prefix}question_encoder.question_encoder.bert_model.", f"{prefix}generator."))
        for one in names
    )
    again = load_hugging_face(tmp_path / "rag")
    assert (again.retriever, again.generator) == (model.retriever, model.generator)
    assert again.architecture == name and again.knowledge_encoder is None
    same(again.params, model.params)
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert again.generator_tokenizer.fingerprint == model.generator_tokenizer.fingerprint
    assert again.generator_tokenizer.clean_up and not again.generator_tokenizer.add_prefix_space


def test_settings_of_a_rag_are_kept(tmp_path: Path):
    kept = {"n_docs": 7, "do_deduplication": False, "max_combined_length": 128, "label_smoothing": 0.1, "num_beams": 4}
    save_hugging_face(tmp_path / "theirs", "RagTokenForGeneration", made())
    say(tmp_path / "theirs", **kept)
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps({"num_beams": 4, "length_penalty": 0.5}))
    model = load_hugging_face(tmp_path / "theirs")
    save_hugging_face(tmp_path / "ours", "RagTokenForGeneration", model)
    assert settings_of(tmp_path / "ours") == settings_of(tmp_path / "theirs")
    assert json.loads((tmp_path / "ours" / "generation_config.json").read_text()) == {
        "num_beams": 4,
        "length_penalty": 0.5,
    }
    # its parts are of other classes, whose settings these are not
    save_hugging_face(tmp_path / "bart", "BartForConditionalGeneration", model)
    assert not set(kept) & set(settings_of(tmp_path / "bart"))
    assert not (tmp_path / "bart" / "generation_config.json").exists()
    same(load_hugging_face(tmp_path / "bart").params, {"generator": model.params["generator"]})


def test_either_half_of_two_encoders_goes_out(tmp_path: Path):
    model = made(tied=False)
    for name, side in (("DPRQuestionEncoder", "query"), ("DPRContextEncoder", "document"), ("RagModel", "query")):
        save_hugging_face(tmp_path / name, name, model)
        one = load_hugging_face(tmp_path / name)
        assert one.retriever.tied
        same(one.params["retriever"]["shared_encoder"], model.params["retriever"][f"{side}_encoder"])
    said = json.loads((tmp_path / "DPRContextEncoder" / "tokenizer_config.json").read_text())
    assert said["tokenizer_class"] == "DPRContextEncoderTokenizer" and said["model_max_length"] == 64


def test_dprs_older_files_hold_a_pooler(tmp_path: Path):
    folder, _ = golden_folder("DPRQuestionEncoder", tmp_path / "theirs")
    name = "question_encoder__bert_model__pooler__dense__"
    change(folder, **{f"{name}weight": np.ones((8, 8), np.float32), f"{name}bias": np.zeros(8, np.float32)})
    model = load_hugging_face(folder)
    assert len(model.unused) == 2
    save_hugging_face(tmp_path / "ours", "DPRQuestionEncoder", model)
    theirs, ours = (safetensors.numpy.load_file(place / "model.safetensors") for place in (folder, tmp_path / "ours"))
    assert set(ours) == set(theirs)


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.encoder.embed_tokens.weight"])
def test_the_table_of_tokens_is_read_under_any_of_its_names(kept: str, tmp_path: Path):
    folder, case = golden_folder("BartForConditionalGeneration", tmp_path / "theirs")
    whole = load_hugging_face(folder)
    names = {
        "model.shared.weight",
        "lm_head.weight",
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
    }
    change(folder, **dict.fromkeys(names - {kept}))
    same(load_hugging_face(folder).params, whole.params)
    change(folder, **{"model__shared__weight": case.arrays["model/model.shared.weight"] + 1})
    with pytest.raises(ValueError, match=rf"1 not tied: {kept} is not model.shared.weight"):
        load_hugging_face(folder)


def test_barts_body_with_and_without_its_class(tmp_path: Path):
    folder, _ = golden_folder("BartModel", tmp_path / "body")
    body = load_hugging_face(folder)
    assert not body.params["generator"]["output_bias"].any()
    same(load_hugging_face(folder, "BartForConditionalGeneration").params, body.params)
    save_hugging_face(tmp_path / "whole", "BartForConditionalGeneration", body)
    change(tmp_path / "whole", final_logits_bias=None)  # older files have none
    same(load_hugging_face(tmp_path / "whole").params, body.params)
    with pytest.raises(
        ValueError, match="has an output bias, and BartModel none; write a BartForConditionalGeneration"
    ):
        save_hugging_face(tmp_path / "refused", "BartModel", made(retriever=False))


@pytest.mark.parametrize(
    ("said", "generation", "forced"),
    [
        ({}, {}, (None, 2)),
        ({"forced_bos_token_id": 0, "forced_eos_token_id": None}, {}, (0, None)),
        ({"force_bos_token_to_be_generated": True}, {}, (0, 2)),
        ({"forced_bos_token_id": 0}, {"num_beams": 4}, (None, None)),
        ({}, {"forced_bos_token_id": 0, "forced_eos_token_id": 2}, (0, 2)),
    ],
)
def test_forced_tokens(said: dict, generation: dict, forced: tuple):
    settings = generator_settings(GENERATOR)
    del settings["forced_bos_token_id"], settings["forced_eos_token_id"]
    found = generator_config({**settings, **said}, generation)
    assert (found.forced_bos_id, found.forced_eos_id) == forced


def test_rag_in_and_out_again_by_the_job(tmp_path: Path):
    """With the encoder of documents that the index was made with."""
    save_hugging_face(tmp_path / "theirs", "RagSequenceForGeneration", made())
    save_hugging_face(tmp_path / "documents", "DPRContextEncoder", made(generator=False, seed=5))
    run = RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(tmp_path / "theirs"), document_embedder=str(tmp_path / "documents"))
    _, params = load_params(run)
    assert set(params["retriever"]) == {"query_encoder", "document_encoder"} and set(params) == {
        "retriever",
        "generator",
    }
    documents = load_hugging_face(tmp_path / "documents")
    same(params["retriever"]["document_encoder"], documents.params["retriever"]["shared_encoder"])
    pieces = load_tokenizer(run.weights / "tokenizer"), load_generator_tokenizer(run.weights / "generator_tokenizer")
    assert [one.fingerprint for one in pieces] == [made().tokenizer.fingerprint, byte_level_tokenizer().fingerprint]
    check_tokenizer(run, pieces[0].fingerprint)
    check_tokenizer(run, pieces[1].fingerprint, kind="generator_tokenizer")
    with pytest.raises(ValueError, match="was trained on the pieces of tokenizer"):
        check_tokenizer(run, pieces[0].fingerprint, kind="generator_tokenizer")
    text = (run.weights / "rag.gin").read_text()
    # 300 are cut to all it can read
    assert "rag.Rag:\n  marginal = 'sequence'\n  num_documents = 5\n  source_len = 64\n" in text
    assert "settings.GenerationConfig:\n  num_beams = 1\n" in text  # as transformers' generate, where nothing is said
    convert(run_dir=str(run.path), direction="out")
    theirs, ours = (
        safetensors.numpy.load_file(place / "model.safetensors")
        for place in (tmp_path / "theirs", run.path / "weights-out" / "RagSequenceForGeneration")
    )
    assert {name: value.tobytes() for name, value in theirs.items()} == {
        name: value.tobytes() for name, value in ours.items()
    }
    convert(run_dir=str(run.path), direction="out", architecture="DPRContextEncoder")
    same(load_hugging_face(run.path / "weights-out" / "DPRContextEncoder").params, documents.params)


def test_bart_alone_in_and_out_again_by_the_job(tmp_path: Path):
    save_hugging_face(tmp_path / "theirs", "BartForConditionalGeneration", made(retriever=False))
    run = RunDir.of(tmp_path / "run")
    convert(run_dir=str(run.path), source=str(tmp_path / "theirs"))
    assert not (run.weights / "tokenizer").exists() and not run.snapshots.exists()
    check_tokenizer(run, "of any corpus")  # it reads no pieces of the retriever's
    (run.path / "run.gin").write_text(RUN_FILE.format(corpus="nowhere", tokenizer=""))
    bound = config.bind("train", [str(run.path / "run.gin"), str(run.weights / "generator.gin")])
    assert bound["task"].generator == GENERATOR
    convert(run_dir=str(run.path), direction="out")
    again = load_hugging_face(run.path / "weights-out" / "BartForConditionalGeneration")
    same(again.params, made(retriever=False).params)
    assert again.generator_tokenizer.fingerprint == byte_level_tokenizer().fingerprint


def test_a_trained_rag_goes_out(tmp_path: Path):
    corpus = tiny.corpus(tmp_path / "corpus")
    byte_level_tokenizer().save(tmp_path / "bpe")
    run, model = RunDir.of(tmp_path / "run"), made(tied=False)
    encoder = model.retriever.encoder
    run.path.mkdir()
    sizes = (("transformer.TransformerConfig", encoder), ("encoder_decoder.EncoderDecoderConfig", GENERATOR))
    settings = [
        f"{name}.{field.name} = {getattr(value, field.name)!r}\n"
        for name, value in sizes
        for field in dataclasses.fields(value)
    ]
    text = RUN_FILE.format(corpus=corpus.directory, tokenizer=tmp_path / "bpe") + "".join(settings)
    write_text_atomically(run.config_file("train"), text)
    zero = jnp.zeros((), jnp.int32)
    checkpoints = Checkpoints(run, identity={"tokenizer": corpus.tokenizer.fingerprint})
    checkpoints.save(3, ResumeUnit(TrainState(zero, dict(model.params), {}, zero), NO_VERSION, None))
    checkpoints.close()
    convert(
        run_dir=str(run.path), direction="out", architecture="RagTokenForGeneration", destination=str(tmp_path / "out")
    )
    again = load_hugging_face(tmp_path / "out")
    same(again.params["generator"], model.params["generator"])
    same(again.params["retriever"]["shared_encoder"], model.params["retriever"]["query_encoder"])
    assert again.tokenizer.fingerprint == corpus.tokenizer.fingerprint
    assert again.generator_tokenizer.fingerprint == byte_level_tokenizer().fingerprint
    said = settings_of(tmp_path / "out")
    assert (said["n_docs"], said["max_combined_length"]) == (4, 48)


def test_how_a_rag_generates_is_what_transformers_would_take_from_its_files():
    of_generator = {"num_beams": 4, "max_length": 30, "early_stopping": True, "top_k": 50}
    found = rag_generation("RagTokenForGeneration", {"generator": of_generator, "max_length": 25}, {}, GENERATOR)
    assert found == GenerationConfig(num_beams=4, max_length=25, min_length=0, early_stopping=True)
    # RAG-Sequence's class gives its generator the number of beams and leaves the rest to it
    found = rag_generation("RagSequenceForGeneration", {"generator": of_generator, "num_beams": 2, "max_length": 25}, {"num_beams": 7}, GENERATOR)  # fmt: skip
    assert found == GenerationConfig(num_beams=2, max_length=30, min_length=0, early_stopping=True)
    # generation_config.json speaks alone; its tokens that may not follow each other are the one rule of that kind
    said = {"num_beams": 2, "no_repeat_ngram_size": 3, "bad_words_ids": [[GENERATOR.bos_id] * 2], "length_penalty": 2}
    found = rag_generation("RagTokenForGeneration", {"generator": of_generator}, said, GENERATOR)
    assert found == GenerationConfig(
        num_beams=2, max_length=20, min_length=0, no_repeat_ngram_size=3, bos_after_bos=False, length_penalty=2.0
    )
    found = rag_generation(
        "RagTokenForGeneration", {"generator": {}}, {"do_sample": True, "max_length": 10**6}, GENERATOR
    )
    assert found.sample and found.top_k == 50 and found.max_length == GENERATOR.max_length
    for wrong, message in (
        ({"num_beams": "4"}, "num_beams='4'"),
        ({"max_length": None}, "max_length=None"),
        ({"do_sample": "yes"}, "sample='yes'"),
        ({"do_sample": True, "num_beams": 2}, "beams are not drawn here"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2; only 1.0 is computed here"),
        ({"bad_words_ids": [[3]]}, r"bad_words_ids=\[\[3\]\]; only two bos in a row"),
    ):
        with pytest.raises(ValueError, match=message):
            rag_generation("RagTokenForGeneration", {"generator": {}}, wrong, GENERATOR)


def test_what_is_not_computed_is_refused(tmp_path: Path):
    model = made()
    save_hugging_face(tmp_path / "rag", "RagModel", model)
    for changes, message in (
        ({"title_sep": " | "}, r"title_sep=' \| '; only ' / ' is computed here"),
        ({"generator": {"model_type": "t5"}}, r"a generator of the kind 't5'; only 'bart'"),
        ({"question_encoder": None}, r"a question_encoder of the kind None; only 'dpr'"),
    ):
        before = settings_of(tmp_path / "rag")
        with pytest.raises(ValueError, match=message):
            load_hugging_face(say(tmp_path / "rag", **changes))
        (tmp_path / "rag" / "config.json").write_text(json.dumps(before))
    with pytest.raises(ValueError, match=r"n_docs='5', expected a whole number above 0"):
        rag_task("RagModel", {"n_docs": "5"}, GENERATOR)
    save_hugging_face(tmp_path / "dpr", "DPRContextEncoder", model)
    with pytest.raises(ValueError, match=r"projection_dim=128; only 0 is computed here"):
        load_hugging_face(say(tmp_path / "dpr", projection_dim=128))
    save_hugging_face(tmp_path / "bart", "BartForConditionalGeneration", model)
    for changes, message in (
        ({"normalize_before": True}, r"normalize_before=True; only False is computed here"),
        ({"d_model": "32"}, r"no whole number above 0 for d_model; expected those of a BART"),
        ({"encoder_layers": 5000}, r"encoder_layers=5000, expected at most 1000"),
        ({"activation_function": "swish"}, r"activation_function='swish', valid: gelu"),
        ({"eos_token_id": [2, 3]}, r"eos_token_id=\[2, 3\], expected one token id"),
        ({"forced_bos_token_id": "0"}, r"forced_bos_token_id='0', expected one token id"),
        ({"d_model": 16}, r"misshapen: .*expected \[\d+, 16\]"),
    ):
        before = settings_of(tmp_path / "bart")
        with pytest.raises(ValueError, match=message):
            load_hugging_face(say(tmp_path / "bart", **changes))
        (tmp_path / "bart" / "config.json").write_text(json.dumps(before))
    special = tmp_path / "bart" / "special_tokens_map.json"
    special.write_text(json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "<|endoftext|>"}))
    with pytest.raises(ValueError, match=r'special_tokens_map.json has eos_token="<|endoftext|>", expected "</s>"'):
        load_hugging_face(tmp_path / "bart")


def test_what_a_class_does_not_hold_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="RagModel holds a generator, which this model has not"):
        save_hugging_face(tmp_path / "refused", "RagModel", made(generator=False))
    with pytest.raises(ValueError, match="RagModel holds a retriever, which this model has not"):
        save_hugging_face(tmp_path / "refused", "RagModel", made(retriever=False))
    projecting = dataclasses.replace(made(), retriever=tiny.retriever())
    with pytest.raises(
        ValueError, match=r"has projection_size=16, score_scale=0.25; DPR's encoders have projection_size=None"
    ):
        save_hugging_face(tmp_path / "refused", "DPRQuestionEncoder", projecting)
    with pytest.raises(
        ValueError, match=r"generator has position_offset=0, and BART position_offset=2, layer_norm_eps=1e-05"
    ):
        generator_settings(dataclasses.replace(GENERATOR, position_offset=0))


def test_the_job_refuses_other_tokenizers(tmp_path: Path):
    model = made(retriever=False)
    save_hugging_face(tmp_path / "bare", "BartModel", dataclasses.replace(zero_bias(model), generator_tokenizer=None))
    run = {"run_dir": str(tmp_path / "run"), "source": str(tmp_path / "bare")}
    with pytest.raises(
        ValueError, match=r"has no vocab.json with merges.txt, .*--gin.convert.generator_tokenizer=FOLDER"
    ):
        convert(**run)
    WordPieceTokenizer(VOCAB).save(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"has pad_id=0, config.json says 1; take the one that was saved with"):
        convert(**run, generator_tokenizer=str(tmp_path / "bert"))
    with pytest.raises(ValueError, match=r"is a retriever's, and .* is a generator; name generator_tokenizer"):
        convert(**run, tokenizer=str(tmp_path / "bert"))
    byte_level_tokenizer().save(tmp_path / "bpe")
    save_hugging_face(tmp_path / "dpr", "DPRQuestionEncoder", made(generator=False))
    with pytest.raises(ValueError, match=r"generator_tokenizer=.* is given, and .* holds no generator"):
        convert(run_dir=run["run_dir"], source=str(tmp_path / "dpr"), generator_tokenizer=str(tmp_path / "bpe"))
    small = dataclasses.replace(GENERATOR, vocab_size=100)
    few = Model({"generator": random_params(EncoderDecoder(small), 0)}, generator=small)
    save_hugging_face(tmp_path / "few", "BartModel", zero_bias(few))
    with pytest.raises(ValueError, match=r"tokenizer has 267 pieces, the generator 100 rows; take the one"):
        convert(run_dir=run["run_dir"], source=str(tmp_path / "few"), generator_tokenizer=str(tmp_path / "bpe"))
    assert not (tmp_path / "run").exists()
    convert(**run, generator_tokenizer=str(tmp_path / "bpe"))


def zero_bias(model: Model) -> Model:
    generator = {**model.params["generator"], "output_bias": np.zeros(model.generator.vocab_size, np.float32)}
    return dataclasses.replace(model, params={**model.params, "generator": generator})
