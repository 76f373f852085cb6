"""From text to blocks: sources, sentences, salient spans, the memory-mapped store and the job that builds it."""
