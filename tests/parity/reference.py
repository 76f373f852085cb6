"""The other side of the parity tests: runs the Hugging Face classes and writes down what they compute.

Runs where transformers 4.39.3 and torch are, without realm_jax (`make parity` makes that environment):

    python tests/parity/reference.py models FOLDER          # cases of several sizes, one folder each
    python tests/parity/reference.py golden FOLDER          # one small file a class, kept in tests/convert/golden
    python tests/parity/reference.py retriever ASKED.json OUT.json   # what RealmRetriever makes of questions and documents
    python tests/parity/reference.py tokenizers VOCAB TEXTS.json OUT.json
    python tests/parity/reference.py generator_tokenizers FOLDER ASKED.json OUT.json   # BART's of a folder, or those of a RAG
    python tests/parity/reference.py load FOLDER OUT.safetensors   # runs a folder that realm_jax wrote

A case holds the inputs (`in/…`), what came out (`out/…`) and the gradients of `out/loss` (`grad/NAME OF THE TENSOR`).
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import models

ROOT_SEED = 20020
transformers.logging.set_verbosity_error()

TINY = {"vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
        "max_position_embeddings": 20, "retriever_proj_size": 6, "span_hidden_size": 5, "max_span_width": 3}  # fmt: skip
ODD = {"vocab_size": 57, "hidden_size": 21, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 35,
       "max_position_embeddings": 33, "retriever_proj_size": 7, "span_hidden_size": 9, "max_span_width": 10,
       "hidden_act": "gelu", "layer_norm_eps": 1e-6, "reader_layer_norm_eps": 1e-5}  # fmt: skip
WIDE = {"vocab_size": 211, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 192,
        "max_position_embeddings": 64, "retriever_proj_size": 128, "span_hidden_size": 64, "max_span_width": 10,
        "hidden_act": "relu"}  # fmt: skip
SHAPES = {  # batch, candidates, length, padding
    "padded": (3, 4, 13, True),
    "single": (1, 1, 11, False),
    "one-candidate": (2, 1, 20, True),
    "batch-1": (1, 5, 12, True),
}


def config_of(sizes: dict, shape: tuple) -> models.realm.RealmConfig:
    _, candidates, _, _ = shape
    return models.realm.RealmConfig(**{"hidden_act": "gelu_new", **sizes}, num_candidates=candidates, pad_token_id=0,
                                    reader_beam_size=min(candidates, 3), searcher_beam_size=candidates)  # fmt: skip


def bert_config_of(sizes: dict) -> models.bert.BertConfig:
    own = {
        name: value for name, value in sizes.items() if not name.startswith(("retriever", "span", "max_span", "reader"))
    }
    return models.bert.BertConfig(**own)


def shaken(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Every parameter at random, biases and norms too: nothing can hide behind a zero or a one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.2 if parameter.ndim < 2 else 0.5 / parameter.shape[1] ** 0.5
            ones = "norm" in name.lower() and name.endswith(".weight")
            parameter.copy_(noise * (1.0 if "embeddings" in name and parameter.ndim == 2 else scale) + float(ones))
    return model.eval()


def tokens(generator: torch.Generator, vocab: int, *shape: int, padding: bool) -> dict[str, torch.Tensor]:
    length = shape[-1]
    ids = torch.randint(1, vocab, shape, generator=generator)
    lengths = torch.randint(max(1, length // 2), length + 1, shape[:-1], generator=generator) if padding else length
    mask = torch.arange(length) < (lengths[..., None] if padding else length)
    mask = mask.expand(shape)
    segments = (torch.arange(length) >= length // 3).expand(shape) & mask
    return {"input_ids": ids * mask, "attention_mask": mask.long(), "token_type_ids": segments.long()}


class Case:
    """Runs a model once, forward and backward, and collects what the test compares."""

    def __init__(self, model: torch.nn.Module):
        self.model, self.arrays = model, {}

    def inputs(self, **arrays: torch.Tensor) -> None:
        self.arrays |= {f"in/{name}": value.detach().clone() for name, value in arrays.items()}

    def finish(self, loss: torch.Tensor, **outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        self.model.zero_grad()
        loss.backward()
        self.arrays |= {f"out/{name}": value.detach().clone() for name, value in {"loss": loss, **outputs}.items()}
        # state_dict names every place of a tied tensor; its gradient is the whole one
        for name, value in self.model.state_dict(keep_vars=True).items():
            if getattr(value, "grad", None) is not None:
                self.arrays[f"grad/{name}"] = value.grad.clone()
        return self.arrays


def run_bert_model(config, shape, g):
    batch, _, length, padding = shape
    case = Case(shaken(models.bert.BertModel(bert_config_of(config)), g))
    inputs = tokens(g, config["vocab_size"], batch, length, padding=padding)
    cotangent = torch.randn(batch, length, config["hidden_size"], generator=g) * inputs["attention_mask"][..., None]
    pooled_cotangent = torch.randn(batch, config["hidden_size"], generator=g)
    case.inputs(**inputs, cotangent=cotangent, pooled_cotangent=pooled_cotangent)
    out = case.model(**inputs)
    loss = (out.last_hidden_state * cotangent).sum() + (out.pooler_output * pooled_cotangent).sum()
    return case.model, case.finish(loss, hidden=out.last_hidden_state, pooled=out.pooler_output)


def run_bert_lm(cls):
    def run(config, shape, g):
        batch, _, length, padding = shape
        case = Case(shaken(cls(bert_config_of(config)), g))
        case.model.tie_weights()
        inputs = tokens(g, config["vocab_size"], batch, length, padding=padding)
        targets = torch.randint(1, config["vocab_size"], (batch, length), generator=g)
        case.inputs(**inputs, targets=targets)
        logits = case.model(**inputs)[0]
        log_probs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        weights = inputs["attention_mask"].float()
        return case.model, case.finish(-(log_probs * weights).sum() / weights.sum(), logits=logits)

    return run


def run_embedder(config, shape, g):
    batch, _, length, padding = shape
    config = config_of(config, shape)
    case = Case(shaken(models.realm.RealmEmbedder(config), g))
    inputs = tokens(g, config.vocab_size, batch, length, padding=padding)
    cotangent = torch.randn(batch, config.retriever_proj_size, generator=g)
    case.inputs(**inputs, cotangent=cotangent)
    score = case.model(**inputs).projected_score
    return case.model, case.finish((score * cotangent).sum(), projected=score)


def run_scorer(own_query_embedder):
    def run(config, shape, g):
        batch, candidates, length, padding = shape
        config = config_of(config, shape)
        query_embedder = models.realm.RealmEmbedder(config) if own_query_embedder else None
        case = Case(shaken(models.realm.RealmScorer(config, query_embedder), g))
        query = tokens(g, config.vocab_size, batch, length - 2, padding=padding)
        documents = tokens(g, config.vocab_size, batch, candidates, length, padding=padding)
        case.inputs(**query, **{f"candidate_{name}": value for name, value in documents.items()})
        out = case.model(**query, **{f"candidate_{name}": value for name, value in documents.items()})
        loss = -out.relevance_score.log_softmax(-1)[:, -1].mean() + 0.1 * out.relevance_score.sum()
        return case.model, case.finish(
            loss, relevance=out.relevance_score, query=out.query_score, candidate=out.candidate_score
        )

    return run


def run_encoder(config, shape, g):
    batch, candidates, length, padding = shape
    config = config_of(config, shape)
    case = Case(shaken(models.realm.RealmKnowledgeAugEncoder(config), g))
    case.model.tie_weights()
    inputs = tokens(g, config.vocab_size, batch, candidates, length, padding=padding)
    relevance = torch.randn(batch, candidates, generator=g, requires_grad=True)
    labels = torch.randint(1, config.vocab_size, (batch, length), generator=g)
    mlm_mask = (torch.arange(length) % 4 == 1).expand(batch, length) & inputs["attention_mask"].bool().all(1)
    mlm_mask = mlm_mask.clone()
    mlm_mask[:, 1] = True
    labels = torch.where(mlm_mask, labels, -100)
    case.inputs(**inputs, relevance=relevance, labels=labels, mlm_mask=mlm_mask.long())
    out = case.model(**inputs, relevance_score=relevance, labels=labels, mlm_mask=mlm_mask.long())
    arrays = case.finish(out.loss, logits=out.logits)
    return case.model, {**arrays, "grad_in/relevance": relevance.grad}


def run_reader(config, shape, g):
    _, candidates, length, padding = shape
    config = config_of(config, shape)
    case = Case(shaken(models.realm.RealmReader(config), g))
    rows = config.reader_beam_size
    inputs = tokens(g, config.vocab_size, rows, length, padding=padding)
    block_mask = inputs["token_type_ids"].bool().clone()
    relevance = torch.randn(candidates, generator=g, requires_grad=True)
    first = length // 3
    starts = torch.tensor([[first, first + 1]] + [[-1, -1]] * (candidates - 1))
    ends = torch.tensor([[first, first + 2]] + [[-1, -1]] * (candidates - 1))
    has_answers = torch.tensor([True] + [False] * (candidates - 1))
    case.inputs(**inputs, block_mask=block_mask, relevance=relevance, starts=starts, ends=ends, has_answers=has_answers)
    out = case.model(**inputs, relevance_score=relevance, block_mask=block_mask, start_positions=starts, end_positions=ends,
                     has_answers=has_answers)  # fmt: skip
    found = {"block_idx": out.block_idx, "candidate": out.candidate, "start": out.start_pos, "end": out.end_pos}
    arrays = case.finish(out.loss, retriever_loss=out.retriever_loss, reader_loss=out.reader_loss, **found)
    gradient = torch.zeros(candidates) if relevance.grad is None else relevance.grad
    return case.model, {**arrays, "grad_in/relevance": gradient}


WORDS = "who what city river king built the of in was a north south old new stone bridge town hall mill".split()
BLOCKS = (
    "the old bridge was built in stone", "a king built the north mill", "the river town of the south",
    "new town hall", "the king of the old city", "stone mill in the south town", "a north river",
)  # fmt: skip


def run_open_qa(config, shape, g, folder):
    _, candidates, length, _ = shape
    retrieved = max(candidates, 2)  # of one document the port's searcher loses an axis
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    tokenizer = models.realm.RealmTokenizer(str(folder / "vocab.txt"))
    blocks = np.array([block.encode() for block in BLOCKS], dtype=object)
    sizes = {**config, "vocab_size": max(config["vocab_size"], len(vocab))}
    config = models.realm.RealmConfig(**{"hidden_act": "gelu_new", **sizes}, num_block_records=len(blocks), pad_token_id=0,
                                      reader_beam_size=min(retrieved, 3), searcher_beam_size=retrieved,
                                      reader_seq_len=length)  # fmt: skip
    model = shaken(models.realm.RealmForOpenQA(config, models.realm.RealmRetriever(blocks, tokenizer)), g)
    # scores of about 1: a saturated softmax leaves of its gradient little but rounding, on either side
    model.block_emb = torch.randn(model.block_emb.shape, generator=g) / config.retriever_proj_size**0.5
    case = Case(model)
    question = "what was built in the old town" if candidates > 1 else "who built"
    answers = ["stone", "the king", "mill"] if candidates > 1 else ["city of mill"]  # in none of the documents
    inputs = tokenizer([question], return_tensors="pt")
    answer_ids = tokenizer(answers, add_special_tokens=False, return_token_type_ids=False,
                           return_attention_mask=False).input_ids  # fmt: skip
    case.inputs(**inputs)
    # Training mode retrieves searcher_beam_size documents; without dropout it computes the same.
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found, answer = model(**inputs, answer_ids=answer_ids, return_dict=False)
    outputs = {"retriever_loss": found.retriever_loss, "reader_loss": found.reader_loss, "block_idx": found.block_idx,
               "start": found.start_pos, "end": found.end_pos, "answer_ids": answer}  # fmt: skip
    arrays = case.finish(found.loss, **outputs)
    said = {"question": question, "answers": answers, "blocks": list(BLOCKS), "vocab": vocab}
    return model.eval(), arrays, said


def bart_config_of(sizes: dict) -> models.bart.BartConfig:
    """A BART of about these sizes; the odd one scales its embeddings, and its halves differ."""
    hidden, layers, heads = sizes["hidden_size"], sizes["num_hidden_layers"], sizes["num_attention_heads"]
    odd = sizes is ODD
    return models.bart.BartConfig(
        vocab_size=sizes["vocab_size"] + 3, d_model=hidden, encoder_layers=layers, decoder_layers=layers + 1 if odd else layers,
        encoder_attention_heads=heads, decoder_attention_heads=1 if odd else heads, encoder_ffn_dim=sizes["intermediate_size"],
        decoder_ffn_dim=sizes["intermediate_size"] + 2 * odd, max_position_embeddings=sizes["max_position_embeddings"] + 7,
        activation_function=sizes.get("hidden_act", "gelu_new"), scale_embedding=odd, attention_dropout=0.1,
        forced_bos_token_id=0 if odd else None, num_beams=3, no_repeat_ngram_size=2, length_penalty=0.5, max_length=17,
    )  # fmt: skip


def dpr_config_of(sizes: dict) -> models.dpr.DPRConfig:
    own = bert_config_of({"hidden_act": "gelu_new", **sizes}).to_diff_dict()
    return models.dpr.DPRConfig(**{name: value for name, value in own.items() if name != "model_type"})


def generator_of(config, g, cls=models.bart.BartForConditionalGeneration):
    model = shaken(cls(config), g)
    if cls is models.bart.BartForConditionalGeneration:
        model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape, generator=g))
    return model


def without_pad(ids: torch.Tensor) -> torch.Tensor:
    """BART's tables have no gradient at the row of its padding, which no real token has."""
    return torch.where(ids == 1, 5, ids)


