"""Metrics survive kills, resumes and full disks."""

import errno
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from realm_jax.run_dir import RunDir
from realm_jax.training.metrics import MetricWriter, read_metrics, series


def records(path):
    """The payloads of a TFRecord file: length (8 bytes), checksum (4), payload, checksum (4)."""
    content = path.read_bytes()
    while content:
        length = int.from_bytes(content[:8], "little")
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def events(run):
    return [event for path in sorted(run.metrics.glob("events*")) for event in records(path)]


def test_lines_and_events_hold_the_same_numbers(tmp_path):
    run = RunDir(tmp_path)
    with MetricWriter(run) as writer:
        writer.write(1, {"loss": 2.5, "index_version": np.int64(300)})
        writer.write(2, {"loss": jnp.float32(1.25), "null_document_prob": jnp.asarray(0.5, jnp.bfloat16)})
    first, second = [json.loads(line) for line in run.metrics_jsonl.read_text().splitlines()]
    assert first.pop("time") > 1.7e9
    assert first == {"step": 1, "loss": 2.5, "index_version": 300}
    assert second["loss"] == 1.25 and second["null_document_prob"] == 0.5
    scalars = [(e.step, v.tag, v.simple_value) for e in events(run) for v in e.summary.value]
    assert scalars == [
        (1, "loss", 2.5),
        (1, "index_version", 300.0),
        (2, "loss", 1.25),
        (2, "null_document_prob", 0.5),
    ]


def test_a_line_is_in_the_file_before_write_returns(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(7, {"loss": 1.0})
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [7]
    writer.close()


def test_non_finite_numbers_are_legal_json_and_come_back(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})

    def refuse(name):
        raise AssertionError(name)

    line = RunDir(tmp_path).metrics_jsonl.read_text()
    assert json.loads(line, parse_constant=refuse)["c"] == "-Infinity"
    (entry,) = read_metrics(tmp_path)
    assert math.isnan(entry["a"]) and entry["b"] == math.inf and entry["c"] == -math.inf


def test_resume_drops_the_given_step_and_later(tmp_path):
    run = RunDir(tmp_path)
    with MetricWriter(run) as writer:
        for step in (10, 20, 30, 40):
            writer.write(step, {"loss": float(step)})
    with run.metrics_jsonl.open("ab") as file:
        file.write(b'{"step": 50, "lo')  # the process died here
    with MetricWriter(run) as writer:
        writer.resume_from(30)
        writer.write(30, {"loss": 0.5})
    steps, values = series(read_metrics(run), "loss")
    np.testing.assert_array_equal(steps, [10, 20, 30])
    np.testing.assert_array_equal(values, [10.0, 20.0, 0.5])
    # TensorBoard hides events from the step of a session start on
    assert [event.step for event in events(run) if event.HasField("session_log")] == [30]
    assert not list(run.metrics.glob(".*tmp"))


def test_resume_after_the_first_write_is_our_bug(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {})
        with pytest.raises(RuntimeError, match="before the first write"):
            writer.resume_from(1)


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path):
    run = RunDir(tmp_path)
    run.metrics.mkdir()
    run.metrics_jsonl.write_bytes(b'{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
    assert [entry["step"] for entry in read_metrics(run)] == [1]
    with MetricWriter(run) as writer:
        writer.write(3, {"loss": 1.0})
    assert [entry["step"] for entry in read_metrics(run)] == [1, 3]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    run = RunDir(tmp_path)
    run.metrics.mkdir()
    run.metrics_jsonl.write_bytes(b'{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*remove the line"):
        read_metrics(run)
    run.metrics_jsonl.write_bytes(b'{"loss": 1}\n')
    with pytest.raises(ValueError, match='integer "step"'):
        read_metrics(run)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\0\0\0{\0\0\0}", "it holds NUL bytes, as a loss of power leaves them"),
        (b"\0" * 64 + b'{"step": 2}', "it holds NUL bytes, as a loss of power leaves them"),
        (b'{"step": 2, "\xff\xfe": 1}', "it is not UTF-8"),
    ],
)
def test_a_resume_names_a_line_that_is_not_text(tmp_path, line, reason):
    run = RunDir(tmp_path)
    run.metrics.mkdir()
    content = b'{"step": 1}\n' + line + b'\n{"step": 3}\n'
    run.metrics_jsonl.write_bytes(content)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 2: {reason}; remove the line to go on$"):
        MetricWriter(run).resume_from(3)
    assert run.metrics_jsonl.read_bytes() == content


def test_no_file_is_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


def test_other_processes_write_nothing(tmp_path):
    with MetricWriter(tmp_path, process_index=1) as writer:
        writer.resume_from(3)
        writer.write(4, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_metric_is_one_number(tmp_path):
    writer = MetricWriter(tmp_path)
    with pytest.raises(ValueError, match=r"metric 'loss' must be one number, got float32 of shape \(2,\)"):
        writer.write(1, {"loss": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match="metric 'name'"):
        writer.write(1, {"name": "text"})


class FullDisk:
    """A file that takes half of a line, then has no room, as often as told."""

    def __init__(self, file, refusals):
        self.file, self.refusals = file, refusals

    def write(self, line):
        if self.refusals:
            self.refusals -= 1
            self.file.write(line[: len(line) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(line)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_loses_lines_but_neither_the_run_nor_the_file(tmp_path, caplog):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    writer._lines = FullDisk(writer._lines, refusals=2)
    for step in (2, 3, 4):
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 4]
    refusals = [record for record in caplog.records if "No space left" in record.getMessage()]
    assert len(refusals) == 1 and "step 2" in refusals[0].getMessage()


def test_series_leaves_out_entries_without_the_metric():
    steps, values = series([{"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": 4}], "a")
    np.testing.assert_array_equal(steps, [1, 3])
    np.testing.assert_array_equal(values, [2, 4])
    assert series([], "a")[0].shape == (0,)
