"""The other side of the generation tests: what the Hugging Face classes generate from random weights.

Runs where transformers 4.39.3 and torch are, without realm_jax (`make parity` makes that environment):

    python tests/parity/generation_reference.py FOLDER

Writes FOLDER/SEED (the model, as its class saves it), FOLDER/SEED.safetensors (inputs, logits and marginals) and FOLDER/SEED.json
(what was generated).
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
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

SEEDS = (0, 1, 2)
VOCAB, BATCH, DOCUMENTS, SOURCE_LEN = 61, 4, 3, 14
PAD, BOS, EOS, MAX_LENGTH = 1, 0, 2, 12
SIZES = {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 40}  # fmt: skip
BEAMS = {"num_beams": 4, "num_return_sequences": 4}
SETTINGS = {
    "greedy": {"num_beams": 1},
    "greedy, no bigram twice": {"num_beams": 1, "no_repeat_ngram_size": 2},
    "beams": BEAMS,
    "long": {**BEAMS, "length_penalty": 2.0},
    "short": {**BEAMS, "length_penalty": 0.3, "early_stopping": True},
    "negative": {**BEAMS, "length_penalty": -0.5, "early_stopping": "never"},
    "never": {**BEAMS, "early_stopping": "never"},
    "by sum": {**BEAMS, "length_penalty": 0.0},
    "no bos after bos": {**BEAMS, "bad_words_ids": [[0, 0]]},
    "greedy, no bos after bos": {"num_beams": 1, "bad_words_ids": [[0, 0]]},
    "no trigram twice": {**BEAMS, "no_repeat_ngram_size": 3},
    "no bigram twice": {**BEAMS, "no_repeat_ngram_size": 2, "min_length": 7},
    "at least nine": {**BEAMS, "min_length": 9},
    "begins with bos": {**BEAMS, "forced_bos_token_id": BOS},
    "open at the end": {**BEAMS, "forced_eos_token_id": None, "length_penalty": 1.5},
    "three beams": {"num_beams": 3, "num_return_sequences": 2},
}


def generator(seed: int) -> BartForConditionalGeneration:
    """Weights at which hypotheses differ, and end at different lengths; nothing hides behind a zero or a one."""
    torch.manual_seed(seed)
    config = BartConfig(**SIZES, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=EOS,
                        forced_eos_token_id=EOS, forced_bos_token_id=None)  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.05 if parameter.ndim < 2 else 1.2 / parameter.shape[1] ** 0.5
            if "shared" in name or "embed" in name:
                scale = 0.35
            if "q_proj.weight" in name:  # attention that picks out single tokens, so that sources differ
                scale *= 3
            if "encoder_attn.v_proj.weight" in name or "encoder_attn.out_proj.weight" in name:
                scale *= 1.7
            ones = "layer_norm.weight" in name or "layernorm_embedding.weight" in name
            parameter.copy_(torch.randn(parameter.shape) * scale + float(ones))
        model.final_logits_bias.copy_(torch.randn(1, VOCAB) * 0.25)
        # so likely an end that one step in five would take it
        given = inputs(seed)
        greedy = model.generate(
            given["ids"], attention_mask=given["mask"], max_length=MAX_LENGTH, min_length=MAX_LENGTH
        )
        logits = model(given["ids"], given["mask"], decoder_input_ids=greedy[:, :-1]).logits[:, 1:-1]
        model.final_logits_bias[0, EOS] += (logits.max(-1).values - logits[..., EOS]).quantile(0.2)
    return model


def inputs(seed: int) -> dict[str, torch.Tensor]:
    """Sources of several lengths, and retrieval scores of their documents."""
    random = torch.Generator().manual_seed(1000 + seed)
    rows = BATCH * DOCUMENTS
    lengths = torch.randint(5, SOURCE_LEN + 1, (rows,), generator=random)
    mask = (torch.arange(SOURCE_LEN) < lengths[:, None]).long()
    ids = torch.randint(3, VOCAB, (rows, SOURCE_LEN), generator=random)
    return {
        "ids": torch.where(mask.bool(), ids, PAD),
        "mask": mask,
        "doc_scores": torch.randn(BATCH, DOCUMENTS, generator=random) * 1.5,
        "target_ids": torch.randint(3, VOCAB, (BATCH, 6), generator=random),
    }


def stripped(sequence: torch.Tensor) -> list[int]:
    """Generated tokens alone: without the start, and without padding after the end."""
    ids = sequence.tolist()[1:]
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def rag(cls: type, model: BartForConditionalGeneration) -> torch.nn.Module:
    dpr = DPRConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config = RagConfig.from_question_encoder_generator_configs(
        dpr, model.config, n_docs=DOCUMENTS, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
        decoder_start_token_id=EOS, forced_eos_token_id=EOS, vocab_size=VOCAB,
    )  # fmt: skip
    return cls(config, question_encoder=DPRQuestionEncoder(dpr), generator=model).eval()


def fast(model: BartForConditionalGeneration, given: dict, settings: dict) -> list[list]:
    """RAG-Sequence, fast: p(y|x, z) of the hypotheses in each document's own beam, 0 elsewhere. The class has only thorough."""
    log_p = given["doc_scores"].log_softmax(-1)
    penalty = settings.get("length_penalty", 1.0)
    whole_beam = {**settings, "num_return_sequences": settings["num_beams"]}
    answers = []
    for question in range(BATCH):
        totals: dict[tuple[int, ...], torch.Tensor] = {}
        for document in range(DOCUMENTS):
            row = question * DOCUMENTS + document
            out = model.generate(
                given["ids"][row : row + 1], attention_mask=given["mask"][row : row + 1], max_length=MAX_LENGTH,
                return_dict_in_generate=True, output_scores=True, **whole_beam,
            )  # fmt: skip
            for sequence, score in zip(out.sequences, out.sequences_scores, strict=True):
                ids = tuple(stripped(sequence))
                joint = log_p[question, document] + score * len(ids) ** penalty
                totals[ids] = torch.logaddexp(totals[ids], joint) if ids in totals else joint
        best = sorted(totals.items(), key=lambda item: -float(item[1]))[: settings["num_return_sequences"]]
        answers.append([[list(ids), float(total)] for ids, total in best])
    return answers