def sources_and_targets(g, vocab: int, rows: int, length: int, padding: bool, targets: int) -> dict[str, torch.Tensor]:
    inputs = tokens(g, vocab, rows, length, padding=padding)
    ids, labels = torch.randint(2, vocab, (2, targets, max(2, length - 4)), generator=g)
    ids[:, 0] = 2
    return {"input_ids": without_pad(inputs["input_ids"]), "attention_mask": inputs["attention_mask"],
            "decoder_input_ids": ids, "labels": labels}  # fmt: skip


def label_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0].sum(-1)


def run_bart(cls):
    def run(config, shape, g):
        batch, _, length, padding = shape
        config = bart_config_of(config)
        case = Case(generator_of(config, g, cls))
        given = sources_and_targets(g, config.vocab_size, batch, length, padding, batch)
        case.inputs(**given)
        labels = given.pop("labels")
        out = case.model(**given, use_cache=False)
        logits = out.logits if "logits" in out else out.last_hidden_state @ case.model.shared.weight.T
        loss = -label_log_probs(logits, labels).mean()
        return case.model, case.finish(loss, hidden=out.encoder_last_hidden_state, logits=logits)

    return run


def run_dpr(cls):
    def run(config, shape, g):
        batch, _, length, padding = shape
        config = dpr_config_of(config)
        case = Case(shaken(cls(config), g))
        inputs = tokens(g, config.vocab_size, batch, length, padding=padding)
        cotangent = torch.randn(batch, config.hidden_size, generator=g)
        case.inputs(**inputs, cotangent=cotangent)
        pooled = case.model(**inputs).pooler_output
        return case.model, case.finish((pooled * cotangent).sum(), pooled=pooled)

    return run


