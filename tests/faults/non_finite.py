"""NaN in a gradient, in a snapshot and in a shard of a published index."""

import dataclasses
import json
import signal

import jax
import numpy as np

from realm_jax.retrieval.manifest import sha256_of
from realm_jax.retrieval.versions import MANIFEST, list_versions, read_manifest
from realm_jax.run_dir import RunDir
from realm_jax.training.checkpoint import load_params
from realm_jax.training.snapshots import list_snapshots, load_snapshot, save_snapshot
from tests.faults.jobs import Workshop, difference, metrics, status, wait_until
from tests.faults.table import Row


def spoil(workshop: Workshop) -> Row:
    """Gradients: as `train.non_finite` says. A snapshot: its embedding is refused. A shard: no parameter may catch it."""
    kinds = {
        "gradient, stop": _stop,
        "gradient, skip": _skip,
        "gradients beyond max_skipped_updates": _skip_too_many,
        "snapshot": _snapshot,
        "index shard": _shard,
    }
    wrong = {kind: inject(workshop) for kind, inject in kinds.items()}
    failures = [f"{kind}: {what}" for kind, what in wrong.items() if what]
    return Row(
        "NaN",
        len(kinds),
        len(kinds) - len(failures),
        "one update a skipped gradient",
        notes=", ".join(kinds),
        failures=failures,
    )


def _stop(workshop: Workshop) -> str:
    """The run ends and names the step; without the NaN the same command goes on to the run that never had one."""
    run, whole = workshop.run("nan-stop"), workshop.whole("whole")
    embedder = workshop.start("embed", run)
    trainer = workshop.start("train", run, "faulty_task.Faulty.nan_steps=(7,)", "train.non_finite='stop'")
    ended = trainer.finish()
    embedder.kill()
    if (
        ended != 1
        or "step 7: loss" not in trainer.said()
        or "the update was not applied and the run stops" not in trainer.said()
    ):
        return f"ended with {ended}: {trainer.said()[-300:]}"
    workshop.finish(run)
    return difference(run, whole)


def _skip(workshop: Workshop) -> str:
    run = workshop.run("nan-skip")
    trainer = workshop.finish(run, "faulty_task.Faulty.nan_steps=(7,13)", "train.non_finite='skip'")
    last = metrics(run)[-1]
    if (last["step"], last["skipped_updates"]) != (24, 2) or trainer.said().count("update skipped") != 2:
        return f"{last}: {trainer.said()[-300:]}"
    return _not_finite(run)


def _skip_too_many(workshop: Workshop) -> str:
    run = workshop.run("nan-too-many")
    embedder = workshop.start("embed", run)
    bindings = ("faulty_task.Faulty.nan_steps=(7,8,9)", "train.non_finite='skip'", "train.max_skipped_updates=2")
    trainer = workshop.start("train", run, *bindings)
    ended = trainer.finish()
    embedder.kill()
    said = trainer.said()
    return "" if ended == 1 and "more than max_skipped_updates=2" in said else f"ended with {ended}: {said[-300:]}"


def _snapshot(workshop: Workshop) -> str:
    """The embed job refuses it and says how many embeddings are not finite; nothing is published."""
    run, whole = workshop.run("nan-snapshot"), workshop.whole("whole")
    params = load_snapshot(whole, list_snapshots(whole)[-1])
    save_snapshot(run, 4, jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params))
    job = workshop.start("embed", run, "embed.once=True")
    ended = job.finish()
    if ended != 1 or "not finite" not in job.said() or list_versions(run.index):
        return f"ended with {ended}, versions {list_versions(run.index)}: {job.said()[-300:]}"
    return ""


def _shard(workshop: Workshop) -> str:
    """Rows of a published shard become NaN and the manifest vouches for them: the run goes on, or stops and says why."""
    run = workshop.run("nan-shard")
    trainer = workshop.start("train", run, "refresh.RefreshConfig.mode='frozen'")
    if not wait_until(lambda: list_snapshots(run), trainer):
        return trainer.said()[-300:]
    trainer.process.send_signal(signal.SIGSTOP)  # it must not load the version before it is spoiled
    workshop.start("embed", run, "embed.once=True", "build_version.IndexSettings.backend='exact'").finish()
    _spoil_shard(run)
    trainer.process.send_signal(signal.SIGCONT)
    ended = trainer.finish(90)
    if ended == 0:
        return _not_finite(run)
    said = trainer.said()
    return (
        "" if ended == 1 and "Traceback" not in said and "not finite" in said else f"ended with {ended}: {said[-300:]}"
    )


def _spoil_shard(run: RunDir) -> None:
    place = run.index_version(0)
    manifest = read_manifest(place)
    shard = manifest.shards[0]
    file = place / shard.files[0].path
    rows = np.load(file)
    rows[::2] = np.nan
    np.save(file, rows)
    spoiled = dataclasses.replace(shard.files[0], sha256=sha256_of(file), bytes=file.stat().st_size)
    shards = (dataclasses.replace(shard, files=(spoiled, *shard.files[1:])), *manifest.shards[1:])
    (place / MANIFEST).write_text(json.dumps(dataclasses.replace(manifest, shards=shards).to_json()))


def _not_finite(run: RunDir) -> str:
    """What of a finished run is not finite."""
    bad = [
        line["step"] for line in metrics(run) if line["skipped_updates"] == 0 and not np.isfinite(float(line["loss"]))
    ]
    params = jax.tree.leaves_with_path(load_params(run)[1])
    wrong = [jax.tree_util.keystr(path) for path, leaf in params if not np.isfinite(leaf).all()]
    return (
        f"not finite: losses of steps {bad}, parameters {wrong}"
        if bad or wrong or status(run)["state"] != "finished"
        else ""
    )
