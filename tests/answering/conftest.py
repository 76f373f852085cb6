"""The small encyclopedia, its index, and an answerer over both."""

import numpy as np
import pytest

from realm_jax.answering.documents import CorpusDocuments
from realm_jax.answering.loading import answerer_of
from realm_jax.retrieval.exact import ExactIndex
from tests.answering import made_world


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return made_world.corpus(tmp_path_factory.mktemp("made_world"))


@pytest.fixture(scope="session")
def index():
    embeds = [made_world.bag(f"{title} {text}") for title, text in made_world.TEXTS.items()]
    return ExactIndex(np.stack(embeds).astype(np.float32))


@pytest.fixture(scope="session")
def params():
    return made_world.params()


@pytest.fixture(scope="session")
def answerer(corpus, index, params):
    return answerer_of(made_world.task(corpus.directory), params, CorpusDocuments(corpus), index)