def run_rag(cls):
    """A question, documents with their embeddings, and the likelihood of a target marginalised over whole sequences."""

    def run(config, shape, g):
        batch, candidates, length, padding = shape
        question, generator = dpr_config_of(config), bart_config_of(config)
        config = models.rag.RagConfig.from_question_encoder_generator_configs(
            question,
            generator,
            n_docs=candidates,
            max_combined_length=length,
            retrieval_vector_size=question.hidden_size,
        )
        encoder = shaken(models.dpr.DPRQuestionEncoder(question), g)
        case = Case(cls(config, question_encoder=encoder, generator=generator_of(generator, g)).eval())
        inputs = tokens(g, question.vocab_size, batch, length - 2, padding=padding)
        # scores of about 1: see run_open_qa
        embeds = torch.randn(batch, candidates, question.hidden_size, generator=g) / question.hidden_size**0.5
        given = sources_and_targets(g, generator.vocab_size, batch * candidates, length, padding, batch)
        labels = given["labels"]
        case.inputs(**inputs, embeds=embeds, labels=labels, context_ids=given["input_ids"],
                    context_mask=given["attention_mask"], decoder_input_ids=given["decoder_input_ids"])  # fmt: skip
        own = case.model if cls is models.rag.RagModel else case.model.rag
        query = own.question_encoder(inputs["input_ids"], attention_mask=inputs["attention_mask"], return_dict=True)
        scores = torch.einsum("be,bke->bk", query.pooler_output, embeds)
        out = case.model(
            context_input_ids=given["input_ids"], context_attention_mask=given["attention_mask"], doc_scores=scores,
            decoder_input_ids=given["decoder_input_ids"], n_docs=candidates, use_cache=False,
        )  # fmt: skip
        logits = out.logits.reshape(batch, candidates, *out.logits.shape[1:])
        likelihoods = label_log_probs(logits, labels[:, None].expand(-1, candidates, -1))
        loss = -(scores.log_softmax(-1) + likelihoods).logsumexp(-1).mean()
        return case.model, case.finish(loss, query=query.pooler_output, scores=scores, logits=logits)

    return run


