"""A language model out of a run: with its adapter it judges and answers as its merged parameters do, and every run file can say so."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import config
from realm_jax.answering.ensemble import RetrievalAugmentedLm
from realm_jax.answering.language_models import load_language_model
from realm_jax.answering.likelihoods import LikelihoodJudge
from realm_jax.answering.loading import answerer_of, load_answerer, load_augmented
from realm_jax.corpus.generator_pieces import open_pieces
from realm_jax.corpus.writer import make_corpus
from realm_jax.generation import GenerationConfig
from realm_jax.instructions.judge import LanguageModelJudge, continuations_of
from realm_jax.instructions.retrieved import open_retrieved
from realm_jax.jobs import JOBS
from realm_jax.models import LanguageModelConfig, LoraConfig, Retriever, merge_lora
from realm_jax.run_dir import RunDir
from realm_jax.tasks.language_modeling import LanguageModeling
from realm_jax.tasks.ra_dit import RaDit
from realm_jax.text.generator_tokenizer import as_generator_tokenizer
from realm_jax.training.checkpoint import load_params
from realm_jax.training.loop import train
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import MeshConfig
from realm_jax.training.snapshots import save_snapshot
from tests import tiny
from tests.answering import made_run
from tests.ra_dit_runs import LENGTH, run_retrieve

LORA = LoraConfig(rank=2, alpha=8.0, products=("query", "value", "wo"))
RUNS = config.find_gin_file("runs/ra_dit_tiny.gin").parent
RUN_FILES = sorted(path.name for kind in ("ra_dit", "language_model") for path in RUNS.glob(f"{kind}_*.gin"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A retriever with an index, a language model that was trained with an adapter, and its parameters merged by hand."""
    place = tmp_path_factory.mktemp("runs")
    corpus = make_corpus(place / "corpus", tiny.blocks(), tiny.tokenizer())
    tokenizer = as_generator_tokenizer(corpus.tokenizer)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": 0}
    language_model = tiny.language_model(vocab_size=tokenizer.vocab_size, num_layers=1, **ids)
    adapted = dataclasses.replace(language_model, lora=LORA)
    retriever = tiny.retriever()
    train(
        run_dir=str(place / "lm_lora"),
        task=LanguageModeling(str(corpus.directory), adapted, length=LENGTH),
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_steps=1),
        num_steps=2,
        batch_size=8,
        checkpoint_every_steps=2,
    )
    run, some = RunDir.of(place / "ict"), jnp.ones((1, 8), jnp.int32)
    of_retriever = jax.jit(Retriever(retriever).init)(jax.random.key(1), some, some * 0, some > 0)["params"]
    made_run.save(run, {"retriever": of_retriever}, corpus)
    save_snapshot(run, made_run.VERSION, of_retriever)
    tiny.build_index(run, made_run.VERSION, retriever, corpus)
    _, params = load_params(RunDir.of(place / "lm_lora"))
    return SimpleNamespace(
        place=place,
        corpus=corpus,
        language_model=language_model,
        adapted=adapted,
        retriever=retriever,
        tokenizer=tokenizer,
        questions=str(tiny.questions_file(place / "questions.jsonl")),
        judge=LanguageModelJudge(str(place / "lm_lora"), adapted, length=LENGTH),
        base=params["language_model"],
        merged=merge_lora(params["language_model"], params["adapter"], LORA),
    )


def task_of(runs, **changes):
    settings = {
        "language_model_run": str(runs.place / "lm_lora"),
        "num_documents": 3,
        "query_len": 12,
        "source_len": 48,
        "document_len": 24,
        "generation": GenerationConfig(num_beams=1, max_length=6),
    }
    return RaDit(str(runs.corpus.directory), runs.retriever, **{"language_model": runs.adapted, **settings, **changes})


def test_it_judges_as_its_merged_parameters_do(runs):
    run_retrieve(runs, name="judged")
    found = open_retrieved(str(runs.place / "ict" / "retrieved" / "judged"), runs.corpus)
    pieces = open_pieces(runs.corpus, runs.tokenizer)
    asked = continuations_of(found.examples, found.documents, pieces, runs.tokenizer, LENGTH)
    of_merged, of_base = (
        LikelihoodJudge(runs.language_model, params).judge(asked).log_probs.reshape(found.documents.shape)
        for params in (runs.merged, runs.base)
    )
    np.testing.assert_array_equal(found.preferences.log_likelihoods, of_merged)
    assert np.median(np.abs(of_merged - of_base)) > 0.5


