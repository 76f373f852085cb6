"""The made-up encyclopedia, served."""

import dataclasses
import shutil

import pytest

from realm_jax.answering.collection import Collection
from realm_jax.answering.loading import load_answerer
from realm_jax.corpus.store import Corpus
from realm_jax.serve.service import Service
from tests.answering import made_world
from tests.answering.made_run import make_run


@pytest.fixture(scope="session")
def params():
    return made_world.params()


@pytest.fixture(scope="session")
def run(tmp_path_factory, params):
    """A finished run; its corpus lies inside."""
    place = tmp_path_factory.mktemp("run") / "encyclopedia"
    return make_run(place, params, made_world.corpus(place / "corpus"))


@pytest.fixture(scope="session")
def loaded(run):
    return load_answerer(run, made_world.task(run.corpus))


@pytest.fixture
def make_service(run, loaded, tmp_path):
    """Makes services of the run; `own_corpus` gives one a copy of the corpus, which a test may break."""

    def make(own_corpus=False, editable=True, **limits):
        mine = loaded
        if own_corpus:
            shutil.copytree(run.corpus, tmp_path / "corpus")
            mine = dataclasses.replace(loaded, corpus=Corpus.open(tmp_path / "corpus"))
        collection = Collection(mine.answerer, mine.corpus, mine.index, **limits)
        return Service(run, mine, collection, editable=editable)

    return make