# RealmRetriever alone: answers inside longer words, answers wider than a span, more than once, unknown, beyond the cut.
RETRIEVED = {
    "vocab": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##er", "##ed", "(", ")", ",", "'", "?", "1066"],
    "blocks": [
        "The mills (old and new) of the town", "a miller, the king's, built a mill in 1066", "who built the new town hall",
        "Stones of kings of the north river and the south river", "in the city of the old king of the new town was a stone bridge, built in 1066",
        "the king", "", "a bridge built in 1066",
    ],
    "max_length": 16,
    "max_span_width": 3,
    "asked": [
        {"question": "Who built the mill?", "answers": ["mill", "the king"], "documents": [0, 1, 4, 5]},
        {"question": "what river", "answers": ["south river", "the north river"], "documents": [3, 0, 6, 2]},
        {"question": "who built the old stone bridge", "answers": ["1066", "in 1066"], "documents": [4, 1, 3, 7]},
        {"question": "what was built", "answers": ["the new town hall", "town", "stone"], "documents": [2, 3, 4, 1]},
        {"question": "king of what", "answers": ["the city of mill"], "documents": [0, 1, 2, 3]},
    ],
}  # fmt: skip


def retrieve(asked: dict, folder: Path) -> dict:
    """Beside each question: its documents as the reader gets them, which hold an answer, and where."""
    (folder / "vocab.txt").write_text("\n".join(asked["vocab"]) + "\n", encoding="utf-8")
    tokenizer = models.realm.RealmTokenizer(str(folder / "vocab.txt"))
    retriever = models.realm.RealmRetriever(
        np.array([block.encode() for block in asked["blocks"]], dtype=object), tokenizer
    )
    found = []
    for one in asked["asked"]:
        answer_ids = tokenizer(one["answers"], add_special_tokens=False).input_ids
        question_ids = tokenizer([one["question"]]).input_ids
        has_answers, starts, ends, inputs = retriever(
            np.array(one["documents"]), question_ids, answer_ids, max_length=asked["max_length"], return_tensors="np"
        )
        arrays = {"has_answers": has_answers, "starts": starts, "ends": ends,
                  "input_ids": inputs.input_ids, "token_type_ids": inputs.token_type_ids}  # fmt: skip
        found.append({**one, **{name: np.asarray(array).tolist() for name, array in arrays.items()}})
    return {**asked, "asked": found}


