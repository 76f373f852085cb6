"""An answer in readable text: which documents answered, how likely each was, and what was read in it."""

from typing import NamedTuple

from realm_jax.answering.answer import Answer, GeneratedToken, Span, WeighedDocument

_BAR = 20  # characters of p(z|x) = 1
_AROUND = 60  # characters shown at either side of a span


class Excerpt(NamedTuple):
    """A span and what stands around it."""

    before: str
    text: str
    after: str


def excerpt(text: str, span: Span | None, around: int) -> Excerpt:
    """A span with what stands around it, cut at white space where there is one; the beginning where there is no span.

    >>> from realm_jax.answering import Span
    >>> excerpt("She was born in Oslo, the daughter of a joiner.", Span(16, 20, "Oslo", 0.0, 1.0), 12)
    Excerpt(before='… born in ', text='Oslo', after=', the …')
    """
    start, end = (span.start, span.end) if span else (0, 0)
    before, after = text[:start], text[end:]
    if len(before) > around:
        kept = before[-around:]
        before = "… " + (kept[kept.find(" ") + 1 :] if " " in kept.rstrip() else kept)
    if len(after) > around:
        kept = after[:around]
        after = (kept[: kept.rfind(" ") + 1] if " " in kept.lstrip() else kept) + "…"
    return Excerpt(before, text[start:end], after)


def explained(answer: Answer) -> str:
    """Question, answer, and a line or two for each document, best first."""
    lines = [f"question  {_flat(answer.question)}", f"answer    {_flat(answer.text) or '(none)'}  p {answer.prob:.3f}"]
    if answer.pieces_left_out:
        lines.append(f"          the question was cut: its last {answer.pieces_left_out} pieces were not read")
    lines.append("p(z|x)" + "  and p(z|x,y)" * any(found.posterior is not None for found in answer.documents))
    for found in answer.documents:
        lines += _document(found, found is answer.document)
    if answer.tokens:
        lines.append("each piece with the document that it leaned on most")
        lines.append("  " + "  ".join(_token(token, answer.documents) for token in answer.tokens))
    return "\n".join(lines)


def _token(token: GeneratedToken, documents: tuple[WeighedDocument, ...]) -> str:
    most = max(range(len(documents)), key=lambda rank: (token.posteriors[rank], -rank))
    return f"{_flat(token.text).strip() or '␣'} [{documents[most].document} {token.posteriors[most]:.2f}]"


def _document(found: WeighedDocument, answered: bool) -> list[str]:
    bar = ("█" * round(_BAR * found.prob)).ljust(_BAR, "·")
    name = "null document" if found.document < 0 else f"{found.document}  {_flat(found.title) or '(no title)'}"
    mark = "*" if answered else " "
    posterior = "" if found.posterior is None else f"{found.posterior:.3f}  "
    lines = [f"{mark} {found.prob:.3f} {bar} {posterior}score {found.retrieval_score:9.3f}  {name}"]
    if found.best_span is not None:
        before, text, after = map(_flat, excerpt(found.text, found.best_span, _AROUND))
        lines.append(f"  span p {found.best_span.prob:.3f} score {found.best_span.score:9.3f}  {before}[{text}]{after}")
    return lines


def _flat(text: str) -> str:
    """On one line, with nothing that moves a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)
