"""How well documents are found: rankings, answers within documents, BM25 beside every retriever."""
