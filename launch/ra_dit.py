"""RA-DIT's ablation in small (Lin et al. 2023, arXiv:2310.01352, table 4): what each fine-tuning is worth on the embedded corpus.

    python launch/ra_dit.py --run_dir=runs/ra_dit_ablation --retriever=runs/pretrain --seeds=0,1

For every seed a language model is trained on the corpus's documents and fine-tuned with retrieved documents (LM-ft); and, to compare,
on the same questions without any (instruction tuning). Before and after LM-ft it is asked what it makes of the documents found for each
question, and a retriever is fine-tuned by what either says (R-ft). Then the language models alone, and with the retrievers, answer
questions about entities that no training question was about; from documents drawn at random, too. At last each says how unlikely the right
answers are without documents, after retrieved ones and after random ones. Runs that are done are not done again. Writes RUN/table.md and
RUN/table.json.
"""

import argparse
import os
import statistics
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from processes import Display, Stopped, StopSignals, run_to_end

from realm_jax.run_dir import RunDir, read_json, write_json_atomically, write_text_atomically

LANGUAGE_MODELS = {"before": "lm", "instructed": "lm_instructed", "after": "lm_ft"}
"""The runs of the language model: before its fine-tuning, after one without documents, and after RA-DIT's."""

INSTRUCTED = ("--gin.instruction_tuning.InstructionTuning.num_documents=0", "--gin.loop.train.num_steps=130")
"""Of the fine-tuning without documents. A row holds nearly five times as many questions, so that each is read as often in fewer steps."""

RETRIEVERS = {"before": "", "by before": "retriever_by_lm", "by after": "retriever"}
"""The runs of the retriever: before its fine-tuning, and fine-tuned by the language model's judgements, before and after its own."""

ROWS = {
    "language model alone": ("before", None),
    "instruction tuning alone": ("instructed", None),
    "LM-ft alone": ("after", None),
    "retrieval, nothing fine-tuned": ("before", "before"),
    "retrieval, instruction tuning": ("instructed", "before"),
    "LM-ft": ("after", "before"),
    "R-ft, judged before LM-ft": ("before", "by before"),
    "R-ft, judged after LM-ft": ("before", "by after"),
    "both, judged before LM-ft": ("after", "by before"),
    "both, judged after LM-ft": ("after", "by after"),
}
"""The table: which language model, which retriever."""

LIKELIHOODS = {"language model": "before", "instruction tuning": "instructed", "LM-ft": "after"}
"""The table of likelihoods: which language model."""

DOCUMENTS = ("none", "retrieved", "random")
"""What stands before the answers of which the language models say how unlikely they are."""

JUDGED_QUESTIONS = 400

RECALLS = ("answer_recall_at_1", "answer_recall_at_5", "answer_recall_at_20")


