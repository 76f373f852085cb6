"""The tagger job: a trained tagger is measured on annotated names beside the rules, and written for the corpus job."""

import logging
from typing import Any

from realm_jax.corpus.ner_tagger import TAGGER_FILE, NerTagger
from realm_jax.corpus.salient_spans import RuleTagger
from realm_jax.data.conll import AnnotatedText, joined, read_conll
from realm_jax.evaluation.names import NameScores, score_names
from realm_jax.run_dir import RunDir, write_json_atomically
from realm_jax.storage import as_place, publish_folder, scratch_of
from realm_jax.tasks.tagger import Tagger, as_files
from realm_jax.training.checkpoint import checkpoint_identity, load_params

logger = logging.getLogger(__name__)


def tagger(
    *,
    run_dir: str,
    task: Tagger,
    test_files: str | tuple[str, ...] = (),
    word_counts: str | None = None,
    step: int | None = None,
    output_dir: str | None = None,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Measures a trained tagger on CoNLL files and writes it to a directory that the corpus job can use.

    The corpus job takes it as `corpus.tagger = 'model:RUN/tagger'`. Figures go to RUN/evaluation/names.json.

    Args:
      run_dir: the run that was trained.
      task: its settings.
      test_files: a CoNLL file or several, apart from those it was trained on.
      word_counts: a corpus's salient_spans.json: measures the rules with that corpus's statistics beside the model.
      step: which checkpoint; None for the newest.
      output_dir: where the tagger is written; RUN/tagger unless it says otherwise.
      batch_size: sentences read at once.

    Returns:
      What was written to names.json: "files" holds the rows of each file.

    Raises:
      ValueError: a run that trained something else, or with other settings or another tokenizer.
      FileNotFoundError: a file that is not there, or a run without such a checkpoint.
    """
    run = RunDir.of(run_dir)
    tests = {file: [joined(sentence) for sentence in read_conll(file).sentences] for file in as_files(test_files)}
    rules = RuleTagger.load(word_counts) if word_counts is not None else None
    tokenizer = task.tokenizer_for(task.read())
    found, params = load_params(run, step)
    if "tagger" not in params:
        raise ValueError(f"{run.path} has trained {', '.join(params)} and no tagger; name a run of the tagger task")
    theirs = str(checkpoint_identity(run.checkpoints / str(found)).get("tokenizer"))
    if theirs != tokenizer.fingerprint:
        raise ValueError(
            f"{run.path} was trained on the pieces of tokenizer {theirs[:12]}, these settings give {tokenizer.fingerprint[:12]}; "
            "use the files, tokenizer and vocab_size that it was trained with"
        )
    model = NerTagger(
        task.model, params["tagger"], tokenizer, kinds=task.kinds, lengths=task.lengths, batch_size=batch_size
    )
    directory = as_place(output_dir) if output_dir else run.path / "tagger"
    model.save(scratch_of(directory))
    publish_folder(directory, TAGGER_FILE)
    logger.info("tagger of step %d written to %s", found, directory)
    files: dict[str, Any] = {}
    for file, texts in tests.items():
        scores = {"model": score_model(model, texts)}
        if rules is not None:
            scores["rules"] = score_rules(rules, texts)
        files[file] = {row: figures(score) for row, score in scores.items()}
        print("\n".join([f"{file}: {len(texts)} sentences", *table(scores)]))
    results = {"name": "names", "step": found, "files": files}
    write_json_atomically(run.evaluation("names"), results)
    return results


def score_model(model: NerTagger, texts: list[AnnotatedText]) -> NameScores:
    """The model's names; its dates come from rules and count neither for nor against it."""
    found = model.names([text.text for text in texts])
    return score_names(texts, [[(start, end) for start, end, _ in spans] for spans in found])


def score_rules(rules: RuleTagger, texts: list[AnnotatedText]) -> NameScores:
    """The rules' names; their dates and quantities count neither for nor against them."""
    tagged = [rules.tagged_spans(text.text, [(0, len(text.text))]) for text in texts]
    return score_names(texts, [[(start, end) for start, end, kind in spans if kind == "name"] for spans in tagged])


def figures(scores: NameScores) -> dict[str, Any]:
    """Scores as JSON holds them."""
    return {
        "names": scores.names,
        "predicted": scores.predicted,
        "exact": scores.exact._asdict(),
        "overlap": scores.overlap._asdict(),
        "recall_by_kind": {kind: recall._asdict() for kind, recall in scores.by_kind.items()},
    }


def table(scores: dict[str, NameScores]) -> list[str]:
    """Lines of aligned text: a row for each tagger and way of counting."""
    lines = [f"{'':8}{'counted':>10}{'names':>8}{'precision':>11}{'recall':>8}{'F1':>8}"]
    for row, score in scores.items():
        for counted, (precision, recall, f1) in (("exact", score.exact), ("overlap", score.overlap)):
            lines.append(f"{row:8}{counted:>10}{score.names:8d}{precision:11.3f}{recall:8.3f}{f1:8.3f}")
    return lines
