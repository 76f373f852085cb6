"""Every class of the Hugging Face port against its equivalent here, on the same random weights."""

from pathlib import Path

import pytest

from realm_jax.convert import load_hugging_face
from tests.convert.cases import check, read_case
from tests.parity.conftest import CASES

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", CASES)
def test_outputs_losses_and_gradients(name: str, reference: Path):
    folder = reference / name
    assert folder.is_dir(), f"tests/parity/reference.py made no case {name}"
    # BertModel's case is about its pooler too
    model = load_hugging_face(folder / "model", pooling="pooler" if name.startswith("BertModel") else "cls")
    assert model.architecture == name.partition(".")[0].partition("-")[0]
    if name.startswith("RealmScorer"):
        assert model.retriever.tied == (not name.startswith("RealmScorer-untied"))
    check(read_case(folder / "case.safetensors"), model)


def test_no_case_is_left_out(reference: Path):
    assert sorted(place.name for place in reference.iterdir() if place.is_dir()) == sorted(CASES)
