"""Every jitted program lowers for TPU and GPU on a machine that has neither."""

import ast
import functools
import types

import jax
import jax.numpy as jnp
import pytest
from jax import export
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.answering.answerer import read_spans
from realm_jax.corpus.ner_tagger import predict_labels
from realm_jax.data.inputs import Inputs
from realm_jax.data.masked_lm import MaskedBatch
from realm_jax.evaluation.masked_spans import predict_spans
from realm_jax.generation import GenerationConfig, generator
from realm_jax.generation.likelihood import continuation_likelihoods
from realm_jax.models import EncoderDecoder, LanguageModel, RetrieverConfig, SpanReader, SpanReaderConfig, span_bounds
from realm_jax.models.token_tagger import TokenTaggerConfig
from realm_jax.retrieval import device_rows, exact
from realm_jax.retrieval.embedder import embed_inputs
from realm_jax.retrieval.look_ahead import LookAhead
from realm_jax.retrieval.resident import Pieces, ResidentDocuments
from realm_jax.run_dir import RunDir
from realm_jax.tasks.realm import Realm, RealmModel, embed_queries, init_params
from realm_jax.tasks.task import InStepRetrieval, Retrieval
from realm_jax.training.checksums import checksum
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import BATCH, MeshConfig, state_shardings
from realm_jax.training.snapshots import SnapshotWriter
from realm_jax.training.state import InStepBatch, in_step_train_step, init_state
from tests import abstract_steps, tiny

ENCODER = tiny.encoder(dtype="bfloat16", remat=True)
RETRIEVER = RetrieverConfig(encoder=ENCODER, projection_size=16)
PLATFORMS = ["tpu", "cuda"]


def lowered(program, *values, **kwargs):
    exported = export.export(program, platforms=PLATFORMS)(*values, **kwargs)
    assert list(exported.platforms) == PLATFORMS and exported.mlir_module_serialized
    return exported


def params():
    model = RealmModel(RETRIEVER, ENCODER, True, abstract_steps.SPECIAL)
    return jax.eval_shape(functools.partial(init_params, model=model), jax.random.key(0)), model


def batch(null_document=True):
    return abstract_steps.realm_batch(8, 4, 16, 24, 32, masks=3, null_document=null_document)


def lowered_step(task, values, mesh=None, accumulation_steps=1):
    step, values = abstract_steps.jitted_step(task, mesh or MeshConfig().build(), values, accumulation_steps)
    exported = lowered(step, *values)
    assert exported.nr_devices == 8
    return exported, values


