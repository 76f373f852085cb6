"""Embeddings to search that nobody had to embed: random clusters, or points between a real index's neighbours."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from realm_jax.retrieval.exact import brute_force
from realm_jax.retrieval.shards import map_embeddings
from realm_jax.retrieval.versions import read_manifest

Draw = Callable[[int, int], np.ndarray]
"""(seed, count) -> float32 [count, embed] rows of the same distribution, and of the same clusters, whatever the seed."""

NEIGHBOURS = 8


def clusters(num_clusters: int, embed: int) -> Draw:
    """Unit vectors in clusters whose sizes fall as 1 / rank; a cluster spreads over 16 directions of its own."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((num_clusters, embed), dtype=np.float32) / np.sqrt(embed, dtype=np.float32)
    directions = rng.standard_normal((256, 16, embed), dtype=np.float32) / np.sqrt(16 * embed, dtype=np.float32)
    shares = 1.0 / (10 + np.arange(num_clusters))
    shares /= shares.sum()

    def draw(seed: int, count: int) -> np.ndarray:
        rng = np.random.default_rng([1, seed])
        chosen = rng.choice(num_clusters, count, p=shares)
        rows = centres[chosen]
        weights = rng.standard_normal((count, 16), dtype=np.float32)
        for group in range(len(directions)):
            own = np.flatnonzero(chosen % len(directions) == group)
            rows[own] += weights[own] @ directions[group]
        rows += 0.2 / np.sqrt(embed, dtype=np.float32) * rng.standard_normal((count, embed), dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return draw


def between_neighbours(version_dir: Path, embed: int) -> Draw:
    """Points between the embeddings of a real index and their nearest neighbours, in its first principal directions.

    Args:
      version_dir: RUN/index/VERSION.
      embed: width of what is drawn, at most the index's.
    """
    manifest = read_manifest(version_dir)
    real = np.concatenate([map_embeddings(version_dir, shard, manifest.embed_dim) for shard in manifest.shards])
    _, vectors = np.linalg.eigh(real.T @ real)
    real = np.ascontiguousarray(real @ vectors[:, ::-1][:, :embed], np.float32)  # inner products are nearly kept
    near = np.concatenate(
        [brute_force(real[first : first + 512], real, NEIGHBOURS + 1).ids[:, 1:] for first in range(0, len(real), 512)]
    )

    def draw(seed: int, count: int) -> np.ndarray:
        rng = np.random.default_rng([2, seed])
        chosen = rng.integers(len(real), size=count)
        way = real[near[chosen, rng.integers(NEIGHBOURS, size=count)]] - real[chosen]
        noise = rng.standard_normal((count, embed), dtype=np.float32)
        noise *= 0.5 * np.linalg.norm(way, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
        return real[chosen] + rng.uniform(0, 1, (count, 1)).astype(np.float32) * way + noise

    return draw
