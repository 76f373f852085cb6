"""What looking for answers costs at the papers' beam: 5000 documents a question, on a real corpus.

    python benchmarks/answer_matching.py --corpus=RUN/corpus --questions=train.jsonl [--num_questions=64] [--retrieved=5000]

For each question as many documents as the beam are drawn at random, and the batch of a training step is made of them as the train job
makes it: which of them hold an answer, where it stands in those read, their pieces. First with nothing remembered, then the
same questions with the same documents once more, as in a second epoch over an index that stays. Milliseconds a question,
median and greatest; and what an epoch of --epoch questions would take of the host at that rate.
"""

import argparse
import statistics
import time

import numpy as np

from realm_jax.corpus.document_text import document_text
from realm_jax.corpus.store import Corpus
from realm_jax.data.answer_spans import AnswerFinder
from realm_jax.data.open_qa import DocumentJoiner, OpenQuestions
from realm_jax.data.questions import read_questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--questions", required=True)
    for name, default in {"num_questions": 64, "retrieved": 5000, "num_read": 5, "epoch": 79_168}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    corpus = Corpus.open(options.corpus)
    questions = [question for question in read_questions(options.questions).questions if question.answers]
    examples = OpenQuestions(tuple(questions[: options.num_questions]), corpus, query_len=64, seed=0)
    joiner = DocumentJoiner(
        corpus,
        AnswerFinder(corpus, lambda document: document_text(corpus, document)[1], 20_000_000),
        num_read=options.num_read, joint_len=320, max_span_width=10, document_len=288, encode_read=False,
        num_hard_negatives=0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    ids = [
        rng.choice(corpus.num_documents, (1, options.retrieved), replace=False) for _ in range(options.num_questions)
    ]
    embeds = np.zeros((1, options.retrieved, 128), np.float32)
    print(f"{options.num_questions} questions, {options.retrieved} documents each of {corpus.num_documents}")
    print(f"{'':14}{'median ms':>10}{'greatest':>10}{'an epoch, hours':>17}")
    for way in ("first time", "remembered"):
        taken = []
        for number in range(options.num_questions):
            batch = examples.batch(number, 1, slice(None))
            start = time.perf_counter()
            joiner(batch, ids[number], embeds)
            taken.append((time.perf_counter() - start) * 1e3)
        hours = statistics.mean(taken) * options.epoch / 3.6e6
        print(f"{way:14}{statistics.median(taken):>10.1f}{max(taken):>10.1f}{hours:>17.1f}")


if __name__ == "__main__":
    main()
