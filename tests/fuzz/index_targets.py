"""What an index version and a corpus say of themselves, and a corpus' arrays: files that may come from a shared bucket."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from realm_jax.corpus.store import Corpus
from realm_jax.retrieval.manifest import IndexRefused, signed
from realm_jax.retrieval.shards import finished_shard, recorded_origin
from realm_jax.retrieval.versions import list_versions, load_version, verify
from tests.fuzz.target import Target
from tests.retrieval.made_index import make_corpus, make_version

_WORDS = (
    b'"../../out"', b'"/etc/passwd"', b'"shard-00000-of-00001/../../../out"', b'"a\\u0000b"', b"1e400", b"-1", b"NaN",
    b'"shard-00000-of-00004"', b'"files": []', b"10000000000000000000000000",
)  # fmt: skip
_ARRAYS = ("bodies.offsets", "bodies.values", "source_ids.values", "source_first", "source_hashes")
_ARRAY_WORDS = (b"'|O'", b"'<f8'", b"(1, )", b"()", b"(-1, )", b"(99999999999999999999, )", b"True", b"'shape'", b"\x93NUMPY\x02\x00",
                b"\xff" * 8, b"{", b"(" * 300, b"[('a', '|O')]")  # fmt: skip


def _version(folder: Path) -> Sequence[bytes]:
    make_version(folder / "index", make_corpus(folder / "corpus", 12), backend="exact")
    return [(folder / "index" / "00000300" / "manifest.json").read_bytes()]


def _read_manifest(data: bytes, folder: Path) -> None:
    place = folder / "index" / "00000300"
    for content in (data, _signed(data)):  # as damage is, and as somebody writes it who means harm
        (place / "manifest.json").write_bytes(content)
        list_versions(place.parent)
        try:
            load_version(place, backend="exact", manifest=verify(place, num_documents=12))
        except IndexRefused:
            if content is not data:
                raise


def _signed(data: bytes) -> bytes:
    """With the checksum of what the data says, where it says anything."""
    try:
        content = json.loads(data)
        return json.dumps(signed(content)).encode() if isinstance(content, dict) else data + b" "
    except (ValueError, RecursionError):
        return data + b" "


def _shard(folder: Path) -> Sequence[bytes]:
    _version(folder)
    return [(folder / "index" / "00000300" / "shard-00000-of-00002" / "shard.json").read_bytes()]


def _read_shard(data: bytes, folder: Path) -> None:
    place = folder / "index" / "00000300"
    (place / "shard-00000-of-00002" / "shard.json").write_bytes(data)
    finished_shard(place, "shard-00000-of-00002", {"version": 300})
    recorded_origin(place, "shard-00000-of-00002")


def _corpus(folder: Path) -> Sequence[bytes]:
    make_corpus(folder / "corpus", 12)
    return [(folder / "corpus" / "corpus.json").read_bytes()]


def _use(corpus: Corpus) -> None:
    """Reads all of a small corpus as the jobs do."""
    for ragged in (corpus.titles, corpus.bodies, corpus.sentence_ends, corpus.salient_spans):
        ragged.lengths()
        ragged.gather(np.arange(min(len(ragged), 50)), 64)
    for document in range(min(corpus.num_documents, 50)):
        assert corpus.bodies[document].ndim == 1
        corpus.answers(document)
        corpus.source_id(document)
    corpus.documents_of("3")


def _read_corpus(data: bytes, folder: Path) -> None:
    (folder / "corpus" / "corpus.json").write_bytes(data)
    _use(Corpus.open(folder / "corpus"))


def _arrays(folder: Path) -> Sequence[bytes]:
    make_corpus(folder / "whole", 12)
    shutil.copytree(folder / "whole", folder / "corpus")
    return [(folder / "whole" / "tokens" / f"{name}.npy").read_bytes() for name in _ARRAYS]


def _read_arrays(data: bytes, folder: Path) -> None:
    """Each array in turn is the input."""
    for name in _ARRAYS:
        place = folder / "corpus" / "tokens" / f"{name}.npy"
        place.write_bytes(data)
        try:
            _use(Corpus.open(folder / "corpus"))
        except ValueError:
            pass
        finally:
            place.unlink()  # the mapped file is not written to
            shutil.copyfile(folder / "whole" / "tokens" / f"{name}.npy", place)


TARGETS = [
    Target("manifest", _version, _read_manifest, refuses=(IndexRefused,), words=_WORDS),
    Target("shard_record", _shard, _read_shard, refuses=(), words=_WORDS),
    Target("corpus_json", _corpus, _read_corpus, refuses=(ValueError,), words=_WORDS),
    Target("corpus_arrays", _arrays, _read_arrays, refuses=(), words=_ARRAY_WORDS),
]
