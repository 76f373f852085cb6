"""An index shared by hosts answers like one index, whatever each host asks; hosts here are threads with a post office."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from realm_jax.retrieval.embedding_rows import EmbeddingRows
from realm_jax.retrieval.exact import ExactIndex, brute_force
from realm_jax.retrieval.host_sharded import HostShardedIndex

EMBED = 6


class PostOffice:
    """Mail between threads, a round at a time."""

    def __init__(self, num_hosts):
        self.num_hosts, self._boxes = num_hosts, {}
        self._barrier = threading.Barrier(num_hosts, timeout=30)

    def of(self, host):
        office = self

        class Mail:
            num_hosts = office.num_hosts

            def exchange(self, letters):
                assert len(letters) == office.num_hosts
                for receiver, letter in enumerate(letters):
                    office._boxes[host, receiver] = letter
                office._barrier.wait()
                received = [office._boxes[sender, host] for sender in range(office.num_hosts)]
                office._barrier.wait()
                return received

        return Mail()


def shared(embeddings, num_hosts):
    """An index for each host over its consecutive share."""
    bounds = [len(embeddings) * part // num_hosts for part in range(num_hosts + 1)]
    office, rows = PostOffice(num_hosts), EmbeddingRows([embeddings])
    return [
        HostShardedIndex(ExactIndex(embeddings[a:b], first_document=a, chunk=16), office.of(host), rows)
        for host, (a, b) in enumerate(itertools.pairwise(bounds))
    ]


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("num_hosts", [1, 2, 3])
def test_every_host_gets_its_own_answer_from_all_documents(num_hosts):
    embeddings = random(50, EMBED)
    indexes = shared(embeddings, num_hosts)
    asked = [random(4 + host, EMBED, seed=host + 1) for host in range(num_hosts)]  # hosts may ask for different numbers
    wanted = [3 + 5 * host for host in range(num_hosts)]
    with ThreadPoolExecutor(num_hosts) as hosts:
        answers = list(hosts.map(lambda index, q, k: index.search(q, k), indexes, asked, wanted))
    for answer, queries, num_results in zip(answers, asked, wanted, strict=True):
        expected = brute_force(queries, embeddings, num_results)
        np.testing.assert_array_equal(answer.ids, expected.ids)
        np.testing.assert_allclose(answer.scores, expected.scores, rtol=1e-5)
    assert {index.num_documents for index in indexes} == {50}
    assert max(index.num_own_documents for index in indexes) <= 50 // num_hosts + 1


def test_more_results_than_documents_and_equal_scores():
    embeddings = np.repeat(random(3, EMBED), 3, axis=0)  # every document thrice
    first, second = shared(embeddings, 2)
    queries = random(2, EMBED, seed=5)
    with ThreadPoolExecutor(2) as hosts:
        answer, _ = hosts.map(lambda index: index.search(queries, 12), [first, second])
    expected = brute_force(queries, embeddings, 12)
    np.testing.assert_array_equal(answer.ids, expected.ids)
    assert (answer.ids[:, 9:] == -1).all() and np.isneginf(answer.scores[:, 9:]).all()


def test_embeddings_of_documents_that_other_hosts_hold():
    embeddings = random(9, EMBED)
    first, _ = shared(embeddings, 2)
    found = first.embeddings(np.array([[0, 8], [-1, 4]]))
    np.testing.assert_array_equal(found, np.stack([embeddings[[0, 8]], [np.zeros(EMBED), embeddings[4]]]))


def test_queries_that_no_backend_may_see():
    (index,) = shared(random(9, EMBED), 1)
    with pytest.raises(ValueError, match=r"queries must be \[batch, 6\]"):
        index.search(random(2, EMBED + 1), 3)
