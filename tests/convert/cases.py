"""Cases that tests/parity/reference.py made with the Hugging Face classes, computed here from the same weights."""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from realm_jax import losses
from realm_jax.answering.answer import Answer
from realm_jax.answering.answerer import Answerer
from realm_jax.answering.documents import CorpusDocuments
from realm_jax.convert import Model, rag
from realm_jax.convert.hugging_face import bert_knowledge_encoder_layout, bert_retriever_layout, realm_layout
from realm_jax.convert.layout import Layout, spread
from realm_jax.data.questions import Question
from realm_jax.models import EncoderDecoder, KnowledgeEncoder, Retriever, SpanReader, Transformer, span_bounds
from realm_jax.retrieval.exact import ExactIndex
from realm_jax.tasks.open_qa import open_qa_loss
from tests.convert.retrieved import corpus_of, join

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
    repeated = {
        name for name in gradients
        if "predictions.decoder" in name or name.startswith("query_embedder.") or name.endswith(("embed_tokens.weight", "lm_head.weight"))
    }  # fmt: skip
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
           "RealmForOpenQA": _open_qa, **dict.fromkeys(rag.DPR_CLASSES, _dpr), **dict.fromkeys(rag.BART_CLASSES, _bart),
           **dict.fromkeys(rag.RAG_CLASSES, _rag)}[name]  # fmt: skip
    return run(case, model)


def layout_of(model: Model) -> Layout:
    if model.architecture in rag.CLASSES:
        return rag.outgoing(model.architecture, model, "shared_encoder")[0]
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


def gold_spans(length: int, width: int, answers: list[set[tuple[int, int]]]) -> np.ndarray:
    """Which spans are among each row's answers, given as (first, last)."""
    starts, ends = span_bounds(length, width)
    return np.array([[(int(s), int(e)) in row for s, e in zip(starts, ends, strict=True)] for row in answers])


def _reader(case: Case, model: Model) -> Computed:
    """The documents read come first among those that are scored; where their answers stand is given."""
    ids, mask, segments, in_block, relevance, first, last, has_answers = case.given(
        "input_ids", "attention_mask", "token_type_ids", "block_mask", "relevance", "starts", "ends", "has_answers"
    )
    rows, length = ids.shape
    starts, ends = span_bounds(length, model.span_reader.max_span_width)
    answers = [set(zip(s, e, strict=True)) for s, e in zip(first.tolist(), last.tolist(), strict=True)]
    gold = jnp.asarray(gold_spans(length, model.span_reader.max_span_width, answers[:rows]))
    span_mask = in_block[:, starts] & in_block[:, ends]

    def loss(params, scores):
        logits = SpanReader(model.span_reader).apply({"params": params["span_reader"]}, ids, segments, mask > 0)
        read_loss, _ = losses.span_marginal_loss(logits[None], scores[None, :rows], span_mask[None], gold[None])
        early, _ = losses.early_update_loss(scores[None], jnp.ones((1, len(scores)), bool), has_answers[None])
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

    outputs, gradients, (of_scores,) = _differentiate(loss, model, layout_of(model), relevance)
    return Computed(outputs, gradients, {"relevance": of_scores})


def _open_qa(case: Case, model: Model) -> Computed:
    """Nothing of its own: the answerer embeds, searches, reads and chooses; the joiner and the loss are fine-tuning's."""
    texts, tokenizer = case.metadata["texts"], model.tokenizer
    num_retrieved, num_read, joint_len = (
        model.settings[name] for name in ("searcher_beam_size", "reader_beam_size", "reader_seq_len")
    )
    question = Question(texts["question"], tuple(texts["answers"]))
    query_len = case.arrays["in/input_ids"].shape[1]
    index = ExactIndex(model.block_embeds)
    with tempfile.TemporaryDirectory() as place:
        corpus = corpus_of(Path(place), texts["blocks"], tokenizer)
        answerer = Answerer(
            CorpusDocuments(corpus),
            index,
            model.retriever,
            model.span_reader,
            model.params,
            query_len=query_len,
            joint_len=joint_len,
            document_len=joint_len,
            num_read=num_read,
        )
        (answer,) = answerer.answer([question.text])
        found = index.search(answerer.embed([question.text]), num_retrieved).ids
        batch = join(
            corpus,
            [question],
            found,
            index.embeddings(found),
            query_len=query_len,
            num_read=num_read,
            joint_len=joint_len,
            max_span_width=model.span_reader.max_span_width,
        )
    np.testing.assert_array_equal(batch.query.ids, case.arrays["in/input_ids"])
    batch = jax.tree.map(jnp.asarray, batch)

    def loss(params):
        total, metrics = open_qa_loss(
            params,
            batch,
            None,
            retriever=model.retriever,
            reader=model.span_reader,
            sep_id=tokenizer.sep_id,
            train_documents=False,
            contrastive_weight=0.0,
        )
        parts = {"retriever_loss": metrics["early_update_loss"], "reader_loss": metrics["reader_loss"]}
        return total.total / total.weight, {name: part.total for name, part in parts.items()}

    outputs, gradients, _ = _differentiate(loss, model, layout_of(model))
    outputs |= {"answer_ids": tokenizer.encode(answer.text).ids, **_place_of(answer, found[0], tokenizer, query_len)}
    return Computed(outputs, gradients, {})


