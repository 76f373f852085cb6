import os
import signal
import subprocess
import sys
import time

import pytest

from realm_jax.corpus import cutting
from realm_jax.corpus.cutting import Cutter, cut_in_order, in_batches
from realm_jax.corpus.sources import Article
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer

ARTICLES = [Article(str(i), "", "a. " * (i + 1)) for i in range(40)]


class TroubledTagger:
    """Fails at a text of 60 characters, in the way asked for."""

    def __init__(self, trouble):
        self.trouble = trouble

    def spans(self, text, sentences):
        if len(text) == 60:
            self.trouble()
        return []


def fail():
    raise ValueError(f"no spans; parent {os.getppid()}")


def die():
    os._exit(9)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(cutting, "BATCH_CHARS", 100)
    monkeypatch.setattr(cutting, "BATCHES_BEFORE_WORKERS", 1)


def cut(num_workers, tagger=None):
    tokenizer = WordPieceTokenizer([*SPECIAL_PIECES, "a", "."])
    cutter = Cutter(tokenizer, tagger, block_len=8, title_len=4)
    return list(cut_in_order(cutter, in_batches(iter(ARTICLES)), num_workers))


def test_batches_keep_order_and_bound(small_batches):
    here, in_workers = cut(0), cut(2)
    assert len(here) > 10
    for batches in (here, in_workers):
        assert [article for batch, _ in batches for article in batch] == ARTICLES
        assert all(sum(len(article.text) for article in batch[:-1]) < 100 for batch, _ in batches)
    assert [made.records for _, made in here] == [made.records for _, made in in_workers]


def test_few_batches_start_no_worker(monkeypatch):
    monkeypatch.setattr(cutting, "ProcessPoolExecutor", None)
    assert len(cut(8)) == 1


def test_an_error_in_a_worker_is_raised_here(small_batches):
    with pytest.raises(ValueError, match=f"no spans; parent {os.getpid()}"):
        cut(1, TroubledTagger(fail))


def test_a_worker_that_dies_is_told(small_batches):
    with pytest.raises(
        ChildProcessError, match=r"a worker process of the corpus job died: .*set a smaller num_workers"
    ):
        cut(1, TroubledTagger(die))


SLOW_BUILD = """
import os, sys, time
from pathlib import Path
from realm_jax.corpus import cutting
from realm_jax.corpus.sources import Article
from realm_jax.text.tokenizer import SPECIAL_PIECES
from realm_jax.text.word_piece import WordPieceTokenizer

class SlowTagger:
    def spans(self, text, sentences):
        Path(sys.argv[1], str(os.getpid())).touch()
        time.sleep(0.2)
        return []

if __name__ == "__main__":
    cutting.BATCHES_BEFORE_WORKERS = 1
    cutter = cutting.Cutter(WordPieceTokenizer([*SPECIAL_PIECES, "a"]), SlowTagger(), 8, 4)
    for _ in cutting.cut_in_order(cutter, ([Article(str(i), "", "a")] for i in range(100_000)), 2):
        pass
"""


@pytest.mark.parametrize("how", ["Ctrl-C", "parent killed"])
def test_an_interrupt_leaves_no_process(tmp_path, how):
    (tmp_path / "slow.py").write_text(SLOW_BUILD)
    seen = tmp_path / "seen"
    seen.mkdir()
    job = subprocess.Popen(
        [sys.executable, tmp_path / "slow.py", seen], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        _wait_until(lambda: len(list(seen.iterdir())) == 3, 300)  # this process and two workers are at work
        if how == "Ctrl-C":
            os.killpg(job.pid, signal.SIGINT)  # as a terminal does
        else:
            job.kill()
        _, errors = job.communicate(timeout=60)
        assert job.returncode == (-signal.SIGINT if how == "Ctrl-C" else -signal.SIGKILL)
        assert errors.count("Traceback") == (how == "Ctrl-C")  # the workers are silent
        _wait_until(lambda: not _is_group_alive(job.pid), 60)
    finally:
        if _is_group_alive(job.pid):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


def _wait_until(condition, timeout_secs):
    end = time.monotonic() + timeout_secs
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _is_group_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
