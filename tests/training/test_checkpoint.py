"""Checkpoints: exact on any mesh, atomic, refused when damaged, never silently lost."""

import errno
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from realm_jax.run_dir import RunDir, read_json
from realm_jax.storage import RemotePath
from realm_jax.training import checkpoint
from realm_jax.training.checkpoint import NO_VERSION, Checkpoints, ResumeUnit, check_tokenizer, load_params
from realm_jax.training.optimizer import OptimizerConfig
from realm_jax.training.sharding import BATCH, MeshConfig, put_batch, state_shardings
from realm_jax.training.state import TrainState
from tests.full_disk import file_size_limit
from tests.training.made_params import assert_same, params


@pytest.fixture
def run(tmp_path):
    return RunDir.of(tmp_path / "run")


def state(mesh, step=4, seed=0):
    optimizer = OptimizerConfig().build(10, ("retriever", "knowledge_encoder"))
    opt_state = jax.tree.map(lambda x: x + 1, optimizer.init(params(seed)))
    whole = TrainState(jnp.int32(step), params(seed), opt_state, jnp.int32(0))
    return jax.device_put(whole, state_shardings(mesh, jax.eval_shape(lambda: whole)))


def wanted(whole):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), whole)


def candidate_ids(mesh, seed=0):
    return put_batch(mesh, np.random.default_rng(seed).integers(-2, 90, size=(8, 3)).astype(np.int32))


@pytest.fixture
def mesh():
    return MeshConfig().build()


def saved(run, mesh, steps=(4,), **kwargs):
    checkpoints = Checkpoints(run, **kwargs)
    for step in steps:
        unit = ResumeUnit(state(mesh, step, seed=step), step - 1, candidate_ids(mesh, step))
        checkpoints.save(step, unit)
        checkpoints.wait()
    return checkpoints


def test_what_was_saved_comes_back_to_the_bit_on_another_mesh(run, mesh):
    saved(run, MeshConfig(data=2, fsdp=4).build()).close()
    four = MeshConfig(data=2, fsdp=1, tensor=2).build(jax.devices()[:4])
    again = Checkpoints(run)
    unit = again.restore(wanted(state(four)), four, batch_size=8)
    assert_same(unit.state, state(mesh, 4, seed=4))
    np.testing.assert_array_equal(unit.candidate_ids, candidate_ids(mesh, 4))
    assert unit.index_version == 3 and int(unit.state.step) == 4
    assert unit.candidate_ids.sharding == NamedSharding(four, BATCH)
    assert len(unit.state.params["retriever"]["projection"]["kernel"].sharding.device_set) == 4
    assert type(unit.state.opt_state) is type(state(mesh).opt_state)
    again.close()


def test_a_task_without_retrieval_has_no_candidates(run, mesh):
    checkpoints = Checkpoints(run)
    checkpoints.save(2, ResumeUnit(state(mesh, 2), NO_VERSION, None))
    checkpoints.wait()
    unit = checkpoints.restore(wanted(state(mesh)), mesh, None)
    assert unit.candidate_ids is None and unit.index_version == NO_VERSION and checkpoints.kept_versions() == []
    checkpoints.close()


def test_the_last_checkpoint_of_a_run_is_read_again_in_a_fresh_process(run, mesh):
    """It holds no candidates, since no step follows: starting a finished run again must not fail on that."""
    checkpoints = Checkpoints(run)
    checkpoints.save(2, ResumeUnit(state(mesh, 2), 1, None))
    checkpoints.close()
    again = Checkpoints(run)
    unit = again.restore(wanted(state(mesh)), mesh, batch_size=8)
    assert unit.candidate_ids is None and unit.index_version == 1 and int(unit.state.step) == 2
    again.close()


