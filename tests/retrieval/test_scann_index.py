"""ScaNN behind its one module: recall, repeatability, and the inputs it would answer wrongly or die of."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from realm_jax.retrieval.exact import brute_force
from realm_jax.retrieval.scann_index import ScannIndex, ScannSettings, build_shard, load_shard, save_shard

TREE = ScannSettings(num_leaves=20, leaves_to_search=10)


def _clustered(documents: int, embed: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((30, embed))
    rows = centres[rng.integers(30, size=documents)] + 0.4 * rng.standard_normal((documents, embed))
    return rows.astype(np.float32)


def _recall(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)]))


def test_settings_follow_the_document_count():
    assert ScannSettings.for_documents(19_999) == ScannSettings()
    chosen = ScannSettings.for_documents(32_768)
    assert (chosen.num_leaves, chosen.leaves_to_search, chosen.reorder) == (181, 16, 100)
    with pytest.raises(ValueError, match=r"1 <= leaves_to_search <= num_leaves"):
        ScannSettings(num_leaves=4, leaves_to_search=5)


def test_brute_force_shards_equal_exact_search():
    rows, queries = _clustered(300), _clustered(9, seed=1)
    index = ScannIndex([build_shard(rows[200:], 200), build_shard(rows[:200])])
    assert (index.num_documents, index.embed_dim) == (300, 16)
    for num_results in (1, 10, 120, 300, 500):  # more than one shard holds, all, more than there are
        found, expected = index.search(queries, num_results), brute_force(queries, rows, num_results)
        assert np.array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)


def test_tree_finds_almost_everything():
    rows, queries = _clustered(4000), _clustered(50, seed=1)
    index = ScannIndex([build_shard(rows, 5000, TREE)])
    found, expected = index.search(queries, 10), brute_force(queries, rows, 10, first_document=5000)
    assert _recall(found.ids, expected.ids) > 0.95
    # reordering scores with the float32 rows: the scores are inner products, descending
    np.testing.assert_allclose(found.scores[:, 0], expected.scores[:, 0], rtol=1e-4)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    # many more than `reorder`, and more than a tenth of the leaves hold
    assert _recall(index.search(queries, 800).ids, brute_force(queries, rows, 800, 5000).ids) > 0.9
    everything = index.search(queries, 4100)
    assert (np.sort(everything.ids[:, :4000], axis=1) == 5000 + np.arange(4000)).all()
    assert (everything.ids[:, 4000:] == -1).all()


def test_default_settings_for_a_big_shard():
    rows, queries = _clustered(20_500, embed=8), _clustered(40, embed=8, seed=1)
    shard = build_shard(rows)
    assert shard.settings.num_leaves == 143
    assert _recall(ScannIndex([shard]).search(queries, 10).ids, brute_force(queries, rows, 10).ids) > 0.95


def test_saved_shards_survive_a_rename(tmp_path):
    rows, queries = _clustered(3000), _clustered(5, seed=1)
    for name, settings in (("brute", ScannSettings()), ("tree", TREE)):
        shard = build_shard(rows, 7, settings)
        save_shard(shard, tmp_path / name / "scann")
        (tmp_path / name).rename(tmp_path / "renamed")
        loaded = load_shard(tmp_path / "renamed" / "scann", 7, 3000, 16, settings)
        shutil.rmtree(tmp_path / "renamed")  # all of it is in memory
        expected = ScannIndex([shard]).search(queries, 12)
        found = ScannIndex([loaded]).search(queries, 12)
        assert np.array_equal(found.ids, expected.ids) and np.array_equal(found.scores, expected.scores)


def test_unreadable_assets_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"does not hold a readable ScaNN shard"):
        load_shard(tmp_path, 0, 10, 4, ScannSettings())
    save_shard(build_shard(_clustered(50)), tmp_path / "scann")
    with (tmp_path / "scann" / "dataset.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(ValueError, match=r"does not hold a readable ScaNN shard"):
        load_shard(tmp_path / "scann", 0, 50, 16, ScannSettings())


def test_bad_queries_are_refused_and_none_are_answered():
    index = ScannIndex([build_shard(_clustered(50))])
    with pytest.raises(ValueError, match=r"must be \[batch, 16\] for this index, got \[2, 8\]"):
        index.search(np.zeros((2, 8), np.float32), 3)
    with pytest.raises(ValueError, match=r"1 of 2 queries are not finite, the first is query 1"):
        index.search(np.stack([np.zeros(16), np.full(16, np.nan)]).astype(np.float32), 3)
    empty = index.search(np.zeros((0, 16), np.float32), 3)
    assert empty.ids.shape == empty.scores.shape == (0, 3)


def test_non_finite_embeddings_are_refused_before_scann_sees_them():
    rows = _clustered(3000)
    rows[[1500, 2000], 3] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 of 3000 document embeddings are not finite, the first is document 41500"):
        build_shard(rows, 40_000, TREE)


def test_degenerate_embeddings_do_not_kill_the_process():
    # a retriever at its start may give every document the same embedding
    rows = np.ones((3000, 16), np.float32)
    found = ScannIndex([build_shard(rows, 0, TREE)]).search(rows[:2], 5)
    assert (found.ids >= 0).all()
    np.testing.assert_allclose(found.scores, 16.0, rtol=1e-3)


def test_impossible_shards_are_refused():
    with pytest.raises(ValueError, match=r"5 documents cannot have 20 leaves"):
        build_shard(_clustered(5), settings=TREE)
    with pytest.raises(ValueError, match=r"15 documents cannot have 2 leaves and 16 hash codes"):
        build_shard(_clustered(15), settings=ScannSettings(num_leaves=2, leaves_to_search=2))
    with pytest.raises(ValueError, match=r"at least one document"):
        build_shard(np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match=r"shards overlap: one ends before document 50, the next begins with 49"):
        ScannIndex([build_shard(_clustered(50)), build_shard(_clustered(50), 49)])
    with pytest.raises(ValueError, match=r"of one embed_dim, got 2 shards of \[8, 16\]"):
        ScannIndex([build_shard(_clustered(50)), build_shard(_clustered(50, 8), 50)])


_BUILD = """
import sys, numpy as np
junk = [np.random.default_rng(i).standard_normal(1000 * i) for i in range(int(sys.argv[2]))]  # another memory layout
from realm_jax.retrieval.scann_index import ScannSettings, build_shard, save_shard
rows = np.random.default_rng(0).standard_normal((4000, 16)).astype(np.float32)
save_shard(build_shard(rows, 0, ScannSettings(num_leaves=20, leaves_to_search=6)), sys.argv[1])
assert "tensorflow" not in sys.modules
"""


def test_builds_repeat_bit_for_bit_in_another_process(tmp_path):
    digests = []
    for number, threads in (("1", "1"), ("7", "4")):
        place = tmp_path / number
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", _BUILD, place, number], check=True, timeout=120, env=environment)
        files = sorted(file for file in place.rglob("*") if file.is_file())
        digests.append({str(f.relative_to(place)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files})
    assert len(digests[0]) >= 5
    assert digests[0] == digests[1]


def test_a_present_tensorflow_is_hidden_only_while_importing(tmp_path):
    # a TensorFlow that fails as the wrong version does when ScaNN imports it
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('undefined symbol')")
    program = (
        "import numpy as np, sys\n"
        "from realm_jax.retrieval.scann_index import build_shard, ScannIndex\n"
        "rows = np.eye(4, dtype=np.float32)\n"
        "assert ScannIndex([build_shard(rows)]).search(rows, 1).ids[:, 0].tolist() == [0, 1, 2, 3]\n"
        "assert 'tensorflow' not in sys.modules\n"
        "try:\n    import tensorflow\nexcept RuntimeError as error:\n    assert 'undefined symbol' in str(error)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=os.environ | {"PYTHONPATH": path})


def test_only_one_module_imports_scann(repository: Path):
    importers = [
        file.name
        for file in (repository / "realm_jax").rglob("*.py")
        if any(line.strip().startswith(("import scann", "from scann")) for line in file.read_text().splitlines())
    ]
    assert importers == ["scann_index.py"]
