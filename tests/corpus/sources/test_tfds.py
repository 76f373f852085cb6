"""TFDS data sets, read without TensorFlow."""

import sys
import types

import pytest

from realm_jax.corpus import sources
from tests.corpus.sources.reading import read


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A TFDS data set of 250 articles, prepared without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    data_dir = tmp_path_factory.mktemp("tfds")
    module = types.ModuleType("tiny_articles_builder")  # TFDS wants its builders in an importable module
    sys.modules[module.__name__] = module

    class TinyArticles(tfds.core.GeneratorBasedBuilder):
        """Articles."""

        __module__ = module.__name__
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = data_dir

        def _info(self):
            features = tfds.features.FeaturesDict({"heading": tfds.features.Text(), "text": tfds.features.Text()})
            return self.dataset_info_from_configs(features=features, description="Articles.")

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(250):
                yield i, {"heading": f"Title {i}", "text": f"Text of {i}." if i != 3 else b"caf\xe9"}

    TinyArticles(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


def test_tfds(tfds_dir):
    articles, dropped = read(f"tfds:tiny_articles:1.0.0?split=train[:50%]&title=heading&data_dir={tfds_dir}")
    assert "tensorflow" not in sys.modules or sys.modules["tensorflow"] is None
    assert len(articles) + sum(dropped.values()) == 125
    number = articles[7].title.removeprefix("Title ")
    assert articles[7].text == f"Text of {number}."
    whole, dropped = read(f"tfds:tiny_articles?data_dir={tfds_dir}", "tfds")
    assert (len(whole), dropped) == (249, {"not UTF-8": 1})
    assert {article.title for article in whole} == {""}
    assert len({article.id for article in whole}) == 249


def test_parts_are_ranges_of_records(tfds_dir, monkeypatch):
    monkeypatch.setattr(sources, "PART_RECORDS", 70)
    whole = sources.open_source(f"tfds:tiny_articles?title=heading&data_dir={tfds_dir}")
    parts = whole.parts()
    articles = list(whole.read(lambda cause: None))
    assert [part.records for part in parts] == [(0, 70), (70, 140), (140, 210), (210, 250)]
    assert len(articles) == 249
    assert [article for part in parts for article in part.read(lambda cause: None)] == articles


def test_tfds_errors(tfds_dir):
    with pytest.raises(ValueError, match=r"expected a feature 'body', got one with \['heading', 'text'\]"):
        read(f"tfds:tiny_articles?text=body&data_dir={tfds_dir}")
    with pytest.raises(ValueError, match=r"cannot read the TFDS data set 'no_such_set'"):
        read(f"tfds:no_such_set?data_dir={tfds_dir}")
    with pytest.raises(ValueError, match=r"cannot read the TFDS data set 'tiny_articles', split 'dev'"):
        read(f"tfds:tiny_articles?split=dev&data_dir={tfds_dir}")
    with pytest.raises(ValueError, match=r"parameters among \['split', 'title', 'text', 'id', 'data_dir'\]"):
        read("tfds:wikipedia?spilt=train")