def write_retrieved(asked: Path, out: Path) -> None:
    out.write_text(json.dumps(retrieve(json.loads(asked.read_text(encoding="utf-8")), out.parent)), encoding="utf-8")


RUNNERS = {
    "BertModel": run_bert_model,
    "BertForMaskedLM": run_bert_lm(models.bert.BertForMaskedLM),
    "BertForPreTraining": run_bert_lm(models.bert.BertForPreTraining),
    "RealmEmbedder": run_embedder,
    "RealmScorer": run_scorer(False),
    "RealmScorer-untied": run_scorer(True),
    "RealmKnowledgeAugEncoder": run_encoder,
    "RealmReader": run_reader,
    "DPRQuestionEncoder": run_dpr(models.dpr.DPRQuestionEncoder),
    "DPRContextEncoder": run_dpr(models.dpr.DPRContextEncoder),
    "BartModel": run_bart(models.bart.BartModel),
    "BartForConditionalGeneration": run_bart(models.bart.BartForConditionalGeneration),
    "RagModel": run_rag(models.rag.RagModel),
    "RagSequenceForGeneration": run_rag(models.rag.RagSequenceForGeneration),
    "RagTokenForGeneration": run_rag(models.rag.RagTokenForGeneration),
}
NAMES = [*[name for name in RUNNERS if name.startswith(("Bert", "Realm"))], "RealmForOpenQA",
         *[name for name in RUNNERS if not name.startswith(("Bert", "Realm"))]]  # fmt: skip