def test_old_checkpoints_go_and_the_versions_of_the_others_are_kept(run, mesh):
    checkpoints = saved(run, mesh, (2, 4, 6), max_to_keep=2)
    assert checkpoints.latest_step() == 6 and checkpoints.kept_versions() == [3, 5]
    checkpoints.close()
    again = Checkpoints(run)
    assert again.kept_versions() == [3, 5]  # read from the disk by a resumed run
    again.close()


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["empty files", "missing state", "meta"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(run, mesh, damage, caplog):
    saved(run, mesh, (2, 4)).close()
    newest = run.checkpoints / "4"
    if damage == "empty files":
        for file in [*(newest / "state").rglob("*")]:
            if file.is_file():
                file.write_bytes(b"")
    elif damage == "missing state":
        shutil.rmtree(newest / "state")
    else:
        (newest / "meta" / "metadata").write_text("{torn")
    again = Checkpoints(run)
    unit = again.restore(wanted(state(mesh)), mesh, batch_size=8)
    assert int(unit.state.step) == 2 and unit.index_version == 1
    assert_same(unit.state, state(mesh, 2, seed=2))
    assert f"checkpoint {run.checkpoints / '4'} cannot be read" in caplog.text
    # and the run can write that step again: it must not keep the damaged one
    assert again.kept_versions() == [1]
    again.save(4, ResumeUnit(state(mesh, 4, seed=44), 2, candidate_ids(mesh)))
    again.wait()
    again.close()
    last = Checkpoints(run)
    unit = last.restore(wanted(state(mesh)), mesh, batch_size=8)
    assert int(unit.state.step) == 4 and unit.index_version == 2
    assert_same(unit.state.params, params(44))
    last.close()


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["a flipped bit", "half a file", "a missing file"])
def test_values_that_are_not_those_written_are_noticed(run, mesh, damage, caplog):
    """Large arrays lie in files of their own, in which no library notices a flipped bit."""

    def large(step):
        kernel = jax.random.normal(jax.random.key(step), (64, 64))
        return state(mesh, step)._replace(
            params=jax.device_put({"kernel": kernel}, NamedSharding(mesh, PartitionSpec()))
        )

    checkpoints = Checkpoints(run)
    for step in (2, 4):
        checkpoints.save(step, ResumeUnit(large(step), step - 1, candidate_ids(mesh, step)))
    checkpoints.close()
    file = max((run.checkpoints / "4" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    if damage == "a flipped bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "half a file":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    assert_same(load_params(run, 2)[1], large(2).params)
    if damage == "a flipped bit":
        with pytest.raises(
            ValueError, match=r"checkpoints/4/state are corrupt: expected checksum \d+, got \d+; name an"
        ):
            load_params(run)
    again = Checkpoints(run)
    unit = again.restore(wanted(large(0)), mesh, batch_size=8)
    again.close()
    assert int(unit.state.step) == 2
    assert_same(unit.state, large(2))
    assert f"checkpoint {run.checkpoints / '4'} cannot be read" in caplog.text
    assert ("what it holds is corrupt: expected checksum" in caplog.text) == (damage == "a flipped bit")


SOUND, DAMAGED, OUT_OF_REACH = range(3)


def others_say(monkeypatch, *answers):
    """Two processes, the other of which gives these answers in turn. What this one says is kept in the list."""
    said = []

    def both(own):
        said.append(int(own))
        return [said[-1], said[-1] if answers[len(said) - 1] is None else answers[len(said) - 1]]

    monkeypatch.setattr(checkpoint, "_of_all_processes", both)
    return said


@pytest.mark.faults
@pytest.mark.parametrize("after", ["reading", "the checksum"])
def test_what_another_process_cannot_read_is_damaged_for_all(run, mesh, monkeypatch, caplog, after):
    saved(run, mesh, (2, 4)).close()
    again = Checkpoints(run)
    answers = [DAMAGED] if after == "reading" else [SOUND, DAMAGED]
    said = others_say(monkeypatch, None, *answers, SOUND, SOUND, None)
    sums, checksum = [], checkpoint.checksum
    monkeypatch.setattr(checkpoint, "checksum", lambda tree: sums.append(int(tree[1])) or checksum(tree))
    unit = again.restore(wanted(state(mesh)), mesh, batch_size=8)
    again.close()
    assert int(unit.state.step) == 2
    assert_same(unit.state, state(mesh, 2, seed=2))
    assert said == [0] * (4 + len(answers))  # the identity, each reading and checksum, and putting aside
    assert sums == ([1] if after == "reading" else [3, 1])  # none that another process would not join
    assert "checkpoints/4 cannot be read (process 1 cannot read it; its own message says why); trying" in caplog.text
    assert not (run.checkpoints / "4").exists() and len(list(run.checkpoints.glob("damaged-4-*"))) == 1


@pytest.mark.faults
def test_what_this_process_cannot_read_is_told_to_all(run, mesh, monkeypatch):
    saved(run, mesh, (2, 4)).close()
    (run.checkpoints / "4" / "meta" / "metadata").write_text("{torn")
    again = Checkpoints(run)
    said = others_say(monkeypatch, None, SOUND, SOUND, SOUND, None)
    assert int(again.restore(wanted(state(mesh)), mesh, batch_size=8).state.step) == 2
    assert said == [0, DAMAGED, SOUND, SOUND, 0]
    again.close()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ESTALE, "Stale file handle"),
            r"checkpoints/4 cannot be read now \(.*Stale file handle\); it is left",
        ),
        (
            ValueError("UNAVAILABLE: curl"),
            r"checkpoints/4 cannot be read now \(UNAVAILABLE: curl\); .*start the same command",
        ),
        (MemoryError("too little"), "too little"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 8 GiB"), "RESOURCE_EXHAUSTED: 8 GiB"),
        (None, r"checkpoints/4 cannot be read now \(process 1 cannot read it; its own message says why\)"),
    ],
)
def test_what_may_be_gone_at_the_next_try_is_no_damage(run, mesh, monkeypatch, error, message):
    saved(run, mesh, (2, 4)).close()
    again = Checkpoints(run)
    if error is None:
        others_say(monkeypatch, None, OUT_OF_REACH)
    else:

        def fail(*arguments, **keywords):
            raise error

        monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
    kind = type(error) if isinstance(error, MemoryError | jax.errors.JaxRuntimeError) else OSError
    with pytest.raises(kind, match=message):
        again.restore(wanted(state(mesh)), mesh, batch_size=8)
    again.close()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["2", "4"]


