"""Cases that tests/parity/reference.py made with the Hugging Face classes, computed here from the same weights."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from realm_jax import losses
from realm_jax.convert import Model
from realm_jax.convert.hugging_face import bert_knowledge_encoder_layout, bert_retriever_layout, realm_layout
from realm_jax.convert.layout import Layout, spread
from realm_jax.data.inputs import SpecialIds, pair_inputs
from realm_jax.models import KnowledgeEncoder, Retriever, SpanReader, Transformer, span_bounds

OUTPUTS, GRADIENTS = 1e-5, 1e-4  # relative to the largest entry of an array, in float32


class Case(NamedTuple):
    """What the other side computed: inputs, outputs and gradients by name, and texts."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]

    def given(self, *names: str) -> list[Any]:
        arrays = [self.arrays[f"in/{name}"] for name in names]
        return [jnp.asarray(array, jnp.int32 if array.dtype == np.int64 else array.dtype) for array in arrays]

    def named(self, kind: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(kind): value for key, value in self.arrays.items() if key.startswith(kind)}


def read_case(path: Path) -> Case:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = {key: json.loads(value) if value[:1] in "{[" else value for key, value in file.metadata().items()}
        return Case({name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118


class Computed(NamedTuple):
    outputs: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]  # by the tensor's name in the file
    input_gradients: dict[str, np.ndarray]


def check(case: Case, model: Model) -> None:
    """Outputs and losses within 1e-5, gradients within 1e-4, and none left out."""
    computed = compute(case, model)
    expected = case.named("out/")
    assert set(computed.outputs) == set(expected)
    for name, value in expected.items():
        close(computed.outputs[name], value, OUTPUTS, name)
    gradients = case.named("grad/")
    repeated = {name for name in gradients if "predictions.decoder" in name or name.startswith("query_embedder.")}
    learns = float(case.arrays["out/loss"]) != 0  # where no answer is among the documents, neither side has a gradient
    assert set(computed.gradients) <= set(gradients) or not learns, "gradients that the other side has not"
    assert set(gradients) - set(computed.gradients) <= repeated, "gradients that we have not"
    assert len(computed.gradients) > 10
    # some gradients are zero in exact arithmetic (of a key's bias, of the score of an only candidate): rounding on both sides
    slack = 1e-6 * max(np.abs(gradient).max() for gradient in gradients.values()) if gradients else 0.0
    for name in set(gradients) & set(computed.gradients):
        close(computed.gradients[name], gradients[name], GRADIENTS, name, slack)
    for name in set(computed.gradients) - set(gradients):
        assert not computed.gradients[name].any(), f"{name} has a gradient"
    assert set(computed.input_gradients) == set(case.named("grad_in/"))
    for name, value in case.named("grad_in/").items():
        close(computed.input_gradients[name], value, GRADIENTS, name, slack)


def close(ours: Any, theirs: np.ndarray, tolerance: float, name: str, slack: float = 0.0) -> None:
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape, name
    scale = np.abs(theirs).max(initial=0.0)
    difference = np.abs(ours - theirs).max(initial=0.0)
    assert difference <= tolerance * scale + slack, f"{name}: {difference:.2e} of {scale:.2e}"


def compute(case: Case, model: Model) -> Computed:
    """What `realm_jax` makes of the case's inputs."""
    name = model.architecture
    if name == "BertModel":
        return _bert_model(case, model)
    if name in ("BertForMaskedLM", "BertForPreTraining"):
        return _bert_lm(case, model)
    run = {"RealmEmbedder": _embedder, "RealmScorer": _scorer, "RealmKnowledgeAugEncoder": _encoder, "RealmReader": _reader,
           "RealmForOpenQA": _open_qa}[name]  # fmt: skip
    return run(case, model)


def layout_of(model: Model) -> Layout:
    return realm_layout(model.architecture, model.retriever, model.knowledge_encoder, model.span_reader)


def _differentiate(
    loss: Any, model: Model, layout: Layout, *inputs: Any
) -> tuple[Any, dict[str, Any], tuple[Any, ...]]:
    arguments = tuple(range(1 + len(inputs)))
    function = jax.jit(jax.value_and_grad(loss, argnums=arguments, has_aux=True))
    (value, outputs), (gradients, *of_inputs) = function(jax.tree.map(jnp.asarray, dict(model.params)), *inputs)
    return {**outputs, "loss": value}, spread(layout, jax.device_get(gradients), {}), tuple(of_inputs)


def _bert_model(case: Case, model: Model) -> Computed:
    ids, mask, segments, cotangent, pooled = case.given(
        "input_ids", "attention_mask", "token_type_ids", "cotangent", "pooled_cotangent"
    )
    config = model.retriever

    def loss(params):
        own = params["retriever"]
        hidden = Transformer(config.encoder).apply(
            {"params": own["shared_encoder"]["encoder"]}, ids, segments, mask > 0
        )
        embeds = Retriever(config).apply({"params": own}, ids, segments, mask > 0, method="embed_documents")
        total = (hidden * cotangent).sum() + (embeds * pooled).sum()
        return total, {"hidden": hidden, "pooled": embeds}

    outputs, gradients, _ = _differentiate(loss, model, bert_retriever_layout(config, ""))
    return Computed(outputs | {"hidden": _as_theirs(outputs["hidden"], case, "hidden", mask)}, gradients, {})


def _as_theirs(value: Any, case: Case, name: str, mask: Any) -> np.ndarray:
    """Ours where there is a token; padding means nothing on either side."""
    used = np.asarray(mask, bool)[..., None]
    return np.where(used, np.asarray(value).reshape(*used.shape[:-1], -1), case.arrays[f"out/{name}"].reshape(*used.shape[:-1], -1)).reshape(case.arrays[f"out/{name}"].shape)  # fmt: skip


def _all_positions(ids: Any) -> Any:
    return jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)


