"""Retrieval-augmented language models in JAX, pre-trained while their index is rebuilt beside them.

`python -m realm_jax --help` lists the jobs. `realm_jax.models`, `realm_jax.losses` and `realm_jax.retrieval` are usable
alone, for example in a notebook.
"""

__version__ = "0.1.0"
