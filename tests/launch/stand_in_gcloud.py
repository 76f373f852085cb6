#!/usr/bin/env python3
"""A `gcloud` whose TPU VMs are folders of this machine: commands for a worker run here, in a home of its own.

The cloud lies in $STAND_IN_CLOUD: NAME.json is what there is of a node, calls.jsonl what was asked. A node that a test
pre-empts (`preempt`) loses its processes and its homes, and its connections break, or hang if there is a file `half_open`. With a file
`no_network` nothing can be reached. As gcloud does, it asks for the node first, and repeats a command whose connection broke, after
$STAND_IN_RETRY_SECS.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CLOUD = Path(os.environ.get("STAND_IN_CLOUD", "no cloud"))
MARK = "STAND_IN_NODE"
CONNECTION_LOST = 255


def node_file(name: str) -> Path:
    return CLOUD / f"{name}.json"


def read(name: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(node_file(name).read_text()))
    except FileNotFoundError:
        return None


def write(name: str, node: dict[str, Any]) -> None:
    new = node_file(name).with_suffix(f".{os.getpid()}.new")
    new.write_text(json.dumps(node))
    new.replace(node_file(name))


def num_workers(accelerator_type: str) -> int:
    return {"v5litepod-8": 1, "v5litepod-16": 2}[accelerator_type]  # fewer than it has, to be quick


def home(name: str, worker: int) -> Path:
    return CLOUD / "homes" / name / str(worker)


def kill_all(name: str) -> None:
    """SIGKILL to all processes of a node's machines."""
    mark = f"{MARK}={home(name, 0).parent}".encode()  # tests that run side by side have nodes of the same name
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (place / "environ").read_bytes().split(b"\0"):
                os.kill(int(place.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


def preempt(name: str) -> None:
    node = read(name)
    assert node is not None
    write(name, node | {"state": "PREEMPTED"})
    kill_all(name)


def ready(name: str) -> dict[str, Any]:
    node = read(name)
    if (CLOUD / "no_network").exists():
        sys.exit("ERROR: gcloud crashed (TransportError): failed to resolve 'oauth2.googleapis.com'")
    if node is None or node["state"] != "READY":
        sys.exit(f"ERROR: the TPU VM {name} is in state {node and node['state']}")
    return node


def ssh(name: str, worker: int, command: str) -> int:
    """With gcloud's attempts (AttemptRunWithRetries of its command_lib/compute/tpus/tpu_vm/ssh.py)."""
    node = ready(name)
    for attempt in range(10):
        if attempt:
            print("Retrying: SSH command error", file=sys.stderr, flush=True)
            time.sleep(float(os.environ.get("STAND_IN_RETRY_SECS", "0.05")))
        print(f"SSH: Attempting to connect to worker {worker}...", file=sys.stderr, flush=True)
        if (CLOUD / "no_network").exists() or read(name) != node:
            print(f"ssh: connect to host {name}: Connection refused", file=sys.stderr, flush=True)
            continue
        status = ssh_once(name, worker, command, node)
        if status != CONNECTION_LOST:
            return status
    return CONNECTION_LOST


def ssh_once(name: str, worker: int, command: str, node: dict[str, Any]) -> int:
    place = home(name, worker)
    place.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "HOME": str(place), MARK: str(place.parent), "JAX_PROCESS_ID": str(worker), "JAX_NUM_PROCESSES": str(node["workers"]),
        "JAX_COORDINATOR_ADDRESS": os.environ.get("STAND_IN_COORDINATOR", ""),
    }  # fmt: skip
    process = subprocess.Popen(["bash", "-c", command], cwd=place, env=environment, stdin=subprocess.DEVNULL)
    while process.poll() is None:
        if (read(name) != node and not (CLOUD / "half_open").exists()) or (CLOUD / "no_network").exists():
            process.kill()
            return CONNECTION_LOST
        time.sleep(0.05)
    while read(name) != node and (CLOUD / "half_open").exists():
        time.sleep(0.05)
    return CONNECTION_LOST if read(name) != node or process.returncode < 0 else process.returncode


def create(name: str, accelerator_type: str) -> None:
    if read(name) is not None:
        sys.exit(f"ERROR: ALREADY_EXISTS: {name}")
    write(name, {"state": "READY", "workers": num_workers(accelerator_type), "type": accelerator_type})


def delete(name: str) -> None:
    kill_all(name)
    node_file(name).unlink()
    shutil.rmtree(CLOUD / "homes" / name, ignore_errors=True)


def main(arguments: list[str]) -> int:
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    assert arguments[:2] == ["compute", "tpus"] and "--zone=here" in arguments
    group, verb, *rest = arguments[2:]
    flags = dict(
        argument[2:].split("=", 1) if "=" in argument else (argument[2:], "")
        for argument in rest
        if argument.startswith("--")
    )
    places = [argument for argument in rest if not argument.startswith("--")]
    if (CLOUD / "no_network").exists() and verb != "ssh":
        sys.exit("ERROR: gcloud crashed (TransportError): failed to resolve 'oauth2.googleapis.com'")
    if verb == "list":
        ending = {"tpu-vm": ".json", "queued-resources": ".request"}[group]
        print(json.dumps([{"name": f"projects/p/locations/here/x/{place.stem}"} for place in CLOUD.glob(f"*{ending}")]))
        return 0
    name = places[0]
    if group == "queued-resources":
        return queued(verb, name, flags)
    if verb == "create":
        create(name, flags["accelerator-type"])
    elif verb == "delete":
        delete(name)
    elif verb == "describe":
        node = read(name)
        if node is None:
            sys.exit(f"ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource '{name}' was not found")
        print(json.dumps({"state": node["state"], "networkEndpoints": [{}] * node["workers"]}))
    elif verb == "scp":
        source, (name, place) = places[0], places[1].split(":")
        for worker in range(ready(name)["workers"]):
            home(name, worker).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, home(name, worker) / place)
    elif verb == "ssh":
        workers = range(ready(name)["workers"]) if flags["worker"] == "all" else [int(flags["worker"])]
        return max(ssh(name, worker, flags["command"]) for worker in workers)
    else:
        sys.exit(f"ERROR: unknown command {verb}")
    return 0


def queued(verb: str, name: str, flags: dict[str, str]) -> int:
    """A request waits for its second look; a file NAME.suspended makes it be suspended once."""
    request, suspended = CLOUD / f"{name}.request", CLOUD / f"{name}.suspended"
    if verb == "create":
        assert flags["node-id"] == name
        request.write_text(flags["accelerator-type"])
    elif verb == "delete":
        request.unlink()
        if read(name) is not None:
            delete(name)
    elif not request.exists():
        sys.exit("ERROR: NOT_FOUND: no such request")
    elif suspended.exists():
        suspended.unlink()
        print(json.dumps({"state": {"state": "SUSPENDED"}}))
    elif read(name) is not None:
        print(json.dumps({"state": {"state": "ACTIVE"}}))
    else:
        print(json.dumps({"state": {"state": "WAITING_FOR_RESOURCES"}}))
        create(name, request.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