@pytest.mark.parametrize(
    ("marginal", "null_document", "accumulation_steps"),
    [("per_token", True, 1), ("per_token", True, 2), ("per_span", False, 1)],
)
def test_realm_step(marginal, null_document, accumulation_steps):
    task = abstract_steps.realm_task(RETRIEVER, ENCODER, marginal, null_document)
    values = batch(null_document)
    exported, _ = lowered_step(task, values, MeshConfig(data=2, fsdp=2, tensor=2).build(), accumulation_steps)
    assert list(exported.platforms) == PLATFORMS


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_realm_step_that_searches(dtype):
    """Query embedding, search, gather, join and update in one program over all devices of a mesh."""
    mesh, special = MeshConfig(data=2, fsdp=2, tensor=2).build(), abstract_steps.SPECIAL
    settings = Realm("nowhere", RETRIEVER, ENCODER, num_candidates=4, query_len=16, document_len=24, joint_len=32)
    by_host = settings.program(special)
    in_step = InStepRetrieval(lambda examples: examples, functools.partial(settings.join_in_step, special=special), 21)
    retrieval = Retrieval(
        **dict.fromkeys(Retrieval.__annotations__)
        | {
            "corpus": types.SimpleNamespace(num_documents=61), "num_results": 6, "in_step": in_step,
            "queries": lambda examples: examples.query,
            "embed_queries": functools.partial(embed_queries, config=RETRIEVER),
        }
    )  # fmt: skip
    task = by_host.task(lambda *_: None, lambda _: None, retrieval=retrieval)
    config = OptimizerConfig()
    optimizer = config.build(10, ("retriever", "knowledge_encoder"))
    step = functools.partial(
        in_step_train_step, task=task, mesh=mesh, optimizer=optimizer, accumulation_steps=1, dropout=True,
        schedules={name: config.schedule(10, name) for name in ("retriever", "knowledge_encoder")},
    )  # fmt: skip

    def placed(spec, *shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    everywhere = P(mesh.axis_names)
    example = by_host.batch_shapes(8)
    masks = example.mask_positions.shape
    examples = MaskedBatch(
        Inputs(placed(BATCH, 8, 16), placed(BATCH, 8, 16)), placed(BATCH, *masks), placed(BATCH, *masks),
        placed(BATCH, *masks, dtype=jnp.float32), placed(BATCH, 8), placed(BATCH, 8), [],
    )  # fmt: skip
    documents = ResidentDocuments(
        *(Pieces(placed(everywhere, 64, width, dtype=jnp.uint16), placed(everywhere, 64)) for width in (5, 30))
    )
    rows = device_rows.DeviceRows(
        placed(everywhere, 16, 4, 16, dtype=device_rows.STORED[dtype]),
        placed(everywhere, 16, 4, dtype=jnp.float32) if dtype == "int8" else None,
    )
    state = jax.eval_shape(functools.partial(init_state, task=task, optimizer=optimizer), jax.random.key(0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    exported = lowered(jax.jit(step), state, InStepBatch(examples, documents, rows), key)
    assert exported.nr_devices == 8
    assert [leaf.shape for leaf in exported.out_avals[: len(jax.tree.leaves(state))]] == [
        leaf.shape for leaf in jax.tree.leaves(state)
    ]


def test_ict_step_and_first_state():
    task, mesh = abstract_steps.ict_task(RETRIEVER), MeshConfig().build()
    step, (state, _, rng) = lowered_step(task, abstract_steps.ict_batch(8, 12, 24), mesh)
    # and what makes the first state: what a step returns, but for the metrics
    optimizer = OptimizerConfig().build(200_000, ("retriever",))
    init = functools.partial(init_state, task=task, optimizer=optimizer)
    first = lowered(jax.jit(init, out_shardings=state_shardings(mesh, state)), rng)
    assert first.out_avals == step.out_avals[: len(first.out_avals)]


def test_masked_lm_step():
    batch = abstract_steps.masked_lm_batch(8, joint_len=32, masks=3)
    exported, _ = lowered_step(abstract_steps.masked_lm_task(ENCODER), batch)
    assert list(exported.platforms) == PLATFORMS


def test_tagger_step_and_labels():
    config = TokenTaggerConfig(ENCODER, num_labels=5)
    task = abstract_steps.tagger_task(config)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    exported, (state, _, _) = lowered_step(task, abstract_steps.tagger_batch(8, 24), mesh, accumulation_steps=2)
    assert list(exported.platforms) == PLATFORMS
    whole = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params["tagger"])
    out = lowered(predict_labels, whole, *abstract_steps.inputs(8, 24), config=config).out_avals[0]
    assert out == jax.core.ShapedArray((8, 24), jnp.int32)


def placed_retriever(mesh):
    """Its parameters as abstract values, laid out over a mesh."""
    whole = params()[0]["retriever"]
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        whole,
        state_shardings(mesh, whole),
    )


def test_copy_for_a_snapshot(tmp_path):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    placed = placed_retriever(mesh)
    writer = SnapshotWriter(RunDir(tmp_path), mesh)
    exported = lowered(writer._copy, placed)
    writer.close()
    assert exported.nr_devices == 8 and [leaf.shape for leaf in exported.out_avals] == [
        leaf.shape for leaf in jax.tree.leaves(placed)
    ]


def test_the_checksum_of_a_checkpoint():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    placed = placed_retriever(mesh)
    exported = lowered(checksum, (placed, abstract_steps.ints(), None))
    assert exported.nr_devices == 8 and [leaf.dtype for leaf in exported.out_avals] == [jnp.uint32]


def test_queries_of_the_next_step():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    retrieval = Retrieval(
        **dict.fromkeys(Retrieval.__annotations__)
        | {"embed_queries": functools.partial(embed_queries, config=RETRIEVER)}
    )
    look_ahead = LookAhead(abstract_steps.ict_task(RETRIEVER)._replace(retrieval=retrieval), mesh, 8)
    rows = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, BATCH)),
        abstract_steps.inputs(8, 16),
    )
    exported = lowered(look_ahead._embed, params()[0], rows)
    look_ahead.close()
    assert exported.nr_devices == 8 and exported.out_avals[0].shape == (8, 16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("recall_target", [1.0, 0.9])
@pytest.mark.parametrize("sharded", [False, True])
def test_exact_search(sharded, recall_target, dtype):
    mesh = MeshConfig().build() if sharded else None
    scales = jax.ShapeDtypeStruct((8, 4), jnp.float32) if dtype == "int8" else None
    rows = device_rows.DeviceRows(jax.ShapeDtypeStruct((8, 4, 16), device_rows.STORED[dtype]), scales)
    queries = jax.ShapeDtypeStruct((2, 16), jnp.float32)
    exported = lowered(
        exact._search, queries, rows, abstract_steps.ints(), num_results=3, mesh=mesh, recall_target=recall_target
    )
    assert [leaf.shape for leaf in exported.out_avals] == [(2, 3), (2, 3)] and exported.nr_devices == (
        8 if sharded else 1
    )
    rounding, content = jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((4, 16), jnp.float32)
    written = lowered(device_rows._write_chunk, rows, rounding, content, abstract_steps.ints())
    assert written.out_avals == tuple(
        jax.core.ShapedArray(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves((rows, rounding))
    )


def test_embeddings_of_queries_and_documents():
    whole, _ = params()
    query = abstract_steps.inputs(8, 16)
    queries = jax.jit(functools.partial(embed_queries, config=RETRIEVER))
    assert lowered(queries, whole, query).out_avals[0].shape == (8, 16)
    for method in ("embed_documents", "embed_queries"):
        out = lowered(embed_inputs, whole["retriever"], *query, config=RETRIEVER, method=method).out_avals[0]
        assert out.shape == (8, 16) and out.dtype == jnp.float32
    assert isinstance(query, Inputs)


@pytest.mark.parametrize("null_document", [True, False])
def test_span_prediction(null_document):
    whole, model = params()
    program = jax.jit(functools.partial(predict_spans, model=model._replace(null_document=null_document)))
    values = batch(null_document)
    assert lowered(program, whole, values).out_avals[0].shape == (8, 3)


def test_span_reading():
    config = SpanReaderConfig(ENCODER, span_hidden_size=8)
    ids = jax.ShapeDtypeStruct((4, 32), jnp.int32)
    mask = jax.ShapeDtypeStruct((4, 32), jnp.bool_)
    params = jax.eval_shape(SpanReader(config).init, jax.random.key(0), ids, ids, mask)["params"]
    assert lowered(read_spans, params, ids, ids, config=config).out_avals[0].shape == (4, len(span_bounds(32, 10)[0]))


def test_open_qa_step():
    retriever = RetrieverConfig(encoder=ENCODER, projection_size=16, tied=False)
    reader = SpanReaderConfig(ENCODER, span_hidden_size=8)
    for train_documents, contrasted in ((False, 0), (True, 3)):
        task = abstract_steps.open_qa_task(retriever, reader, train_documents)
        values = abstract_steps.open_qa_batch(8, retriever, reader, train_documents, contrasted)
        exported, _ = lowered_step(task, values)
        assert list(exported.platforms) == PLATFORMS


@pytest.mark.parametrize("sample", [False, True])
def test_generation(sample):
    config = tiny.encoder_decoder(dtype="bfloat16")
    generation = GenerationConfig(
        num_hypotheses=2, max_length=6, no_repeat_ngram_size=3, sample=sample, top_k=9, top_p=0.9
    )
    ids, mask = jax.ShapeDtypeStruct((4, 3, 8), jnp.int32), jax.ShapeDtypeStruct((4, 3, 8), jnp.bool_)
    one = ids.update(shape=(4, 8)), mask.update(shape=(4, 8))
    params = jax.eval_shape(EncoderDecoder(config).init, jax.random.key(0), *one, one[0])["params"]
    rng = jax.eval_shape(lambda: jax.random.key(0)) if sample else None
    scores = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    settings = {"config": config, "generation": generation}
    for program, inputs in (
        (generator.generate, one),
        (generator.fusion_in_decoder, (ids, mask)),
        (generator.rag_token, (ids, mask, scores)),
        (generator.rag_sequence, (ids, mask, scores)),
    ):
        assert lowered(program, params, *inputs, rng, **settings).out_avals[0].shape == (4, 2, 5)


def test_generation_of_a_language_model():
    config = tiny.language_model(dtype="bfloat16")
    generation = GenerationConfig(num_beams=2, num_hypotheses=2, max_length=6)
    ids, mask = jax.ShapeDtypeStruct((4, 3, 8), jnp.int32), jax.ShapeDtypeStruct((4, 3, 8), jnp.bool_)
    one = ids.update(shape=(4, 8)), mask.update(shape=(4, 8))
    params = jax.eval_shape(LanguageModel(config).init, jax.random.key(0), one[0], one[0])["params"]
    settings = {"config": config, "generation": generation}
    scores = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    for program, inputs in ((generator.generate, one), (generator.rag_token, (ids, mask, scores)), (generator.rag_sequence, (ids, mask, scores))):  # fmt: skip
        assert lowered(program, params, *inputs, None, **settings).out_avals[0].shape == (4, 2, 5)
    found = lowered(continuation_likelihoods, params, one[0], one[0], one[0], config=config, width=3)
    assert [value.shape for value in found.out_avals] == [(4, 3), (4, 3)]


def test_no_program_is_left_out(repository):
    """A module that jits more than is lowered above, or a new one, fails here until its program is lowered too."""
    lowered_here = {
        "answering/answerer.py": 1,
        "convert/starting_point.py": 1,  # random parameters, once
        "corpus/ner_tagger.py": 1,
        "evaluation/masked_spans.py": 2,  # span prediction; its queries
        "generation/generator.py": 4,
        "generation/likelihood.py": 1,
        "plan/programs.py": 2,  # the loop's step and its query embedding again, to be compiled for a slice
        "retrieval/device_rows.py": 1,  # writing a chunk
        "retrieval/embedder.py": 1,
        "retrieval/exact.py": 1,
        "retrieval/look_ahead.py": 1,
        "training/checksums.py": 2,  # of a tree, which calls that of an array
        "training/loop.py": 2,  # the first state, the step
        "training/snapshots.py": 1,  # the copy that a step waits for
        "training/throughput.py": 1,  # jnp.matmul alone, to measure a CPU
    }
    package = repository / "realm_jax"
    found = {
        path.relative_to(package).as_posix(): sum(
            isinstance(node, ast.Attribute) and node.attr == "jit" for node in ast.walk(ast.parse(path.read_text()))
        )
        for path in package.rglob("*.py")
    }
    assert {name: count for name, count in found.items() if count} == lowered_here