NOT_GOLDEN = ("RagModel", "RagTokenForGeneration")


def make(name: str, sizes: dict, shape: tuple, folder: Path, seed: int):
    """Model, arrays and texts of one case."""
    g = torch.Generator().manual_seed(seed)
    if name == "RealmForOpenQA":
        return run_open_qa(sizes, (*shape[:2], max(shape[2], 18), shape[3]), g, folder)
    return (*RUNNERS[name](sizes, shape, g), {})


def write_models(folder: Path) -> None:
    for number, name in enumerate(NAMES):
        for size, sizes in {"tiny": TINY, "odd": ODD, "wide": WIDE}.items():
            for kind, shape in SHAPES.items():
                if (size, kind) not in [
                    ("tiny", kind),
                    ("odd", "padded"),
                    ("odd", "one-candidate"),
                    ("wide", "padded"),
                ]:
                    continue
                place = folder / f"{name}.{size}.{kind}"
                model, arrays, said = make(name, sizes, shape, place / "model", ROOT_SEED + number)
                # the port's other layout too: several files
                num_bytes = sum(value.numel() * 4 for value in model.state_dict().values())
                shard = num_bytes // 3 if kind == "one-candidate" else num_bytes
                model.save_pretrained(place / "model", max_shard_size=shard)
                save_file({key: value.contiguous() for key, value in arrays.items()}, place / "case.safetensors",
                          metadata={"texts": json.dumps(said)})  # fmt: skip
                print(place.name, float(arrays["out/loss"]))


