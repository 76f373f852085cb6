"""A trained run's answers when the world has changed and its documents with it, without training: RAG's index hot swap.

    python launch/change_of_world.py --run_dir=runs/rag --gin_file=runs/rag_tiny.gin --corpus=runs/pretrain/corpus \
      --gin.QUESTIONS=runs/pretrain/corpus/questions_train.jsonl
    python launch/change_of_world.py --run_dir=runs/qa_minilm --gin_file=runs/open_qa_minilm.gin --corpus=runs/minilm/corpus \
      --gin.QUESTIONS=train.jsonl --before=encyclopedia/2016 --after=encyclopedia/2019

Asks what has changed of the documents of both days (Lewis et al. 2020, arXiv:2005.11401, section 4.5). Of the embedded corpus the later
day is generated: the same world, half of its facts with another object; asked are the questions about entities that are held out. Of
two collections of articles those that both have, by id, are compared, and asked are the statements that differ by one name or number.
The later collection replaces articles of the earlier one; the others stay.

Writes RUN/change_of_world/table.md and table.json, and beside them the corpora, which are not made again, and the questions.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from processes import Display, Stopped, StopSignals, run_to_end

from realm_jax.corpus.info import CorpusInfo, read_info
from realm_jax.corpus.source_text import SourceText
from realm_jax.corpus.sources import Article
from realm_jax.evaluation.changed_statements import changed_statements
from realm_jax.run_dir import RunDir, read_json, write_json_atomically, write_text_atomically

DAYS = ("before", "after")
ALONE = "alone"  # the question without documents
FOLDER = "change_of_world"
_FILE_AND_LINE = re.compile(r"\.\w+:\d+$")  # what an article is called that has no id


class ChangeOfWorld:
    """The two corpora, the questions and the evaluations of one trained run."""

    def __init__(self, run: RunDir, gin_file: str, corpus: Path, sources: Sequence[str], others: Sequence[str]):
        self.run, self.gin_file, self.others, self.sources = run, gin_file, list(others), sources
        self.folder = run.path / FOLDER
        self.trained_on = corpus
        self.info: CorpusInfo = read_info(corpus)
        self.world: dict[str, Any] | None = None if sources else self.info.settings.get("world")
        if not sources and self.world is None:
            raise SystemExit(
                f"{corpus} is not the embedded corpus, of which later days can be generated; give two collections, --before and --after"
            )
        self.display = Display()
        self.check_signals: Callable[[], None] = lambda: None  # asked at each look at a job; raises Stopped

    def corpus(self, day: str) -> Path:
        """Where the corpus of a day lies; the embedded one's earlier day is the corpus that was trained on."""
        return self.trained_on if self.world is not None and day == "before" else self.folder / day / "corpus"

    def questions(self, day: str) -> Path:
        return self.folder / f"changed_{day}.jsonl"

    def answers(self, documents: str, day: str) -> Path:
        """What the run answered to the questions of a day, given the documents of one."""
        return self.run.evaluation(f"{FOLDER}-{documents}-changed_{day}-answers")

    def make_corpora(self) -> None:
        """Where one is there already, the corpus job looks whether it is the same, and refuses one of other documents or settings."""
        for day in DAYS:
            directory = self.corpus(day)
            if directory == self.trained_on:
                continue
            command = [
                sys.executable, "-m", "realm_jax", "corpus", f"--run_dir={directory.parent}",
                f"--gin_file=data/{'world' if self.world is not None else 'documents'}.gin",
                f"--gin.VOCAB_SIZE={self.info.vocab_size}",
                f"--gin.build.corpus.output_dir={directory}",
                f"--gin.build.corpus.tokenizer={self.trained_on / 'tokenizer'}",
                f"--gin.build.corpus.block_len={self.info.block_len}",
                f"--gin.build.corpus.title_len={self.info.title_len}",
            ]  # fmt: skip
            if self.world is not None:
                command += [
                    f"--gin.world.WorldConfig.{name}={value}"
                    for name, value in self.world.items()
                    if name != "revision"
                ]
                command += [f"--gin.world.WorldConfig.revision={self.world.get('revision', 0) + 1}"]
            else:
                command += [f"--gin.SOURCE={self._articles(day)}"]
            self.follow(f"corpus {day}", command)

    def _articles(self, day: str) -> Path:
        """One file of all articles of a day: those of the later collection in place of the earlier ones."""
        articles = {article.id: article for article in self._read("before")}
        if day == "after":
            articles |= {article.id: article for article in self._read("after")}
        file = self.folder / day / "articles.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = ({"id": article.id, "title": article.title, "text": article.text} for article in articles.values())
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if (
            not file.exists() or file.read_text(encoding="utf-8") != content
        ):  # the corpus job sees a new file as new documents
            write_text_atomically(file, content)
        return file

    def _read(self, day: str) -> list[Article]:
        """The articles of a day's collection.

        Raises:
          ValueError: half of its records cannot be read, or its articles have no ids by which to know them again.
        """
        dropped: Counter[str] = Counter()
        source = SourceText((self.sources[DAYS.index(day)],), "auto", 0.5)
        articles = list(source.read(dropped))
        source.check_dropped(dropped, len(articles))
        own = [article for article in articles if _FILE_AND_LINE.search(article.id)]
        if own:
            raise ValueError(
                f"{self.sources[DAYS.index(day)]} has articles without an id, such as {own[0].id}; give each the id that it has on both days"
            )
        return articles

    def ask(self) -> int:
        """Writes the questions of both days; returns how many."""
        if self.world is not None:
            read = [_lines(self.corpus(day) / "questions_heldout.jsonl") for day in DAYS]
            if [row["question"] for row in read[0]] != [row["question"] for row in read[1]]:
                raise SystemExit(
                    f"{self.corpus('after')} is of another world than {self.trained_on}; remove {self.folder}"
                )
            pairs = [
                (was["question"], was["answer"], now["answer"])
                for was, now in zip(*read, strict=True)
                if was["answer"] != now["answer"]
            ]
        else:
            found = changed_statements(self._read("before"), self._read("after"))
            pairs = [(statement.question, [statement.before], [statement.after]) for statement in found]
        if not pairs:
            raise SystemExit("nothing that can be asked has changed between the two days")
        for number, day in enumerate(DAYS):
            rows = [json.dumps({"question": pair[0], "answer": pair[1 + number]}, ensure_ascii=False) for pair in pairs]
            write_text_atomically(self.questions(day), "\n".join(rows) + "\n")
        return len(pairs)

    def answer(self) -> None:
        """Asks both days' questions, given each day's documents."""
        for documents in DAYS:
            files = tuple(str(self.questions(day)) for day in DAYS)
            command = [
                sys.executable, "-m", "realm_jax", "evaluate", f"--run_dir={self.run.path}", f"--gin_file={self.gin_file}",
                f"--gin.CORPUS={self.trained_on}", *self.others,
                f"--gin.evaluate.corpus={self.corpus(documents)}", f"--gin.evaluate.questions={files}",
                f"--gin.evaluate.name={FOLDER}-{documents}", "--gin.evaluate.afresh=True", "--gin.evaluate.served=False",
                "--gin.evaluate.bm25=False", "--gin.evaluate.stages=()",
            ]  # fmt: skip
            self.follow(f"documents {documents}", command)

    def follow(self, title: str, command: list[str]) -> None:
        """Runs a job to its end.

        Raises:
          SystemExit: it failed; its log is named.
          Stopped: by a signal.
        """
        run_to_end(
            title, command, self.folder / "logs" / f"{title.replace(' ', '_')}.log", self.display, self.check_signals
        )

    def rows(self) -> dict[str, dict[str, dict[str, float]]]:
        """By documents, then by the day of the questions: the figures of the run's own answers."""
        found: dict[str, dict[str, dict[str, float]]] = {documents: {} for documents in (*DAYS, ALONE)}
        for day in DAYS:
            for documents in DAYS:
                rows = read_json(self.answers(documents, day))["rows"]
                found[documents][day] = rows["rag"] if "rag" in rows else rows["open_qa"]
                if "rag" in rows:  # a reader that extracts has nothing to extract from
                    found[ALONE][day] = rows["closed_book"]
        return {name: by_day for name, by_day in found.items() if by_day}


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: exact match and F1 in per cent."""
    number = int(rows["before"]["before"]["questions"])
    lines = [
        f"| {number} questions whose answer changed | answers of before: EM | F1 | answers of after: EM | F1 |",
        "|---|---:|---:|---:|---:|",
    ]
    for documents, by_day in rows.items():
        cells = [f"{100 * by_day[day][figure]:.1f}" for day in DAYS for figure in ("exact_match", "f1")]
        name = "the question alone" if documents == ALONE else f"documents of {documents}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", required=True, help="a run that answers questions: `rag` or `open_qa`")
    parser.add_argument("--gin_file", required=True, help="its run file")
    parser.add_argument("--corpus", required=True, type=Path, help="the corpus that it was trained with")
    parser.add_argument("--before", help="articles of the earlier day, in any format of the corpus job")
    parser.add_argument("--after", help="those of them that have changed, with the same ids")
    known, others = parser.parse_known_args(arguments)
    if any(not argument.startswith("--gin.") for argument in others):
        parser.error(f"unknown argument {others[0]}; besides the above only --gin.NAME.PARAM=VALUE is passed on")
    if (known.before is None) != (known.after is None):
        parser.error("--before and --after go together")
    sources = () if known.before is None else (known.before, known.after)
    try:
        change = ChangeOfWorld(RunDir.of(known.run_dir), known.gin_file, known.corpus, sources, others)
    except (ValueError, FileNotFoundError) as refused:
        parser.error(str(refused))
    change.check_signals = StopSignals().check
    try:
        change.make_corpora()
        change.ask()
        change.answer()
    except Stopped as stopped:
        change.display.note(str(stopped))
        return stopped.exit_status
    except (ValueError, FileNotFoundError) as refused:
        raise SystemExit(str(refused)) from refused
    rows = change.rows()
    write_json_atomically(change.folder / "table.json", rows)
    write_text_atomically(change.folder / "table.md", table(rows) + "\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