class RaDitAblation:
    """The runs of all seeds, one after the other."""

    def __init__(self, run: RunDir, retriever: RunDir, corpus: Path, seeds: Sequence[int], others: Sequence[str]):
        self.run, self.retriever, self.corpus = run, retriever, corpus
        self.seeds, self.others = list(seeds), list(others)
        # in the retriever's run, where other ablations may have left theirs
        self.label = f"{run.path.name}-{zlib.crc32(os.fsencode(Path(str(run.path)).resolve())):08x}"
        self.display = Display()
        self.check_signals: Callable[[], None] = lambda: None  # asked at each look at a job; raises Stopped

    def of_seed(self, seed: int, name: str) -> RunDir:
        return RunDir.of(self.run.path / f"seed{seed}" / name)

    def go(self) -> None:
        """Does what is missing.

        Raises:
          SystemExit: a job failed; its log is named.
          Stopped: by a signal.
        """
        questions = f"--gin.SOURCES={self.corpus / 'questions_train.jsonl'}"
        for seed in self.seeds:
            lm, lm_instructed, lm_ft = (self.of_seed(seed, name) for name in LANGUAGE_MODELS.values())
            seeded = f"--gin.train.seed={seed}"
            self.job("train", lm, "language_model_tiny", seed, seeded)
            found = f"{self.label}-{seed}"
            named = f"--gin.retrieve.name={found}"
            self.job(
                "retrieve", self.retriever, "ra_dit_lm_tiny", seed, questions, named, f"--gin.retrieve.seed={seed}"
            )
            for tuned, own in ((lm_ft, ()), (lm_instructed, INSTRUCTED)):
                self.job(
                    "train", tuned, "ra_dit_lm_tiny", seed, seeded, f"--gin.WARM_START=('{lm.path}',)",
                    f"--gin.RETRIEVED={self.retriever.retrieved(found)}", *own,
                )  # fmt: skip
            for judge, judged in ((lm, f"{found}-judged-before"), (lm_ft, f"{found}-judged")):
                self.job(
                    "retrieve", self.retriever, "ra_dit_retriever_tiny", seed, questions, f"--gin.retrieve.name={judged}",
                    f"--gin.retrieve.seed={seed}", f"--gin.JUDGE={judge.path}",
                )  # fmt: skip
                self.job(
                    "train", self.of_retriever(seed, "by before" if judge is lm else "by after"), "ra_dit_retriever_tiny", seed, seeded,
                    f"--gin.WARM_START=('{self.retriever.path}',)", f"--gin.RETRIEVED={self.retriever.retrieved(judged)}",
                )  # fmt: skip
            for model, name in LANGUAGE_MODELS.items():
                language_model = f"--gin.LANGUAGE_MODEL={self.of_seed(seed, name).path}"
                for retriever in RETRIEVERS:
                    if (model, retriever) not in ROWS.values() or self.figures_file(seed, model, retriever).exists():
                        continue
                    self.job(
                        "evaluate", self.of_retriever(seed, retriever), "ra_dit_tiny", seed, f"--gin.TIED={retriever == 'before'}",
                        language_model, f"--gin.evaluate.questions={self.corpus / 'questions_heldout.jsonl'}",
                        f"--gin.evaluate.name={self.evaluation(seed, model)}", "--gin.evaluate.afresh=False",
                        "--gin.evaluate.bm25=False", "--gin.evaluate.random_documents=True",
                    )  # fmt: skip
                for documents in DOCUMENTS:
                    if self.likelihoods_file(seed, model, documents).exists():
                        continue
                    self.job(
                        "few_shot", self.retriever, "ra_dit_tiny", seed, "--gin.TIED=True", language_model,
                        f"--gin.few_shot.questions=nq={self.corpus / 'questions_heldout.jsonl'}",
                        f"--gin.few_shot.documents={documents}", "--gin.few_shot.reference_nll=True",
                        f"--gin.few_shot.max_questions={JUDGED_QUESTIONS}",
                        f"--gin.few_shot.name={self.evaluation(seed, model)}-{documents}",
                    )  # fmt: skip

    def evaluation(self, seed: int, model: str) -> str:
        """What an evaluation is called in the retriever's run."""
        return f"{self.label}-{seed}-{LANGUAGE_MODELS[model]}"

    def of_retriever(self, seed: int, retriever: str) -> RunDir:
        name = RETRIEVERS[retriever]
        return self.of_seed(seed, name) if name else self.retriever

    def figures_file(self, seed: int, model: str, retriever: str) -> Any:
        return self.of_retriever(seed, retriever).evaluation(f"{self.evaluation(seed, model)}-answers")

    def likelihoods_file(self, seed: int, model: str, documents: str) -> Any:
        return self.retriever.evaluation(f"{self.evaluation(seed, model)}-{documents}-few_shot")

    def job(self, name: str, run: RunDir, gin_file: str, seed: int, *bindings: str) -> None:
        """Runs a job to its end; one that has nothing to do ends at once.

        Raises:
          SystemExit: it failed; its log is named.
          Stopped: by a signal.
        """
        command = [
            sys.executable, "-m", "realm_jax", name, f"--run_dir={run.path}", f"--gin_file=runs/{gin_file}.gin",
            f"--gin.CORPUS={self.corpus}", *bindings, *(self.others if name == "train" else ()),
        ]  # fmt: skip
        title = f"seed {seed}: {name} {run.path.name}"
        run_to_end(
            title,
            command,
            self.run.path / "logs" / f"seed{seed}-{name}-{run.path.name}-{gin_file}.log",
            self.display,
            self.check_signals,
        )

    def figures(self) -> dict[str, dict[str, list[float]]]:
        """By row and figure, one number a seed."""
        found: dict[str, dict[str, list[float]]] = {}
        for row, (model, retriever) in ROWS.items():
            figures = found.setdefault(row, {})
            for seed in self.seeds:
                rows = read_json(self.figures_file(seed, model, retriever or "before"))["rows"]
                own = rows["closed_book" if retriever is None else "ra_dit"]
                figures.setdefault("exact_match", []).append(own["exact_match"])
                figures.setdefault("f1", []).append(own["f1"])
                if retriever is not None:
                    figures.setdefault("exact_match_random", []).append(rows["random"]["exact_match"])
                    for recall in RECALLS:
                        figures.setdefault(recall, []).append(own[recall])
        return found

    def likelihoods(self) -> dict[str, dict[str, list[float]]]:
        """−log p of the answers in nats, by language model and documents, one number a seed."""
        return {
            row: {
                documents: [
                    read_json(self.likelihoods_file(seed, model, documents))["rows"]["nq 0-shot"]["reference_nll"][
                        "mean"
                    ]
                    for seed in self.seeds
                ]
                for documents in DOCUMENTS
            }
            for row, model in LIKELIHOODS.items()
        }


