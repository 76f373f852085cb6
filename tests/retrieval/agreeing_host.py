"""One host of a run with jax.distributed, for test_agreement.py: python agreeing_host.py HOST NUM_HOSTS PORT WHAT."""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax

host, num_hosts, port, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(f"localhost:{port}", num_processes=num_hosts, process_id=host)

from realm_jax.retrieval.agreement import CoordinationMail, for_this_run  # noqa: E402
from realm_jax.retrieval.hot_swap import HotSwap, VersionSource  # noqa: E402

result: dict = {}
if what == "swap":
    versions = [0]

    def load(version):
        if version and host == 1:
            time.sleep(1.0)  # this host loads slowly
        return f"index {version}", float(version)

    agreement = for_this_run(20.0)
    hot_swap = HotSwap(
        VersionSource(lambda: versions, load), agreement, swap_every_steps=2, timeout_secs=20.0, poll_secs=0.02,
        is_leader=host == 0,
    )  # fmt: skip
    hot_swap.serve(None)
    hot_swap.watch()
    result["swaps"] = []
    for step in range(1, 60):
        if step == 5 and host == 0:
            versions.append(4)  # the follower never looks for itself
        swap = hot_swap.begin_step(step)
        if swap is not None:
            result["swaps"].append([step, swap.version, hot_swap.index])
        time.sleep(0.05)
    hot_swap.close()
    result["said"] = agreement.exchange("at the end", {"host": host})
elif what == "mail":
    mail = CoordinationMail(20.0)
    result["first"] = [letter.decode() for letter in mail.exchange([f"{host} to {to}".encode() for to in range(2)])]
    in_thread = ThreadPoolExecutor(1, thread_name_prefix="beside").submit(
        lambda: [mail.exchange([bytes([host, turn])] * 2) for turn in range(3)]
    )  # its letters do not mix with those of the main thread
    result["second"] = [letter.decode() for letter in mail.exchange([b"again"] * 2)]
    result["beside"] = [[list(letter) for letter in letters] for letters in in_thread.result()]
    result["large"] = [len(letter) for letter in mail.exchange([b"x" * 3_000_000] * 2)]
elif what == "dead searcher":
    mail = CoordinationMail(2.0)
    mail.exchange([b"alive"] * 2)
    if host == 1:
        print(json.dumps({}), flush=True)
        sys.stdin.readline()  # stuck
    try:
        mail.exchange([b""] * 2)
    except TimeoutError as error:
        result = {"message": str(error)}
elif what == "dead peer":
    agreement = for_this_run(2.0)
    agreement.exchange("alive", host)
    if host == 1:
        print(json.dumps({}), flush=True)
        sys.stdin.readline()  # stuck: it says nothing more
    start = time.monotonic()
    try:
        agreement.exchange("swap/7", host)
    except TimeoutError as error:
        result = {"message": str(error), "secs": time.monotonic() - start}
print(json.dumps(result), flush=True)
if what in ("swap", "mail"):
    jax.distributed.shutdown()  # waits for the other host
else:
    os._exit(0)  # without jax's barrier at the end: the peer is stuck on purpose
