"""Parallel prompts in torch with the Hugging Face class: the peer of benchmarks/parallel_prompts.py.

Runs where transformers 4.39.3 and torch are (`make parity` makes that environment), without realm_jax. Reads one JSON object a line,
runs what it names once, and answers with one JSON object a line:

    {"do": "load", "folder": …, "prompts": …, "scores": …, "options": …, …}   a model from its folder, and inputs
    {"do": "run", "what": "loop" | "batched" | "options" | "options_batched"}   answers once: seconds and answers
    {"do": "score", "question": …, "answer": …}   log p of an answer, all documents together
"""

import json
import sys
import time
from collections.abc import Callable

import torch
import transformers
from transformers import LlamaForCausalLM

transformers.logging.set_verbosity_error()


class Peer:
    def load(self, folder: str, prompts: list, scores: list, options: list, max_new_tokens: int, threads: int) -> dict:
        torch.set_num_threads(threads)
        self.model = LlamaForCausalLM.from_pretrained(folder).eval()
        self.prompts, self.options = prompts, options  # [questions][documents][tokens], [questions][options][tokens]
        self.log_priors = torch.tensor(scores).log_softmax(-1)
        self.settings = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens, "do_sample": False}
        return {"parameters": self.model.num_parameters(), "torch": torch.__version__}

    @torch.no_grad()
    def run(self, what: str) -> dict:
        begin = time.perf_counter()
        answers = [getattr(self, f"_{what}")(question) for question in range(len(self.prompts))]
        return {"secs": time.perf_counter() - begin, "answers": answers}

    @torch.no_grad()
    def score(self, question: int, answer: list) -> dict:
        return {"log_prob": self._ensembled(question, self._judged_one_by_one(question, [answer])).item()}

    def _loop(self, question: int) -> list:
        """The likeliest answer: each document's written by itself, each pair of document and answer read by itself."""
        written = [
            self.model.generate(torch.tensor([prompt]), **self.settings)[0, len(prompt) :].tolist()
            for prompt in self.prompts[question]
        ]
        return self._best(question, written, self._judged_one_by_one)

    def _batched(self, question: int) -> list:
        """The same, all documents of a question at once, and logits where the answers stand alone."""
        ids, mask = left_padded(self.prompts[question])
        written = self.model.generate(ids, attention_mask=mask, **self.settings)[:, ids.shape[1] :].tolist()
        return self._best(question, written, self._judged_together)

    def _options(self, question: int) -> list:
        """log p of each option."""
        return self._ensembled(question, self._judged_one_by_one(question, self.options[question])).tolist()

    def _options_batched(self, question: int) -> list:
        return self._ensembled(question, self._judged_together(question, self.options[question])).tolist()

    def _best(self, question: int, written: list, judged: Callable[[int, list], torch.Tensor]) -> list:
        distinct = [list(answer) for answer in dict.fromkeys(map(tuple, written))]
        return distinct[self._ensembled(question, judged(question, distinct)).argmax()]

    def _ensembled(self, question: int, table: torch.Tensor) -> torch.Tensor:
        """log Σ p_R p_LM of [answers, documents]."""
        return (table + self.log_priors[question]).logsumexp(-1)

    def _judged_one_by_one(self, question: int, answers: list) -> torch.Tensor:
        """log p of each answer after each document's prompt, [answers, documents]."""
        table = torch.zeros(len(answers), len(self.prompts[question]))
        for row, answer in enumerate(answers):
            for column, prompt in enumerate(self.prompts[question]):
                logits = self.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
                table[row, column] = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
        return table

    def _judged_together(self, question: int, answers: list) -> torch.Tensor:
        """The same in a pass for each answer, in which it follows all prompts."""
        return torch.stack([self._judged_after_all(self.prompts[question], answer) for answer in answers])

    def _judged_after_all(self, prompts: list, answer: list) -> torch.Tensor:
        ids, mask = left_padded([prompt + answer for prompt in prompts])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        hidden = self.model.model(ids, attention_mask=mask, position_ids=positions).last_hidden_state
        log_probs = self.model.lm_head(hidden[:, -len(answer) - 1 : -1]).log_softmax(-1)
        return log_probs.gather(2, torch.tensor(answer)[None, :, None].expand(len(prompts), -1, -1)).sum((1, 2))


def left_padded(rows: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, and 1 where there is a token."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def main() -> None:
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(peer, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