@pytest.mark.slow
def test_it_answers_as_its_merged_parameters_do(runs):
    task, run = task_of(runs), RunDir.of(runs.place / "ict")
    loaded = load_answerer(run, task)
    plain = dataclasses.replace(task, language_model=runs.language_model, language_model_run="")
    params = load_params(run)[1] | {"language_model": runs.merged}
    by_hand = answerer_of(plain, params, loaded.answerer.documents, loaded.index)
    questions = ["when was ann born", "where lived bob"]
    for answer, expected in zip(loaded.answerer.answer(questions), by_hand.answer(questions), strict=True):
        assert (answer.text, answer.prob) == (expected.text, expected.prob) and answer.prob > 0
    model, _ = load_augmented(run, task)
    of_merged = RetrievalAugmentedLm(LikelihoodJudge(runs.language_model, runs.merged), runs.tokenizer)
    prompts, continuations = ["ann lived in", "bob was born in"], [" oslo", " rome"]
    asked = model.log_likelihoods(prompts, continuations)
    assert asked == of_merged.log_likelihoods(prompts, continuations)


@pytest.mark.parametrize(
    ("run", "lora", "message"),
    [
        ("lm_lora", None, r"an adapter, which LanguageModelConfig\.lora=None would leave out; .* by the macro LORA"),
        ("ict", LORA, r"expected a language_model and an adapter; .* set LanguageModelConfig\.lora as it was trained"),
    ],
)
def test_an_adapter_that_is_not_named_or_not_there_is_refused(runs, run, lora, message):
    asked = dataclasses.replace(runs.language_model, lora=lora)
    with pytest.raises(ValueError, match=message):
        load_language_model(str(runs.place / run), asked, runs.tokenizer.fingerprint)
    with pytest.raises(ValueError, match=message):
        run_retrieve(runs, judge=LanguageModelJudge(str(runs.place / run), asked, length=LENGTH))
    with pytest.raises(ValueError, match=message):
        task = task_of(runs, language_model=asked, language_model_run=str(runs.place / run))
        load_answerer(RunDir.of(runs.place / "ict"), task)


def test_an_adapter_of_another_rank_is_refused(runs):
    asked = dataclasses.replace(runs.language_model, lora=dataclasses.replace(LORA, rank=4))
    with pytest.raises(ValueError, match=r"of rank 2; .* LoraConfig\.rank is 4"):
        load_language_model(str(runs.place / "lm_lora"), asked, runs.tokenizer.fingerprint)


@pytest.mark.parametrize("tensor", [8, -1])
def test_a_tensor_axis_that_does_not_divide_the_heads_is_refused(runs, tensor):
    message = r"tensor axis: expected a divisor of the language model's num_heads=4, got 8 devices; .* fsdp"
    mesh = MeshConfig(data=1, tensor=tensor)
    with pytest.raises(ValueError, match=message):  # said at once where it is known, else before anything is read
        load_answerer(RunDir.of(runs.place / "ict"), task_of(runs, mesh=mesh))
    with pytest.raises(ValueError, match=message):
        load_language_model(
            str(runs.place / "lm_lora"), runs.adapted, runs.tokenizer.fingerprint, mesh=mesh.build_here()
        )
    with pytest.raises(ValueError, match=message):
        run_retrieve(runs, judge=dataclasses.replace(runs.judge, mesh=mesh), name=f"tensor {tensor}")


def language_models_in(value):
    """Of a job's arguments, however deep."""
    if isinstance(value, LanguageModelConfig):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, dict):
        value = list(value.values())
    return [found for one in value for found in language_models_in(one)] if isinstance(value, list) else []


@pytest.mark.parametrize("name", RUN_FILES)
def test_run_files_take_an_adapter(name):
    text, bindings = read_with_includes(f"runs/{name}"), ["LORA=@lora.LoraConfig()", "lora.LoraConfig.rank=3"]
    bindings += [
        f"{macro}=nowhere" for macro in sorted(set(re.findall(r"^(\w+) = %gin\.REQUIRED", text, re.MULTILINE)))
    ]
    asked = {"few_shot": "few_shot.questions=a", "predict": "predict.questions=a"}
    found = []
    for job, entry in JOBS.items():
        if re.search(rf"^{re.escape(entry.short_name)}[.:]", text, re.MULTILINE):
            found += language_models_in(
                config.bind(job, [f"runs/{name}"], [*bindings, *filter(None, [asked.get(job)])])
            )
    assert found and {model.lora for model in found} == {LoraConfig(rank=3)}


def read_with_includes(name):
    text = config.find_gin_file(name).read_text()
    return text + "".join(read_with_includes(other) for other in re.findall(r"^include '(.+)'", text, re.MULTILINE))