@pytest.mark.parametrize(
    ("error", "place", "expected"),
    [
        (OSError(errno.EIO, "the network"), "gs://bucket/run/checkpoints/4", True),
        (OSError(errno.EIO, "a bad sector"), "/run/checkpoints/4", False),
        (FileNotFoundError(errno.ENOENT, "gone"), "gs://bucket/run/checkpoints/4", False),
        (ValueError("NOT_FOUND: Error opening zarr"), "gs://bucket/run/checkpoints/4", False),
        (ValueError("PERMISSION_DENIED: 403"), "gs://bucket/run/checkpoints/4", True),
        (PermissionError(errno.EACCES, "not yours"), "/run/checkpoints/4", True),
    ],
)
def test_what_is_taken_for_damage(error, place, expected):
    place = RemotePath(place) if place.startswith("gs:") else Path(place)
    assert checkpoint._is_no_damage(error, place) is expected
    wrapped = ValueError("while reading")
    wrapped.__cause__ = error
    assert checkpoint._is_no_damage(wrapped, place) is expected


@pytest.mark.faults
def test_processes_that_see_other_checkpoints_do_not_begin(run, mesh, monkeypatch):
    empty = Checkpoints(run)
    assert not empty.is_begun()
    empty.close()
    saved(run, mesh, (2, 4)).close()
    again = Checkpoints(run)
    assert again.is_begun()
    others_say(monkeypatch, 0)
    with pytest.raises(
        OSError, match=r"expected the same checkpoints under .* on all 2 processes, .*\(2, 4\) on one; use"
    ):
        again.is_begun()
    others_say(monkeypatch, 1)
    with pytest.raises(ValueError, match="another process refuses to go on from there"):
        again.restore(wanted(state(mesh)), mesh, batch_size=8)
    again.close()


def test_a_checkpoint_without_a_checksum_is_read(run, mesh):
    """One written before there was such a thing."""
    saved(run, mesh).close()
    place = run.checkpoints / "4" / "meta" / "metadata"
    place.write_text(json.dumps({name: value for name, value in read_json(place).items() if name != "checksum"}))
    again = Checkpoints(run)
    assert int(again.restore(wanted(state(mesh)), mesh, batch_size=8).state.step) == 4
    again.close()


def test_no_checkpoint_fits(run, mesh):
    saved(run, mesh).close()
    checkpoints = Checkpoints(run)
    with pytest.raises(
        ValueError, match=r"no checkpoint under .* can be read .*batch_size=8, this run has batch_size=16.*remove"
    ):
        checkpoints.restore(wanted(state(mesh)), mesh, batch_size=16)
    checkpoints.close()
    assert (run.checkpoints / "4").is_dir()  # another configuration is no damage: nothing is removed