def _bert_lm(case: Case, model: Model) -> Computed:
    ids, mask, segments, targets = case.given("input_ids", "attention_mask", "token_type_ids", "targets")

    def loss(params):
        encoder = KnowledgeEncoder(model.knowledge_encoder)
        logits = encoder.apply({"params": params["knowledge_encoder"]}, ids, segments, mask > 0, _all_positions(ids))
        total = losses.per_token_loss(losses.gold_log_probs(logits, targets), mask.astype(jnp.float32))
        return total.total / total.weight, {"logits": logits}

    own = Model({"knowledge_encoder": model.params["knowledge_encoder"]})
    prefix = "bert."
    outputs, gradients, _ = _differentiate(loss, own, bert_knowledge_encoder_layout(model.knowledge_encoder, prefix))
    return Computed(outputs | {"logits": _as_theirs(outputs["logits"], case, "logits", mask)}, gradients, {})


def _embedder(case: Case, model: Model) -> Computed:
    ids, mask, segments, cotangent = case.given("input_ids", "attention_mask", "token_type_ids", "cotangent")

    def loss(params):
        embeds = Retriever(model.retriever).apply(
            {"params": params["retriever"]}, ids, segments, mask > 0, method="embed_queries"
        )
        return (embeds * cotangent).sum(), {"projected": embeds}

    outputs, gradients, _ = _differentiate(loss, model, layout_of(model))
    return Computed(outputs, gradients, {})


def _scorer(case: Case, model: Model) -> Computed:
    names = ("input_ids", "attention_mask", "token_type_ids")
    ids, mask, segments = case.given(*names)
    documents = case.given(*(f"candidate_{name}" for name in names))
    batch, candidates, length = documents[0].shape
    document_ids, document_mask, document_segments = (array.reshape(-1, length) for array in documents)

    def loss(params):
        retriever, own = Retriever(model.retriever), {"params": params["retriever"]}
        query = retriever.apply(own, ids, segments, mask > 0, method="embed_queries")
        embeds = retriever.apply(own, document_ids, document_segments, document_mask > 0, method="embed_documents")
        embeds = embeds.reshape(batch, candidates, -1)
        scores = jnp.einsum("be,bke->bk", query, embeds)
        log_probs = losses.candidate_log_probs(scores, jnp.ones(scores.shape, bool))
        total = -log_probs[:, -1].mean() + 0.1 * scores.sum()
        return total, {"relevance": scores, "query": query, "candidate": embeds}

    outputs, gradients, _ = _differentiate(loss, model, layout_of(model))
    return Computed(outputs, gradients, {})


def _encoder(case: Case, model: Model) -> Computed:
    ids, mask, segments, relevance, labels, mlm_mask = case.given(
        "input_ids", "attention_mask", "token_type_ids", "relevance", "labels", "mlm_mask"
    )
    batch, candidates, length = ids.shape
    flat_ids, flat_mask, flat_segments = (array.reshape(-1, length) for array in (ids, mask, segments))

    def loss(params, scores):
        encoder = KnowledgeEncoder(model.knowledge_encoder)
        logits = encoder.apply(
            {"params": params["knowledge_encoder"]}, flat_ids, flat_segments, flat_mask > 0, _all_positions(flat_ids)
        )
        targets = jnp.broadcast_to(jnp.maximum(labels, 0)[:, None], ids.shape)
        gold = losses.gold_log_probs(logits.reshape(batch, candidates, length, -1), targets)
        log_probs = losses.candidate_log_probs(scores, jnp.ones(scores.shape, bool))
        total = losses.per_token_loss(losses.marginal_per_token(log_probs, gold), mlm_mask.astype(jnp.float32))
        return total.total / total.weight, {"logits": logits}

    outputs, gradients, (of_scores,) = _differentiate(loss, model, layout_of(model), relevance)
    outputs["logits"] = _as_theirs(outputs["logits"], case, "logits", flat_mask)
    return Computed(outputs, gradients, {"relevance": of_scores})


