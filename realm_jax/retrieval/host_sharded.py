"""An index of which every host of a run holds its own shards: queries go round, each host searches its share."""

import numpy as np
from jaxtyping import Float32, Int64
from safetensors.numpy import load, save

from realm_jax.retrieval.agreement import Mail
from realm_jax.retrieval.embedding_rows import EmbeddingRows
from realm_jax.retrieval.index import Index, SearchResult, check_queries, merge_results
from realm_jax.retrieval.manifest import Manifest
from realm_jax.retrieval.shards import EMBEDDINGS, map_embeddings
from realm_jax.retrieval.versions import load_version, shards_of_host
from realm_jax.storage import Place, RemotePath, read_ranges


class HostShardedIndex:
    """Searches all documents, of which this host holds some in memory: a host's share falls with the number of hosts.

    Every host must search the same number of times, in the same order within a thread: a search waits for the queries of all
    hosts, within the mail's time-out. The answer is that of one index with all shards, to the last id where the shares are
    exact. Embeddings are read where the version lies, by row.
    """

    def __init__(self, own: Index, mail: Mail, rows: "EmbeddingRows | RemoteRows"):
        """Args:
        own: of this host's shards, with document ids of the whole corpus.
        mail: between the hosts of the run.
        rows: of all shards, such as memory maps of a file system that all hosts share.
        """
        self._own, self._mail, self._rows = own, mail, rows

    @property
    def num_documents(self) -> int:
        """Of all hosts."""
        return len(self._rows)

    @property
    def num_own_documents(self) -> int:
        """Of this host."""
        return self._own.num_documents

    @property
    def embed_dim(self) -> int:
        return self._own.embed_dim

    def search(self, queries: Float32[np.ndarray, "batch embed"], num_results: int) -> SearchResult:
        """The `num_results` documents of greatest inner product among those of all hosts.

        Raises:
          ValueError: for queries of another width or not finite, or `num_results` below 1.
          TimeoutError: naming a host that did not search along.
        """
        check_queries(queries, self.embed_dim, num_results)
        sent = [
            save({"queries": np.ascontiguousarray(queries), "num_results": np.array([num_results])})
        ] * self._mail.num_hosts
        asked = [load(letter) for letter in self._mail.exchange(sent)]
        most = max(int(letter["num_results"][0]) for letter in asked)
        found = self._own.search(np.concatenate([letter["queries"] for letter in asked]), most)
        ends = np.cumsum([len(letter["queries"]) for letter in asked])[:-1]
        answers = []
        for ids, scores, letter in zip(np.split(found.ids, ends), np.split(found.scores, ends), asked, strict=True):
            wanted = int(letter["num_results"][0])
            best = {"ids": ids[:, :wanted], "scores": scores[:, :wanted]}
            answers.append(save({name: np.ascontiguousarray(part) for name, part in best.items()}))
        mine = [load(letter) for letter in self._mail.exchange(answers)]
        return merge_results([SearchResult(letter["ids"], letter["scores"]) for letter in mine], num_results)

    def embeddings(self, document_ids: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows embed"]:
        """The embeddings of any documents, unquantised; zeros for id -1."""
        return self._rows.take(document_ids)


def load_own_shards(
    directory: Place, manifest: Manifest, mail: Mail, host: int, apart: bool = False
) -> HostShardedIndex:
    """Loads this host's shards of a version, whose files every host can read. From an object store it downloads no others.

    Args:
      directory: RUN/index/VERSION.
      manifest: what `verify` returned for the shards of this host.
      mail: between the hosts of the run.
      host: number of this one.
      apart: see `load_version`.

    Raises:
      ValueError: fewer shards than hosts.
      IndexRefused: a version that cannot be served.
    """
    numbers = shards_of_host(manifest, host, mail.num_hosts)
    own = load_version(directory, shards=numbers, manifest=manifest, apart=apart)
    if isinstance(directory, RemotePath):
        return HostShardedIndex(own, mail, RemoteRows(directory, manifest))
    blocks = [map_embeddings(directory, shard, manifest.embed_dim) for shard in manifest.shards]
    return HostShardedIndex(own, mail, EmbeddingRows(blocks))


class RemoteRows:
    """The embeddings of a version on an object store, of which each row that is asked for is read by itself."""

    def __init__(self, directory: RemotePath, manifest: Manifest):
        self._directory, self._manifest = directory, manifest
        self._ends = np.cumsum([shard.count for shard in manifest.shards])
        sizes = {file.path: file.bytes for shard in manifest.shards for file in shard.files}
        self._names = [f"{shard.name}/{EMBEDDINGS}" for shard in manifest.shards]
        self._row_bytes = 4 * manifest.embed_dim
        # rows end with the file; what comes before them is the header
        self._headers = [
            sizes[name] - shard.count * self._row_bytes
            for name, shard in zip(self._names, manifest.shards, strict=True)
        ]

    def __len__(self) -> int:
        return self._manifest.num_documents

    def take(self, document_ids: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows embed"]:
        """The embeddings of documents, zeros for a negative id; a document asked for twice is read once."""
        wanted, where = np.unique(document_ids.reshape(-1), return_inverse=True)
        rows = np.zeros((len(wanted), self._manifest.embed_dim), np.float32)
        hits = np.flatnonzero(wanted >= 0)
        shards = np.searchsorted(self._ends, wanted[hits], side="right")
        starts = [
            self._headers[shard] + (int(document) - self._manifest.shards[shard].first_document) * self._row_bytes
            for document, shard in zip(wanted[hits], shards, strict=True)
        ]
        names = [self._names[shard] for shard in shards]
        for row, content in zip(hits, read_ranges(self._directory, names, starts, self._row_bytes), strict=True):
            rows[row] = np.frombuffer(content, "<f4")
        return rows[where].reshape(*document_ids.shape, rows.shape[1])
