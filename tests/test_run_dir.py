import json
import os
import re
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from realm_jax.run_dir import RunDir, check_can_write, read_json, write_json_atomically, write_text_atomically


def test_every_place_of_a_run():
    run = RunDir.of("runs/a")
    places = {
        "runs/a/checkpoints": run.checkpoints,
        "runs/a/snapshots": run.snapshots,
        "runs/a/snapshots/00000300": run.snapshot(300),
        "runs/a/index": run.index,
        "runs/a/index/00000300": run.index_version(300),
        "runs/a/metrics": run.metrics,
        "runs/a/metrics/metrics.jsonl": run.metrics_jsonl,
        "runs/a/evaluation/ict.json": run.evaluation("ict"),
        "runs/a/status/trainer-00002.json": run.trainer_status(2),
        "runs/a/status/embedder.json": run.embedder_status,
        "runs/a/corpus": run.corpus,
        "runs/a/logs": run.logs,
        "runs/a/config-train.gin": run.config_file("train"),
        "runs/a/config-train.2.gin": run.config_file("train", 2),
        "runs/a/report.json": run.report_json,
        "runs/a/report.html": run.report_html,
        "runs/a/stages/ict/index/12345678": run.stage("ict").index_version(12345678),
    }
    assert {place: path.as_posix() for place, path in places.items()} == {place: place for place in places}


def test_of_takes_a_path_a_text_or_a_run():
    run = RunDir.of("a")
    assert run == RunDir.of(Path("a")) == RunDir.of(run) == RunDir(Path("a"))


def test_json_comes_back(tmp_path):
    path = tmp_path / "deep" / "er" / "status.json"
    write_json_atomically(path, {"step": 3, "state": "läuft"})
    assert read_json(path) == {"step": 3, "state": "läuft"}
    assert os.listdir(path.parent) == ["status.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    write_json_atomically(path, 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomically(path, float("nan"))
    with pytest.raises(TypeError):
        write_json_atomically(path, object())

    def disk_full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_json_atomically(path, 2)
    assert read_json(path) == 1
    assert os.listdir(tmp_path) == ["status.json"]


def test_written_files_follow_the_umask(tmp_path):
    write_text_atomically(tmp_path / "a", "a")
    (tmp_path / "b").write_text("b")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "status.json"
    write_json_atomically(path, ["0"] * 2000)
    writers = [
        threading.Thread(target=lambda text=text: [write_json_atomically(path, [text] * 2000) for _ in range(20)])
        for text in "12"
    ]
    for writer in writers:
        writer.start()
    for _ in range(100):
        assert len(set(read_json(path))) == 1
    for writer in writers:
        writer.join()
    assert os.listdir(tmp_path) == ["status.json"]


def test_reading_what_is_not_there_or_torn(tmp_path):
    path = tmp_path / "status.json"
    with pytest.raises(FileNotFoundError):
        read_json(path)
    path.write_text(json.dumps({"step": 3})[:-3])
    with pytest.raises(ValueError, match=r"status\.json does not hold JSON"):
        read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"status\.json does not hold JSON"):
        read_json(path)


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    check_can_write(tmp_path, "--run_dir")
    check_can_write(tmp_path / "new" / "deep", "--run_dir")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    below = re.escape(str(tmp_path / "file" / "run"))
    with pytest.raises(
        ValueError, match=rf"--run_dir: expected a folder, got {below}, where .*file is a file; name another"
    ):
        check_can_write(tmp_path / "file" / "run", "--run_dir")

    def refuse(**where):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(
        ValueError, match=r"output_dir: expected a folder that can be .* \(Permission denied\); name another, or"
    ):
        check_can_write(tmp_path / "new", "output_dir")