def write_golden(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        if name in NOT_GOLDEN:
            continue
        scratch = folder / "scratch"
        model, arrays, said = make(name, TINY, SHAPES["padded"], scratch, ROOT_SEED + number)
        tensors = {f"model/{key}": value.clone() for key, value in model.state_dict().items()}
        kept = {key: value.contiguous() for key, value in {**tensors, **arrays}.items()}
        save_file(kept, folder / f"{name}.safetensors",
                  metadata={"texts": json.dumps(said), "config": model.config.to_json_string(use_diff=False),
                            "architecture": name.split("-")[0], "transformers": transformers.__version__})  # fmt: skip
    retrieved = {**retrieve(RETRIEVED, scratch), "transformers": transformers.__version__}
    (folder / "RealmRetriever.json").write_text(json.dumps(retrieved) + "\n", encoding="utf-8")
    for file in [*scratch.iterdir()]:
        file.unlink()
    scratch.rmdir()


def write_tokenizers(vocab: Path, texts: Path, out: Path) -> None:
    """Ids by the slow and the fast tokenizer of each text, and of the candidates with their pairs."""
    asked = json.loads(texts.read_text(encoding="utf-8"))
    results = {}
    for kind, cls in (("slow", models.realm.RealmTokenizer), ("fast", models.realm.RealmTokenizerFast)):
        tokenizer = cls(str(vocab))
        found = {"ids": [tokenizer(text, add_special_tokens=False).input_ids for text in asked["texts"]]}
        for name, pairs in (("single", None), ("pairs", asked["pairs"])):
            encoded = tokenizer.batch_encode_candidates(
                asked["candidates"], text_pair=pairs, max_length=asked["max_length"], truncation=True
            )
            found[name] = dict(encoded)
        results[kind] = found
    out.write_text(json.dumps(results), encoding="utf-8")


def write_generator_tokenizers(folder: Path, asked: Path, out: Path) -> None:
    """Ids of each text and texts of rows of ids, by the slow and the fast tokenizer; of a RAG by its own two."""
    said = json.loads(asked.read_text(encoding="utf-8"))
    results = {}
    if (folder / "generator_tokenizer").is_dir():
        rag = models.rag.RagTokenizer.from_pretrained(folder)
        results["question"] = [rag.question_encoder(text).input_ids for text in said["texts"]]
        kinds = {"rag": rag.generator}
    else:
        kinds = {kind: cls.from_pretrained(folder) for kind, cls in
                 (("slow", models.bart.BartTokenizer), ("fast", models.bart.BartTokenizerFast))}  # fmt: skip
    for kind, tokenizer in kinds.items():
        results[kind] = {
            "class": type(tokenizer).__name__,
            "ids": [tokenizer(text).input_ids for text in said["texts"]],
            "texts": tokenizer.batch_decode(said["rows"], skip_special_tokens=True),
            "apart": tokenizer.batch_decode(said["rows"], skip_special_tokens=True, clean_up_tokenization_spaces=False),
        }
    out.write_text(json.dumps(results), encoding="utf-8")


def load(folder: Path, out: Path) -> None:
    """What a folder written by realm_jax is to the Hugging Face classes: missing and unexpected tensors, and outputs."""
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    cls = getattr(transformers, name)
    given = {}
    if name == "RealmScorer" and "query_embedder.cls.dense.bias" in load_file(folder / "model.safetensors"):
        given["query_embedder"] = models.realm.RealmEmbedder(models.realm.RealmConfig.from_pretrained(folder))
    model, said = cls.from_pretrained(folder, output_loading_info=True, **given)
    state = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
    save_file(state, out, metadata={key: json.dumps([str(item) for item in value]) for key, value in said.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, *places = sys.argv[1:]
    commands = {"models": write_models, "golden": write_golden, "tokenizers": write_tokenizers,
                "generator_tokenizers": write_generator_tokenizers, "retriever": write_retrieved, "load": load}  # fmt: skip
    commands[command](*map(Path, places))
