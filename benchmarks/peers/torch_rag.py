"""Generation in torch with the Hugging Face classes: the peer of benchmarks/generation.py.

Runs where transformers 4.39.3 and torch are (`make parity` makes that environment), without realm_jax. Reads one JSON object a line,
runs what it names once, and answers with one JSON object a line:

    {"do": "make", "folder": …, "sizes": {…}, …}   random weights, saved to the folder, and inputs
    {"do": "run", "what": "bart" | "token" | "thorough" | "fast"}   generates once: seconds and ids
"""

import json
import sys
import time

import torch
import transformers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DPRConfig,
    DPRQuestionEncoder,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
)

transformers.logging.set_verbosity_error()


class Peer:
    def make(self, folder: str, sizes: dict, ids: list, mask: list, scores: list, settings: dict, threads: int) -> dict:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        config = BartConfig(**sizes, forced_bos_token_id=None)
        model = BartForConditionalGeneration(config).eval()
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(
                4
            )  # else all tokens are about as likely, and two libraries disagree
        model.save_pretrained(folder)
        self.ids, self.mask, self.scores = torch.tensor(ids), torch.tensor(mask), torch.tensor(scores)
        self.settings, self.model = settings, model
        dpr = DPRConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
        special = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id")
        rag = RagConfig.from_question_encoder_generator_configs(
            dpr, config, vocab_size=config.vocab_size, **{name: getattr(config, name) for name in special}
        )
        self.token, self.sequence = (
            made(rag, question_encoder=DPRQuestionEncoder(dpr), generator=model).eval()
            for made in (RagTokenForGeneration, RagSequenceForGeneration)
        )
        return {"parameters": sum(part.numel() for part in model.parameters()), "torch": torch.__version__}

    @torch.no_grad()
    def run(self, what: str) -> dict:
        batch, documents, length = self.ids.shape
        rows = self.ids.reshape(-1, length), self.mask.reshape(-1, length)
        context = {
            "context_input_ids": rows[0], "context_attention_mask": rows[1], "doc_scores": self.scores, "n_docs": documents
        }  # fmt: skip
        begin = time.perf_counter()
        if what == "bart":
            ids = self.model.generate(self.ids[:, 0], attention_mask=self.mask[:, 0], **self.settings)
        elif what == "token":
            ids = self.token.generate(**context, **self.settings)
        elif what == "thorough":
            ids = self.sequence.generate(**context, **self.settings)
        else:
            ids = self._fast(rows, batch, documents)
        return {"secs": time.perf_counter() - begin, "ids": ids[:, 1:].tolist()}

    def _fast(self, rows: tuple[torch.Tensor, torch.Tensor], batch: int, documents: int) -> torch.Tensor:
        """The class has none: every document's beam, and the sum of what equal hypotheses have."""
        beams = self.settings["num_beams"]
        out = self.model.generate(
            rows[0], attention_mask=rows[1], num_return_sequences=beams, return_dict_in_generate=True, output_scores=True,
            **self.settings,
        )  # fmt: skip
        sums = out.sequences_scores * (out.sequences.shape[1] - 1)  # all are of one length here
        joint = sums.reshape(batch, documents, beams) + self.scores.log_softmax(-1)[..., None]
        sequences = out.sequences.reshape(batch, documents * beams, -1)
        best = []
        for own, log_probs in zip(sequences, joint.reshape(batch, -1), strict=True):
            total = torch.where((own[:, None] == own[None]).all(-1), log_probs[None], -torch.inf).logsumexp(-1)
            best.append(own[total.argmax()])
        return torch.stack(best)


def main() -> None:
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(peer, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