def test_checkpoints_of_other_examples_are_refused(run, mesh):
    saved(run, mesh, identity={"seed": 0, "corpus": "abc"}).close()
    with pytest.raises(ValueError, match=r"checkpoints was written with corpus=abc, this run has corpus=abd: it would"):
        Checkpoints(run, identity={"seed": 0, "corpus": "abd"}).restore(wanted(state(mesh)), mesh, batch_size=8)
    again = Checkpoints(run, identity={"seed": 0, "corpus": "abc"})
    assert int(again.restore(wanted(state(mesh)), mesh, batch_size=8).state.step) == 4
    again.close()
    with pytest.raises(ValueError, match="expected keep_checkpoints of at least 1, got 0"):
        Checkpoints(run, 0)


def test_parameters_for_other_pieces_are_refused(run, mesh):
    check_tokenizer(run, "abcdefghijklmnop")  # nothing there: what reads it will say so
    saved(run, mesh, identity={"tokenizer": "zyxwvutsrqponmlk"}).close()
    check_tokenizer(run, "zyxwvutsrqponmlk")
    with pytest.raises(
        ValueError,
        match="checkpoints/4 was trained on the pieces of tokenizer zyxwvutsrqpo, the corpus has abcdefghijkl; build the "
        "corpus with that run's",
    ):
        check_tokenizer(run, "abcdefghijklmnop")


def test_params_for_warm_starts_and_evaluation(run, mesh):
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint under .*run/checkpoints \(there is no run in .*/run\); train"
    ):
        load_params(run)
    run.path.mkdir()
    run.config_file("predict").touch()
    with pytest.raises(FileNotFoundError, match=r"\(there is no run in .*/run\)"):
        load_params(run)
    run.config_file("train").touch()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint under .*there: none"):
        load_params(run)
    saved(run, mesh, (2, 4)).close()
    for asked, step in ((None, 4), (2, 2)):
        got_step, got = load_params(run, asked)
        assert got_step == step
        assert_same(got, params(step))
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(got))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 under .*there: 2, 4"):
        load_params(run, 3)


def test_large_arrays_are_written_in_chunks(run, mesh, monkeypatch):
    """So that a device that reads a part does not read the whole, whatever wrote it."""
    monkeypatch.setattr(checkpoint, "_IN_CHUNKS", ocp.SaveArgs(chunk_byte_size=64))
    saved(run, MeshConfig().build(jax.devices()[:1])).close()
    with ocp.PyTreeCheckpointer() as reader:
        stored = reader.metadata(run.checkpoints / "4" / "state").item_metadata.tree["params"]
    kernel = stored["retriever"]["projection"]["kernel"]
    assert 4 * np.prod(kernel.storage.chunk_shape) <= 64 < 4 * np.prod(kernel.shape)
    assert_same(load_params(run, mesh=mesh)[1], params(4))


def test_params_are_read_straight_to_the_devices_of_a_mesh(run, mesh):
    saved(run, mesh).close()
    other = MeshConfig(data=1, fsdp=4, tensor=2).build()
    _, got = load_params(run, mesh=other)
    assert_same(got, params(4))
    shardings = state_shardings(other, jax.eval_shape(lambda: params(4)))
    assert jax.tree.all(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, got, shardings))
    kernel = got["retriever"]["projection"]["kernel"]
    assert kernel.addressable_data(0).size == kernel.size // 4  # by the rules over fsdp, and never whole
    damaged = run.checkpoints / "4" / "meta" / "metadata"
    damaged.write_text(json.dumps({**read_json(damaged), "params_checksum": 1}))
    with pytest.raises(ValueError, match="corrupt: expected checksum 1, got"):
        load_params(run, mesh=other)


@pytest.mark.faults
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # other writes of Orbax that come too late
def test_a_full_disk_and_checkpoints(run, mesh):
    checkpoints = saved(run, mesh, (2, 4))
    with (
        file_size_limit(300),
        pytest.raises(
            OSError,
            match=r"checkpoint of step 6 could not be written; make sure that the disk of .*checkpoints has space .*File too large",
        ),
    ):
        checkpoints.save(6, ResumeUnit(state(mesh, 6), 5, candidate_ids(mesh)))
        checkpoints.wait()
    again = Checkpoints(run)
    unit = again.restore(wanted(state(mesh)), mesh, batch_size=8)
    assert int(unit.state.step) == 4 and unit.index_version == 3
    assert_same(unit.state, state(mesh, 4, seed=4))
    again.save(6, ResumeUnit(state(mesh, 6, seed=6), 5, candidate_ids(mesh)))
    again.wait()
    assert again.latest_step() == 6 and again.kept_versions() == [3, 5]
    again.close()
