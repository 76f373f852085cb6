"""REALM's step and embedder in torch, with the Hugging Face classes: the peer of benchmarks/realm_step.py and realm_embed.py.

Runs where transformers 4.39.3 and torch are (`make parity` makes that environment), without realm_jax. Reads one JSON object a line,
runs what it names once, and answers with one JSON object a line:

    {"do": "make", "sizes": {…}, "batch": 4, …}   builds models, optimizer and inputs
    {"do": "step", "at": "all" | "masks"}         one update; vocabulary logits everywhere, as the class has it, or at the masks
    {"do": "embed", "lengths": […], "padded_to": 288}   embeds documents
"""

import json
import sys
import time

import torch
import transformers
from transformers.models.realm import RealmConfig, RealmKnowledgeAugEncoder, RealmScorer

transformers.logging.set_verbosity_error()


class Peer:
    def make(self, sizes: dict, batch: int, query_len: int, document_len: int, masks: int, threads: int) -> dict:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        config = RealmConfig(**sizes, pad_token_id=0)
        self.batch, self.candidates, self.masks = batch, config.num_candidates, masks
        self.scorer = RealmScorer(config).eval()  # one encoder for both sides, as published
        self.reader = RealmKnowledgeAugEncoder(config).eval()
        parameters = [*self.scorer.parameters(), *self.reader.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01)
        vocab, joint_len = config.vocab_size, query_len + document_len
        self.query = torch.randint(5, vocab, (batch, query_len))
        self.documents = torch.randint(5, vocab, (batch, self.candidates, document_len))
        self.joint = torch.randint(5, vocab, (batch, self.candidates, joint_len))
        self.segments = (torch.arange(joint_len) >= query_len).long().expand(self.joint.shape)
        self.positions = torch.stack([torch.randperm(query_len)[:masks] for _ in range(batch)])
        self.targets = torch.randint(5, vocab, (batch, masks))
        self.labels = torch.zeros(batch, joint_len, dtype=torch.long).scatter(1, self.positions, self.targets)
        self.mlm_mask = torch.zeros(batch, joint_len).scatter(1, self.positions, 1.0)
        return {"parameters": sum(parameter.numel() for parameter in parameters), "torch": torch.__version__}

    def step(self, at: str) -> dict:
        begin = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        scores = self.scorer(input_ids=self.query, candidate_input_ids=self.documents).relevance_score
        if at == "all":
            read = self.reader(
                input_ids=self.joint, token_type_ids=self.segments, relevance_score=scores, labels=self.labels,
                mlm_mask=self.mlm_mask,
            )  # fmt: skip
            loss = read.loss
        else:
            loss = self._loss_at_masks(scores)
        loss.backward()
        self.optimizer.step()
        return {"secs": time.perf_counter() - begin, "loss": float(loss.detach())}

    def _loss_at_masks(self, scores: torch.Tensor) -> torch.Tensor:
        """The same loss with vocabulary logits at the masks alone."""
        rows, length = self.batch * self.candidates, self.joint.shape[-1]
        hidden = self.reader.realm(
            self.joint.reshape(rows, length), token_type_ids=self.segments.reshape(rows, length)
        ).last_hidden_state
        positions = self.positions.repeat_interleave(self.candidates, 0)[..., None].expand(-1, -1, hidden.shape[-1])
        logits = self.reader.cls(hidden.gather(1, positions)).reshape(self.batch, self.candidates, self.masks, -1)
        targets = self.targets[:, None, :, None].expand(-1, self.candidates, -1, -1)
        gold = logits.log_softmax(-1).gather(-1, targets)[..., 0]  # [batch, candidates, masks]
        marginal = torch.logsumexp(gold + scores.log_softmax(-1)[..., None], 1)
        return -marginal.sum(-1).div(self.masks).mean()

    @torch.no_grad()
    def embed(self, lengths: list[int], padded_to: int, at_once: int) -> dict:
        """Embeds documents padded to one length, as users of the class do; the mask is given."""
        embedder = self.scorer.embedder
        begin = time.perf_counter()
        for first in range(0, len(lengths), at_once):
            own = torch.tensor(lengths[first : first + at_once])
            mask = torch.arange(padded_to)[None] < own[:, None]
            ids = torch.full(mask.shape, 7) * mask
            embedder(input_ids=ids, attention_mask=mask.long())
        return {"secs": time.perf_counter() - begin}


def main() -> None:
    peer = Peer()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(peer, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
