"""What is planned is what a run does: the same shapes, the same FLOPs, the same jitted programs."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest

from realm_jax.data.inputs import SpecialIds
from realm_jax.data.own_document import Lesson
from realm_jax.plan.planned_run import MeshSizes, PlannedRun
from realm_jax.plan.programs import embed_program, mesh_over, programs_of, query_program, train_program, without_data
from realm_jax.retrieval.look_ahead import LookAhead
from realm_jax.tasks.denoising import Denoising
from realm_jax.tasks.masked_lm import MaskedLm
from realm_jax.training import loop
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import MeshConfig
from tests import tiny

BATCH = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("z"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return tiny.questions_file(tmp_path_factory.mktemp("q") / "questions.jsonl")


def settings_and_program(name, corpus, questions):
    settings = {
        "open_qa": tiny.open_qa(corpus.directory, questions, train_documents=True, num_hard_negatives=2),
        "ict": tiny.ict(corpus.directory),
        "realm": tiny.realm(corpus.directory),
        "realm without null document": tiny.realm(corpus.directory, null_document=False),
        "denoising": Denoising(str(corpus.directory), tiny.rag(corpus.directory, questions).generator, length=24),
        "rag": tiny.rag(corpus.directory, questions),
        "rag with documents trained": tiny.rag(corpus.directory, questions, marginal="token", train_documents=True),
        "rag without documents": tiny.rag(corpus.directory, questions, num_documents=0),
        "fid": tiny.rag(corpus.directory, questions, marginal="joint"),
        "masked_lm": MaskedLm(str(corpus.directory), tiny.encoder(), lessons=(Lesson(0, 32),), max_masks=4),
    }[name]
    return settings, settings.program(SpecialIds.of(corpus.tokenizer))


def real_batch(task, corpus):
    """A batch as the loop gets it."""
    examples = task.examples(0, BATCH, slice(None))
    if task.retrieval is None:
        return task.batch(examples)
    if task.retrieval.join_embedded is not None:
        found = task.retrieval.num_results
        ids = np.arange(BATCH * found).reshape(BATCH, found) % corpus.num_documents
        embeds = np.zeros((*ids.shape, task.retrieval.config.embed_dim), np.float32)
        return task.retrieval.join_embedded(examples, ids, embeds)
    return task.retrieval.join(examples, np.arange(BATCH * 4).reshape(BATCH, 4))


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), tree)


@pytest.mark.parametrize("name", [
    "ict", "realm", "realm without null document", "masked_lm", "open_qa", "denoising", "rag", "rag with documents trained",
    "rag without documents", "fid",
])  # fmt: skip
def test_a_program_is_its_task_without_the_corpus(name, corpus, questions):
    settings, program = settings_and_program(name, corpus, questions)
    task = settings.build(seed=1)
    assert shapes(program.batch_shapes(BATCH)) == shapes(real_batch(task, corpus))
    for field in ("name", "tokens_per_example", "flops_per_example", "can_accumulate", "frozen"):
        assert getattr(program, field) == getattr(task, field), field
    key = jax.random.key(0)
    assert shapes(jax.eval_shape(program.init, key)) == shapes(jax.eval_shape(task.init, key))
    assert program.loss.func is task.loss.func and program.loss.keywords == task.loss.keywords
    if task.retrieval is None:
        assert program.retriever is None
    else:
        assert program.retriever == task.retrieval.config and program.document_len == task.retrieval.document_len
        queries = task.retrieval.queries(task.examples(0, BATCH, slice(None)))
        assert queries.ids.shape == (BATCH, program.query_len)


@pytest.mark.parametrize("name", ["ict", "open_qa"])
def test_the_step_is_the_loop_s(name, corpus, questions):
    """The same text of the lowered program, whatever the loop makes of its step."""
    settings, program = settings_and_program(name, corpus, questions)
    task, mesh, optimizer = settings.build(seed=1), MeshConfig(data=2, fsdp=2, tensor=2).build(), OptimizerConfig()
    batch = program.batch_shapes(BATCH)
    planned = train_program(without_data(program), batch, mesh, optimizer, 100, 1, True)
    layout = loop._lay_out(task, optimizer, mesh, 100, jax.random.key(0))
    assert jax.tree.map(lambda value: value.sharding, planned.values[0]) == layout.shardings
    expected = loop._jit_step(task, layout, mesh, 1, True).lower(*planned.values)
    assert planned.lower().as_text() == expected.as_text()


def test_the_query_embedding_is_the_look_ahead_s(corpus, questions):
    settings, program = settings_and_program("realm", corpus, questions)
    task, mesh = settings.build(seed=1), MeshConfig(data=4, fsdp=2).build()
    planned = query_program(without_data(program), program.retriever, program.query_len, BATCH, mesh)
    look_ahead = LookAhead(task, mesh, BATCH)
    expected = look_ahead._embed.lower(*planned.values)
    look_ahead.close()
    assert planned.lower().as_text() == expected.as_text()


def test_the_embed_job_rounds_its_batch_and_keeps_parameters_everywhere(corpus, questions):
    _, program = settings_and_program("realm", corpus, questions)
    planned = embed_program(without_data(program), program.retriever, 24, 10, jax.devices()[:4])
    params, ids, segment_ids = planned.values
    assert ids.shape == segment_ids.shape == (12, 24)
    assert ids.sharding.shard_shape(ids.shape) == (3, 24)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    compiled = planned.lower().compile()
    assert compiled.output_shardings.shard_shape((12, 16)) == (3, 16)


def test_programs_of_a_run(corpus, questions):
    for name, expected in (("ict", ["train step"]), ("realm", ["train step", "query embedding", "embed job"])):
        settings, program = settings_and_program(name, corpus, questions)
        run = PlannedRun(task=settings, optimizer=OptimizerConfig(), num_steps=10, batch_size=BATCH)
        sizes = MeshSizes(8, 1, 1)
        assert list(programs_of(run, program, jax.devices(), sizes, jax.devices()[:4])) == expected
    assert mesh_over(jax.devices(), MeshSizes(2, 4, 1)).shape == {"data": 2, "fsdp": 4, "tensor": 1}


def test_a_planned_run_has_the_train_job_s_defaults():
    defaults = {name: parameter.default for name, parameter in inspect.signature(loop.train).parameters.items()}
    fields = {field.name: field.default for field in dataclasses.fields(PlannedRun)}
    for name in ("mesh", "refresh", "accumulation_steps", "dropout"):
        assert fields[name] == defaults[name], name
    assert set(fields) - set(defaults) == {"batches", "index"}