def likelihood_table(likelihoods: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown: in nats an answer, mean ± standard deviation over the seeds."""
    lines = ["| −log p of the answer | no documents | retrieved | random |", "|---|---:|---:|---:|"]
    for row, of_row in likelihoods.items():
        lines.append(f"| {row} | {' | '.join(_cell(of_row[documents], 1, 2) for documents in DOCUMENTS)} |")
    return "\n".join(lines) + "\n"


def table(figures: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown: in per cent, mean ± standard deviation over the seeds."""
    columns = ("exact_match", "f1", "exact_match_random", *RECALLS)
    heads = ("EM", "F1", "EM, random documents", "R@1", "R@5", "R@20")
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for row, of_row in figures.items():
        cells = [_cell(of_row[column]) if column in of_row else "" for column in columns]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", required=True, help="where the runs lie")
    parser.add_argument("--retriever", required=True, help="a run of `make pretrain`: corpus, retriever and index")
    parser.add_argument("--corpus", type=Path, help="its corpus, where that is not in the run")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    settings, others = parser.parse_known_args(arguments)
    if bad := [other for other in others if not other.startswith("--gin.")]:
        parser.error(f"unknown arguments: {' '.join(bad)}")
    try:
        seeds = [int(seed) for seed in settings.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds: expected numbers with commas between, got {settings.seeds!r}")
    retriever = RunDir.of(settings.retriever)
    corpus = settings.corpus or Path(str(retriever.corpus))
    work = RaDitAblation(RunDir.of(settings.run_dir), retriever, corpus, seeds, others)
    work.check_signals = StopSignals().check
    try:
        work.go()
    except Stopped as stopped:
        work.display.note(str(stopped))
        return stopped.exit_status
    figures, likelihoods = work.figures(), work.likelihoods()
    write_json_atomically(work.run.path / "table.json", {"answers": figures, "likelihoods": likelihoods})
    text = f"{table(figures)}\n{likelihood_table(likelihoods)}"
    write_text_atomically(work.run.path / "table.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
