"""The ablation launcher: what it runs, what it does with a failure, and its table."""

import os
import re
import sys

import pytest

from realm_jax import config
from realm_jax.run_dir import RunDir, write_json_atomically
from tests.launch.stub_stages import STOPPED, load_launcher


@pytest.fixture(scope="module")
def ablations():
    return load_launcher("ablations")


def test_every_row_for_every_seed_with_its_own_world(ablations, tmp_path):
    work = list(ablations.Ablations(RunDir.of(tmp_path), [0, 7], 5, []).runs())
    assert [item.name for item in work[:3]] == ["REALM 0", "REALM 7", "index never refreshed 0"]
    assert len(work) == 2 * len(ablations.VARIANTS)
    train, evaluate = work[1].commands
    assert train[3] == "train" and evaluate[3] == "evaluate"
    for command in (train, evaluate):
        assert "--gin.world.WorldConfig.seed=7" in command and "--gin.train.num_steps=5" in command
        assert "--gin.refresh.RefreshConfig.mode=synchronous" in command
    assert "--gin.train.seed=7" in train and "--gin.train.seed=7" not in evaluate
    assert "--gin.refresh.RefreshConfig.mode=frozen" in work[2].commands[0]
    # the warm starts are found where evaluation looks for them
    stage = RunDir.of(tmp_path / "seed7" / "REALM").stage("ict").path
    (tmp_path / "seed7" / "stages" / "ict").mkdir(parents=True)
    assert stage.is_dir() and stage.samefile(tmp_path / "seed7" / "stages" / "ict")


def test_late_versions_are_replayed(ablations, tmp_path):
    """At any step both rows have embedded as many documents: the whole index in 80 steps, or a quarter in 20."""
    run = ablations.Ablations(RunDir.of(tmp_path), [0], 200, [], ablations.TABLES["refresh"])
    work = {item.name: item.commands[0] for item in run.runs()}
    swaps = {}
    for name in ("whole index, 80 steps late 0", "a quarter at a time, 20 steps late 0"):
        bindings = config.bind("train", [ablations.RUN_FILE], [part.removeprefix("--gin.") for part in work[name] if part.startswith("--gin.")])  # fmt: skip
        refresh = bindings["refresh"]
        assert refresh.mode == "replay" and refresh.embedder == "in_trainer"
        swaps[name] = refresh.read_replay()
        assert refresh.index.shards_per_version == (None if "whole" in name else 1)
    whole, parts = swaps.values()
    assert whole == {100: 20, 180: 100}
    assert parts == {step: step - 20 for step in range(40, 200, 20)}
    assert "--gin.refresh.RefreshConfig.mode=synchronous" in work["REALM 0"]


def test_what_is_done_is_not_done_again(ablations, tmp_path):
    all_of_it = ablations.Ablations(RunDir.of(tmp_path), [0], 5, [])
    write_json_atomically(all_of_it.of_variant(0, ablations.VARIANTS[2]).evaluation("reading"), {})
    names = [item.name for item in all_of_it.runs()]
    assert "uniform masks 0" not in names and len(names) == len(ablations.VARIANTS) - 1


def test_commands_of_one_work_run_in_order_and_a_failure_names_the_log(ablations, tmp_path):
    run = ablations.Ablations(RunDir.of(tmp_path), [0], 5, [])
    said = tmp_path / "said"
    says = [[sys.executable, "-S", "-c", f"open({str(said)!r}, 'a').write({word!r})"] for word in "ab"]
    run.follow([ablations.Work("well", says)])
    assert said.read_text() == "ab"
    fails = [sys.executable, "-S", "-c", "raise SystemExit('no such corpus')"]
    with pytest.raises(SystemExit, match=re.escape(f"{tmp_path}/logs/one_work.log:")) as error:
        run.follow([ablations.Work("one work", [fails, says[0]])])
    assert "no such corpus" in str(error.value) and said.read_text() == "ab"


def test_a_trainer_stopped_before_its_end_is_not_evaluated(ablations, tmp_path, monkeypatch):
    run = ablations.Ablations(RunDir.of(tmp_path), [0], 5, [])
    train, evaluate = next(iter(run.runs())).commands
    begun = []

    def child(name, command, log, cores, environment):
        begun.append(command[3])
        return original(name, [sys.executable, "-S", "-c", STOPPED], log, cores, environment)

    original = ablations.Child
    monkeypatch.setattr(ablations, "Child", child)
    with pytest.raises(SystemExit, match=r"^one work: .* stopped by SIGTERM at step 120 of 320; the same command"):
        run.follow([ablations.Work("one work", [train, evaluate])])
    assert begun == ["train"]


def test_the_table_is_of_means_and_sample_deviations(ablations):
    rows = {"REALM": [{"recall_at_1": 0.4}, {"recall_at_1": 0.5}, {"recall_at_1": 0.6}]}
    text = ablations.table(rows, [0, 1, 2])
    assert "| REALM | 0.500 ± 0.100 | – | – | – | – | – |" in text.splitlines()
    assert "Seeds: 0, 1, 2" in text
    assert "| REALM | 0.400 | –" in ablations.table({"REALM": rows["REALM"][:1]}, [0])


def test_rows_come_from_the_evaluations(ablations, tmp_path):
    run = ablations.Ablations(RunDir.of(tmp_path), [0], 5, [])
    for rank, variant in enumerate(ablations.VARIANTS):
        place = run.of_variant(0, variant)
        rows = {"checkpoint": {"recall_at_1": rank}, "ict": {"recall_at_1": -1}, "bm25": {"recall_at_1": -2}}
        rows["served_index"] = {"recall_at_1": -3}
        write_json_atomically(place.evaluation("retrieval"), {"rows": rows})
        reading = {name: {"with_retrieval": 10 * rank} for name in ("realm", "ict", "bm25")}
        write_json_atomically(place.evaluation("reading"), {"rows": reading})
    found = run.rows()
    assert found["ICT only"] == [{"recall_at_1": -1, "with_retrieval": 0}]
    assert found["BM25"] == [{"recall_at_1": -2, "with_retrieval": 0}]
    assert found["per-span marginal"] == [{"recall_at_1": 4, "with_retrieval": 40}]
    assert found[ablations.SEARCHED_STALE] == [{"recall_at_1": -3}]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a system that binds processes to cores")
def test_children_stay_on_their_cores(ablations, tmp_path):
    core = min(os.sched_getaffinity(0))
    says = "import os, threading, time; time.sleep(1)\n"
    says += "threading.Thread(target=lambda: print(sorted(os.sched_getaffinity(0)))).start()"
    child = ablations.Child("says", [sys.executable, "-S", "-c", says], tmp_path / "log", [core], {})
    assert child.process.wait(60) == 0 and child.last_words(1) == f"[{core}]"


def test_children_keep_their_memory_unless_the_user_has_set_it_up(ablations, tmp_path, monkeypatch):
    says = [sys.executable, "-S", "-c", "import os; print(os.environ['GLIBC_TUNABLES'])"]
    for mine, expected in ((None, "glibc.malloc.hugetlb=1:"), ("glibc.malloc.check=0", "glibc.malloc.check=0")):
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if mine:
            monkeypatch.setenv("GLIBC_TUNABLES", mine)
        child = ablations.Child("says", says, tmp_path / "log", (), {})
        assert child.process.wait(60) == 0 and child.last_words(1).startswith(expected)
        child.stop()
