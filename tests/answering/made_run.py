"""A run directory of the made-up encyclopedia, as fine-tuning would leave it: corpus, checkpoint, index, configuration."""

from pathlib import Path

import jax.numpy as jnp

from realm_jax.corpus.store import Corpus
from realm_jax.retrieval.build_version import BatchSettings, IndexSettings
from realm_jax.retrieval.embedder import embed_params
from realm_jax.run_dir import RunDir
from realm_jax.training.checkpoint import Checkpoints, ResumeUnit
from realm_jax.training.state import TrainState
from tests.answering import made_world

STEP, VERSION = 600, 500
CONFIG = """from __gin__ import dynamic_registration

from realm_jax.models import retriever
from realm_jax.models import span_reader
from realm_jax.models import transformer
from realm_jax.tasks import open_qa

open_qa.OpenQa:
  corpus = '{corpus}'
  questions = 'questions.jsonl'
  retriever = @retriever.RetrieverConfig()
  reader = @span_reader.SpanReaderConfig()
  num_retrieved = 5
  num_read = 3
  query_len = 24
  joint_len = 64
  document_len = 48

retriever.RetrieverConfig:
  encoder = @transformer.TransformerConfig()
  projection_size = None
  tied = False
  score_scale = 4.0
  pooling = 'mean'
  normalize = True

span_reader.SpanReaderConfig:
  encoder = @transformer.TransformerConfig()
  span_hidden_size = 8
  max_span_width = 3

transformer.TransformerConfig:
  vocab_size = 32
  hidden_size = 32
  num_layers = 1
  num_heads = 2
  intermediate_size = 8
  max_length = 64
"""


def make_run(place: Path, params: dict, knowledge: Corpus, backend: str = "exact") -> RunDir:
    run = RunDir.of(place)
    save(run, params, knowledge)
    task = made_world.task(knowledge.directory)
    embed_params(
        run,
        VERSION,
        task.retriever,
        params["retriever"],
        "checksum",
        knowledge,
        settings=IndexSettings(backend=backend, recall_queries=4, recall_results=2),
        batches=BatchSettings(document_len=task.document_len, query_len=task.query_len, batch_size=8, num_lengths=1),
    )
    run.config_file("train").write_text(CONFIG.format(corpus=knowledge.directory))
    return run


def save(run: RunDir, params: dict, knowledge: Corpus) -> None:
    """A checkpoint of these parameters."""
    checkpoints = Checkpoints(run, identity={"tokenizer": knowledge.info.tokenizer_fingerprint})
    state = TrainState(jnp.int32(STEP), params, {"count": jnp.int32(STEP)}, jnp.int32(0))
    checkpoints.save(STEP, ResumeUnit(state, VERSION, None))
    checkpoints.close()