def _read(model: Model, params: Any, inputs: Any, in_block: Any, scores: Any, gold: Any, has_answer: Any) -> Any:
    """Losses of the reader and the best span, as the port reports them.

    Args: the documents read come first among those that `scores` and `has_answer` are of.
    """
    ids, segments, mask = inputs
    rows, length = ids.shape
    starts, ends = span_bounds(length, model.span_reader.max_span_width)
    logits = SpanReader(model.span_reader).apply({"params": params["span_reader"]}, ids, segments, mask)
    span_mask = in_block[:, starts] & in_block[:, ends]
    read_loss, _ = losses.span_marginal_loss(logits[None], scores[None, :rows], span_mask[None], gold[None])
    early, _ = losses.early_update_loss(scores[None], jnp.ones((1, len(scores)), bool), has_answer[None])
    total = jnp.where(span_mask, logits, -jnp.inf) + scores[:rows, None]
    best = total.max(axis=0).argmax()
    outputs = {
        "retriever_loss": early.total,
        "reader_loss": read_loss.total,
        "block_idx": total.max(axis=1).argmax(),
        "candidate": best,
        "start": jnp.asarray(starts)[best][None],
        "end": jnp.asarray(ends)[best][None],
    }
    return early.total + read_loss.total, outputs


def gold_spans(length: int, width: int, answers: list[set[tuple[int, int]]]) -> np.ndarray:
    """Which spans are among each row's answers, given as (first, last)."""
    starts, ends = span_bounds(length, width)
    return np.array([[(int(s), int(e)) in row for s, e in zip(starts, ends, strict=True)] for row in answers])


def _reader(case: Case, model: Model) -> Computed:
    ids, mask, segments, in_block, relevance, starts, ends, has_answers = case.given(
        "input_ids", "attention_mask", "token_type_ids", "block_mask", "relevance", "starts", "ends", "has_answers"
    )
    answers = [set(zip(s, e, strict=True)) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]
    gold = jnp.asarray(gold_spans(ids.shape[1], model.span_reader.max_span_width, answers[: len(ids)]))

    def loss(params, scores):
        return _read(model, params, (ids, segments, mask > 0), in_block, scores, gold, has_answers)

    outputs, gradients, (of_scores,) = _differentiate(loss, model, layout_of(model), relevance)
    return Computed(outputs, gradients, {"relevance": of_scores})


def _open_qa(case: Case, model: Model) -> Computed:
    texts = case.metadata["texts"]
    settings, tokenizer = model.settings, model.tokenizer
    retrieved, read, length = (settings[n] for n in ("searcher_beam_size", "reader_beam_size", "reader_seq_len"))
    ids, mask, segments = case.given("input_ids", "attention_mask", "token_type_ids")
    retriever = Retriever(model.retriever)

    def embed(params):
        return retriever.apply({"params": params["retriever"]}, ids, segments, mask > 0, method="embed_queries")[0]

    blocks = jnp.asarray(model.block_embeds)
    found = np.asarray(jax.jit(lambda params: jax.lax.top_k(blocks @ embed(params), retrieved)[1])(model.params))
    question, *pieces = (
        e.ids for e in tokenizer.encode_batch([texts["question"], *(texts["blocks"][i] for i in found)])
    )
    wanted = [e.ids.tolist() for e in tokenizer.encode_batch(texts["answers"])]
    joint = pair_inputs([question] * retrieved, pieces, length, SpecialIds.of(tokenizer))
    width = int((joint.ids != 0).sum(axis=1).max())  # the port pads to the longest
    joint = type(joint)(joint.ids[:, :width], joint.segment_ids[:, :width])
    first = len(question) + 2
    answers = [
        {
            (p, p + len(answer) - 1)
            for answer in wanted
            for p in range(first, width)
            if row[p : p + len(answer)] == answer
        }
        for row in joint.ids.tolist()
    ]
    gold = jnp.asarray(gold_spans(width, model.span_reader.max_span_width, answers[:read]))
    has_answer = jnp.asarray([bool(row) for row in answers])
    in_block = jnp.asarray((joint.segment_ids == 1) & (joint.ids != tokenizer.sep_id))[:read]

    def loss(params):
        scores = blocks[found] @ embed(params)
        rows = (
            jnp.asarray(joint.ids[:read]),
            jnp.asarray(joint.segment_ids[:read]),
            jnp.asarray(joint.ids[:read] != 0),
        )
        return _read(model, params, rows, in_block, scores, gold, has_answer)

    outputs, gradients, _ = _differentiate(loss, model, layout_of(model))
    start, end, block = (int(np.asarray(outputs[name]).item()) for name in ("start", "end", "block_idx"))
    del outputs["candidate"]
    outputs["answer_ids"] = joint.ids[block, start : end + 1]
    return Computed(outputs, gradients, {})