@torch.no_grad()
def run(seed: int, folder: Path) -> None:
    model, given = generator(seed), inputs(seed)
    context = {"context_input_ids": given["ids"], "context_attention_mask": given["mask"],
               "doc_scores": given["doc_scores"], "n_docs": DOCUMENTS, "max_length": MAX_LENGTH}  # fmt: skip
    token, sequence = rag(RagTokenForGeneration, model), rag(RagSequenceForGeneration, model)
    made: dict[str, dict] = {"settings": SETTINGS, "bart": {}, "token": {}, "thorough": {}, "fast": {}}
    for name, settings in SETTINGS.items():
        wide = {"num_return_sequences": 1, **settings}
        rows = BATCH * DOCUMENTS
        out = model.generate(given["ids"], attention_mask=given["mask"], max_length=MAX_LENGTH, output_scores=True,
                             return_dict_in_generate=True, **wide)  # fmt: skip
        found = [stripped(ids) for ids in out.sequences]
        scores = out.sequences_scores.tolist() if wide["num_beams"] > 1 else [None] * rows
        per_row = len(found) // rows
        made["bart"][name] = [
            [[found[i * per_row + j], scores[i * per_row + j]] for j in range(per_row)] for i in range(rows)
        ]
        ids = token.generate(**context, num_beams=wide["num_beams"], num_return_sequences=wide["num_return_sequences"],
                             **{key: value for key, value in settings.items() if not key.startswith("num_")})  # fmt: skip
        per_row = len(ids) // BATCH
        made["token"][name] = [[[stripped(ids[i * per_row + j]), None] for j in range(per_row)] for i in range(BATCH)]
        if wide["num_beams"] > 1:
            own = {key: value for key, value in settings.items() if not key.startswith("num_")}
            ids = sequence.generate(**context, num_beams=wide["num_beams"],
                                    num_return_sequences=wide["num_return_sequences"], **own)  # fmt: skip
            per_row = len(ids) // BATCH
            made["thorough"][name] = [
                [[stripped(ids[i * per_row + j]), None] for j in range(per_row)] for i in range(BATCH)
            ]
            made["fast"][name] = fast(model, given, settings)
    # marginals of given targets: the decoder reads the start and all but the last
    labels = torch.cat([torch.full((BATCH, 1), EOS), given["target_ids"]], 1)
    common = {key: context[key] for key in ("context_input_ids", "context_attention_mask", "doc_scores", "n_docs")}
    out_token = token(**common, labels=labels)
    logits = model(given["ids"], given["mask"], decoder_input_ids=labels.repeat_interleave(DOCUMENTS, 0)).logits
    arrays = {
        **given,
        **smoothed(model, given, token, sequence),
        "logits": logits,
        "marginalized": token.marginalize(logits, given["doc_scores"], DOCUMENTS),
        "token_loss": out_token.loss,
        "sequence_loss": sequence(**common, labels=labels).loss,
        "log_doc_probs": given["doc_scores"].log_softmax(-1),
    }
    save_file({name: value.contiguous() for name, value in arrays.items()}, folder / f"{seed}.safetensors")
    model.save_pretrained(folder / str(seed))
    (folder / f"{seed}.json").write_text(json.dumps(made))


def smoothed(model: BartForConditionalGeneration, given: dict, token, sequence) -> dict:
    """The losses as they are trained with: label smoothing, targets of several lengths that begin with bos, which may not count."""
    labels = torch.cat([torch.full((BATCH, 1), EOS), torch.full((BATCH, 1), 0), given["target_ids"]], 1)
    for row in range(BATCH):
        end = labels.shape[1] - 1 - row % 3
        labels[row, end] = EOS
        labels[row, end + 1 :] = PAD
    logits = model(given["ids"], given["mask"], decoder_input_ids=labels.repeat_interleave(DOCUMENTS, 0)).logits
    common = {"n_docs": DOCUMENTS, "epsilon": 0.1, "reduce_loss": True}
    scores = given["doc_scores"]
    return {
        "smoothed_labels": labels,
        "smoothed_logits": logits,
        "smoothed_token": token.get_nll(logits, scores, labels, **common),
        "smoothed_sequence": sequence.get_nll(logits, scores, labels, **common),
        "smoothed_sequence_without_bos": sequence.get_nll(logits, scores, labels, exclude_bos_score=True, **common),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number in SEEDS:
        run(number, Path(sys.argv[1]))
