"""Title and text of a document."""

from realm_jax.corpus.store import Corpus


def document_text(corpus: Corpus, document: int) -> tuple[str, str]:
    """Title and text of a document: as it was read if the corpus kept its text, else decoded from its pieces."""
    if corpus.info.has_blocks:
        block = corpus.block(document)
        return block.title, block.text
    return corpus.tokenizer.decode(corpus.titles[document]), corpus.tokenizer.decode(corpus.bodies[document])
