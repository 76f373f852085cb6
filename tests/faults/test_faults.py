"""A few faults of some kinds, and the table: `make faults` injects all of them."""

import json
import sys

import pytest

from tests.faults import damage, disk, embedder_killed, preemption, trainer_killed
from tests.faults.jobs import Workshop
from tests.faults.soak import Sample, growth
from tests.faults.table import Row, markdown
from tests.retrieval.made_index import make_corpus, make_version


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    with Workshop(tmp_path_factory.mktemp("faults")) as made:
        yield made


def all_survived(row, injected):
    assert (row.injected, row.survived, list(row.failures)) == (injected, injected, [])


def test_the_table():
    rows = [Row("killed", 3, 2, "nothing", [4.0, 2.0, 9.0], "seed 0", ["it hung"]), Row("full", 1, 1, "a refresh")]
    assert markdown(rows) == (
        "| fault | injected | survived | lost | seconds to recover |\n"
        "|---|---:|---:|---|---|\n"
        "| killed | 3 | 2 | nothing | 4.0, at most 9.0 |\n"
        "| full | 1 | 1 | a refresh | – |\n"
        "\n- **killed**: seed 0\n  - not survived: it hung\n"
    )


def test_what_grows_in_a_soak_is_told():
    def samples(**changes):
        steady = {
            "resident_mib": (500.0, 300.0),
            "open_files": (20, 10),
            "threads": (30, 10),
            "versions": 3,
            "disk_mib": 9.0,
        }
        grown = [steady | {name: change(number) for name, change in changes.items()} for number in range(10)]
        return [Sample(360.0 * number, metrics_mib=1.0, **one) for number, one in enumerate(grown)]

    assert growth(samples())[0] == []
    failures, figures = growth(samples(resident_mib=lambda number: (500.0 + 4 * number, 300.0)))
    assert failures == ["the trainer's memory grew by 16.0 MiB in the second half"]  # 4 MiB each tenth of an hour
    assert "trainer: 520 MiB at half time, 536 at the end, slope +40.0 MiB an hour" in figures
    (told,) = growth(samples(open_files=lambda number: (20, 10 + number)))[0]
    assert told == "the embed job opened more files or threads in the second half than in the first: [14, 19], [10, 10]"
    assert growth(samples(versions=lambda number: 3 + number))[0] == ["versions or disk grew: [7, 12], [9.0, 9.0]"]


class _Broken(Workshop):
    """Its whole run is made up, and its trainers end by themselves."""

    ends = "print('before it began', file=sys.stderr); sys.exit(2)"

    def whole(self, name, *bindings):
        run = self.run(name)
        run.path.mkdir(parents=True)
        run.config_file("train").write_text("")
        began = run.config_file("train").stat().st_mtime
        run.metrics.mkdir()
        run.metrics_jsonl.write_text(json.dumps({"step": 24, "time": began + 100.0}) + "\n")
        return run

    def start(self, job, run, *bindings, **how):
        return self.start_command([sys.executable, "-c", f"import sys; {self.ends}"], f"{run.path.name}-{job}")


def test_trainers_that_always_fail_are_a_failure_with_their_last_words(tmp_path):
    with _Broken(tmp_path) as broken:
        row = trainer_killed.kill_trainers(broken, 1)
    assert (row.injected, row.survived) == (0, 0)
    *ended, too_few = row.failures
    assert len(ended) == 4 and all("ended by itself with 2: before it began" in failure for failure in ended)
    assert too_few == "only 0 of 1 trainers could be killed in 4 runs"


@pytest.mark.faults
def test_every_file_of_a_version_damaged(tmp_path):
    make_version(tmp_path / "index", make_corpus(tmp_path / "corpus", 20), backend="scann")
    row = damage.damage_version(tmp_path / "index" / "00000300", tmp_path / "damaged")
    all_survived(row, row.injected)
    assert row.injected == 33 and row.notes == "damage without effect on what is served: shard.json"


@pytest.mark.faults
def test_a_run_directory_that_may_not_be_written_to(workshop):
    all_survived(disk.refuse_read_only(workshop), 2)  # a trainer, an embed job


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_jobs_killed_and_pre_empted(workshop):
    all_survived(embedder_killed.kill_embedders(workshop, 2), 2)
    all_survived(trainer_killed.kill_trainers(workshop, 3), 3)
    all_survived(preemption.preempt(workshop, 1), 1)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_full_disk(workshop):
    row = disk.fill_disks(workshop, 1)
    all_survived(row, row.injected)