def _place_of(answer: Answer, found: np.ndarray, tokenizer: Any, query_len: int) -> dict[str, Any]:
    """Where an answer's characters stand, as the port says it: which document, and positions in what the reader read."""
    document = answer.document
    offsets = tokenizer.encode(document.text).offsets
    (start,) = np.flatnonzero(offsets[:, 0] == document.best_span.start)
    (end,) = np.flatnonzero(offsets[:, 1] == document.best_span.end)
    (block,) = np.flatnonzero(found == document.document)
    return {"block_idx": block, "start": query_len + start[None], "end": query_len + end[None]}


def _dpr(case: Case, model: Model) -> Computed:
    ids, mask, segments, cotangent = case.given("input_ids", "attention_mask", "token_type_ids", "cotangent")

    def loss(params):
        own = {"params": params["retriever"]}
        embeds = Retriever(model.retriever).apply(own, ids, segments, mask > 0, method="embed_queries")
        return (embeds * cotangent).sum(), {"pooled": embeds}

    outputs, gradients, _ = _differentiate(loss, model, layout_of(model))
    return Computed(outputs, gradients, {})


def _label_log_probs(logits: Any, labels: Any) -> Any:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0].sum(axis=-1)


def _bart(case: Case, model: Model) -> Computed:
    ids, mask, targets, labels = case.given("input_ids", "attention_mask", "decoder_input_ids", "labels")

    def loss(params):
        generator, own = EncoderDecoder(model.generator), {"params": params["generator"]}
        hidden = generator.apply(own, ids, mask > 0, method="encode")
        logits = generator.apply(own, targets, hidden, mask > 0, method="decode")
        return -_label_log_probs(logits, labels).mean(), {"hidden": hidden, "logits": logits}

    outputs, gradients, _ = _differentiate(loss, model, layout_of(model))
    outputs["hidden"] = _as_theirs(outputs["hidden"], case, "hidden", mask)
    return Computed(outputs, _without_bias(gradients), {})


def _rag(case: Case, model: Model) -> Computed:
    ids, mask, embeds, labels, sources, source_mask, targets = case.given(
        "input_ids", "attention_mask", "embeds", "labels", "context_ids", "context_mask", "decoder_input_ids"
    )
    batch, candidates, _ = embeds.shape

    def loss(params):
        own = {"params": params["retriever"]}
        query = Retriever(model.retriever).apply(own, ids, ids * 0, mask > 0, method="embed_queries")
        scores = jnp.einsum("be,bke->bk", query, embeds)
        every = jnp.repeat(targets, candidates, axis=0)
        logits = EncoderDecoder(model.generator).apply({"params": params["generator"]}, sources, source_mask > 0, every)
        logits = logits.reshape(batch, candidates, *logits.shape[1:])
        likelihoods = _label_log_probs(logits, jnp.repeat(labels[:, None], candidates, axis=1))
        total = jax.nn.logsumexp(jax.nn.log_softmax(scores) + likelihoods, axis=-1)
        return -total.mean(), {"query": query, "scores": scores, "logits": logits}

    outputs, gradients, _ = _differentiate(loss, model, layout_of(model))
    return Computed(outputs, _without_bias(gradients), {})


def _without_bias(gradients: dict[str, Any]) -> dict[str, Any]:
    """The output's bias is no parameter there, and has no gradient here."""
    for name in [name for name in gradients if name.endswith("final_logits_bias")]:
        assert not gradients.pop(name).any()
    return gradients
