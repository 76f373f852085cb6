"""Finding documents: indexes behind one protocol, their versions on disk, and the job that makes them.

Importing this package imports neither jax nor ScaNN; each module imports what it needs.
"""

from realm_jax.retrieval.index import Index, SearchResult, merge_results

__all__ = ["Index", "SearchResult", "merge_results"]
