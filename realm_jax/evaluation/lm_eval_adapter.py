"""The tasks of lm-evaluation-harness (lm_eval) on a language model that retrieves.

    from lm_eval import simple_evaluate
    from realm_jax.answering.loading import load_augmented
    from realm_jax.evaluation.lm_eval_adapter import LmEvalAdapter

    model, _ = load_augmented(run, task)
    simple_evaluate(LmEvalAdapter(model), tasks=["arc_easy", "mmlu"], num_fewshot=5)

Importing this module needs the package: pip install 'realm_jax[lm-eval]'.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from realm_jax.evaluation.few_shot.model import AugmentedModel
from realm_jax.run_dir import RunDir, write_json_atomically

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ImportError(
        f"the tasks of lm-evaluation-harness need lm_eval, which cannot be imported ({error}): "
        "pip install 'realm_jax[lm-eval]'"
    ) from error

CUT = "contexts cut at the beginning"

_BLANK_LINE = re.compile(r"\n\s*\n")
_MAX_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # in lm_eval's order
_MAX_TOKENS = 256  # where a task names none; as in lm_eval


class _Settings(NamedTuple):
    """How a request is to be answered."""

    max_tokens: int
    stop: tuple[str, ...]


def last_block(context: str) -> str:
    r"""The last block of a context that is not empty: what stands after its last blank line.

    In most tasks that is the question, without the demonstrations before it.

    >>> last_block("Q: Who?\nA: Ann\n\nQ: Where?\nA:")
    'Q: Where?\nA:'
    """
    return next((block.strip() for block in reversed(_BLANK_LINE.split(context)) if block.strip()), "")


class LmEvalAdapter(LM):
    """A retrieval-augmented language model as lm_eval asks one.

    A context longer than the model has room for loses its beginning, as in lm_eval's own models; `counts` tells how often. The
    document before it goes first: the model cuts it. Text as a whole (`loglikelihood_rolling`) is scored without documents.

    Args:
      model: that is asked.
      query: what the retriever is asked, from the context of a request; "" for no documents. None never asks it.
      batch_size: requests at once.
    """

    def __init__(
        self, model: AugmentedModel, query: Callable[[str], str] | None = last_block, batch_size: int = 16
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")
        self._model, self._query, self._batch_size = model, query, batch_size
        self.counts: Counter[str] = Counter()

    @property
    def tokenizer_name(self) -> str:
        """What cached requests are known by."""
        return self._model.tokenizer.fingerprint

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Scores each continuation after its context; spaces at the end of a context go to the continuation."""

        def score(part: Sequence[tuple[str, str]], queries: list[str] | None) -> list[tuple[float, bool]]:
            pairs = [_space_moved(context, continuation) for context, continuation in part]
            contexts = [self._fitting(context, continuation) for context, continuation in pairs]
            scored = self._model.log_likelihoods(contexts, [continuation for _, continuation in pairs], queries)
            return [(float(score.log_prob), bool(score.is_greedy)) for score in scored]

        return self._in_batches("loglikelihood", requests, score, lambda args: None, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Scores each text as a whole."""

        def score(part: Sequence[tuple[str]], queries: list[str] | None) -> list[float]:
            return [float(value) for value in self._model.rolling_log_likelihoods([text for (text,) in part])]

        return self._in_batches("loglikelihood_rolling", requests, score, lambda args: None, disable_tqdm, asks=False)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Writes after each context, greedily, up to one of the task's stop texts or its number of tokens.

        Raises:
          ValueError: of a task that samples.
        """

        def write(part: Sequence[tuple[str, Mapping[str, Any]]], queries: list[str] | None) -> list[str]:
            settings = _settings(part[0][1])
            contexts = [self._fitting(context, num_tokens=settings.max_tokens) for context, _ in part]
            texts = self._model.generate(contexts, queries, max_tokens=settings.max_tokens, stop=settings.stop)
            return [_before(text, settings.stop) for text in texts]

        return self._in_batches("generate_until", requests, write, lambda args: _settings(args[1]), disable_tqdm)

    def _in_batches(
        self,
        kind: str,
        requests: Sequence[Instance],
        answer: Callable[[Any, list[str] | None], Sequence[Any]],
        settings: Callable[[Any], Any],
        disable_tqdm: bool,
        *,
        asks: bool = True,
    ) -> list[Any]:
        """Answers requests of the same settings together; in their order."""
        groups: dict[Any, list[tuple[int, str]]] = {}
        for place, request in enumerate(requests):
            query = self._query(request.args[0]) if asks and self._query is not None else ""
            groups.setdefault(settings(request.args), []).append((place, query))
        answers: list[Any] = [None] * len(requests)
        with tqdm(total=len(requests), desc=kind, unit=" requests", mininterval=1.0, disable=disable_tqdm) as bar:
            for members in groups.values():
                for first in range(0, len(members), self._batch_size):
                    part = members[first : first + self._batch_size]
                    queries = [query for _, query in part]
                    found = answer([requests[place].args for place, _ in part], queries if any(queries) else None)
                    for (place, _), value in zip(part, found, strict=True):
                        answers[place] = value
                        self.cache_hook.add_partial(kind, requests[place].args, value)
                    bar.update(len(part))
        return answers

    def _fitting(self, context: str, continuation: str = "", num_tokens: int = 0) -> str:
        """The end of a context that the model has room for, with the token at the beginning and what follows.

        Raises:
          ValueError: when what follows is too long even without a context.
        """
        room = self._model.max_length - 1 - num_tokens
        rest = context
        while (excess := self._length(rest + continuation) - room) > 0:
            if not rest:
                raise ValueError(
                    f"expected a continuation that fits into the model's {self._model.max_length} positions, got one with "
                    f"{excess} tokens too many; ask for fewer (gen_kwargs max_gen_toks), or take another model"
                )
            # cut where a piece begins; what is left may be encoded in other pieces, and still be too long
            starts = self._model.tokenizer.encode(rest).offsets[:, 0]
            rest = rest[max(1, int(starts[excess])) :] if excess < len(starts) else ""
        if rest != context:
            self.counts[CUT] += 1
        return rest

    def _length(self, text: str) -> int:
        return len(self._model.tokenizer.encode(text).ids)


def evaluate_lm_eval(
    model: AugmentedModel,
    tasks: Sequence[str],
    *,
    run_dir: str | RunDir | None = None,
    name: str = "model",
    num_fewshot: int | None = None,
    limit: int | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    include_path: str | None = None,
    query: Callable[[str], str] | None = last_block,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs tasks of lm_eval on a model, and prints lm_eval's table.

    Args:
      model: that is asked.
      tasks: names of tasks or groups. Their data comes from the Hugging Face hub, or from where the task's YAML file says.
      run_dir: the figures go to RUN/evaluation/NAME-lm_eval.json; None writes nothing.
      name: of the evaluation.
      num_fewshot: demonstrations; None for the task's own number.
      limit: questions of each task; None for all.
      gen_kwargs: settings of written answers instead of the task's, such as {"do_sample": False, "max_gen_toks": 64}.
      include_path: a folder of YAML files with tasks of one's own.
      query: see `LmEvalAdapter`.
      batch_size: requests at once.
      seed: of the draw of demonstrations.

    Returns:
      What is written: lm_eval's "results", "n-shot", "n-samples" and "versions" by task, and what was cut.

    Raises:
      ValueError: for tasks that there are not, before anything is asked, or one that samples.
    """
    from lm_eval.utils import make_table

    known = TaskManager(include_path=include_path)
    missing = [task for task in tasks if task not in known.all_tasks]
    if missing or not tasks:
        raise ValueError(
            f"expected names of tasks or groups that lm_eval has, got {missing or 'none'}; `lm_eval ls tasks` lists them, and "
            "include_path names a folder of one's own"
        )
    adapter, before = LmEvalAdapter(model, query, batch_size), Counter(model.counts)
    found = simple_evaluate(
        model=adapter,
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        gen_kwargs=None if gen_kwargs is None else dict(gen_kwargs),
        task_manager=known,
        log_samples=False,
        bootstrap_iters=1000,
        fewshot_random_seed=seed,
    )
    table = make_table(found)  # before the figures are taken: it adds to them
    cut = adapter.counts + (Counter(model.counts) - before)
    figures = {"name": name, "seed": seed, "retrieve": query is not None, "cut": dict(cut)}
    figures |= {key: _written(found[key]) for key in ("results", "n-shot", "n-samples", "versions")}
    if run_dir is not None:
        write_json_atomically(RunDir.of(run_dir).evaluation(f"{name}-lm_eval"), figures)
    print(table)
    return figures


def _written(value: Any) -> Any:
    """A value of lm_eval as JSON has it: no keys but strings, and None for what is no number, as the error of one question."""
    if isinstance(value, Mapping):
        return {str(key): _written(part) for key, part in value.items()}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _space_moved(context: str, continuation: str) -> tuple[str, str]:
    """White space at the end of a context belongs to the first piece of what follows."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _settings(kwargs: Mapping[str, Any]) -> _Settings:
    samples = kwargs.get("do_sample")
    if float(kwargs.get("temperature") or 0.0) > 0.0 if samples is None else samples:
        raise ValueError(
            f"expected a task that decodes greedily, got {dict(kwargs)}; the model does not sample for lm_eval: pass "
            "gen_kwargs do_sample=False"
        )
    until = kwargs.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    max_tokens = next((int(kwargs[key]) for key in _MAX_TOKENS_KEYS if kwargs.get(key) is not None), _MAX_TOKENS)
    return _Settings(max_tokens, tuple(text for text in stop if text))


def _before(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the stop texts in it: tasks compare what stands before."""
    return text[: min([len(text), *(text.find(end) for end in stop if end in text)])]
