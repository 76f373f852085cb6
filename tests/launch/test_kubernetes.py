"""launch/kubernetes, the Dockerfile: what is applied to a cluster, and what the pods make of it."""

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from realm_jax import config
from tests.launch.stub_stages import LAUNCH, load_launcher

ROOT = LAUNCH.parent
OVERLAYS = LAUNCH / "kubernetes" / "overlays"
HOSTS = {"cpu": 2, "gpu": 2, "tpu-v5e-8": 1, "tpu-v5e-16": 4}
SLICES = {"tpu-v5e-8": ("2x4", "8"), "tpu-v5e-16": ("4x4", "4")}
CHECKED = {"apiVersion", "kind", "resources", "patches", "images", "configMapGenerator", "configurations"}
HASH = "-hash"  # in place of kustomize's, of what a ConfigMap says


def build(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl kustomize` builds, as far as these files go; anything else in them is an error here."""
    documents = gathered(folder)
    settings = the("ConfigMap", documents)["metadata"]
    [reference] = yaml.safe_load((LAUNCH / "kubernetes" / "base" / "names.yaml").read_text())["nameReference"]
    assert (reference["kind"], reference["version"]) == ("ConfigMap", "v1")
    for field in reference["fieldSpecs"]:
        for place in found_at(the(field["kind"], documents), field["path"].split("/")[:-1]):
            assert place["name"] == settings["name"]
            place["name"] += HASH
    settings["name"] += HASH
    return documents


def found_at(document: Any, path: list[str]) -> list[dict[str, Any]]:
    """What lies at a path of kustomize's: through every member of a list."""
    if isinstance(document, list):
        return [one for member in document for one in found_at(member, path)]
    return found_at(document[path[0]], path[1:]) if path else [document]


def gathered(folder: Path) -> list[dict[str, Any]]:
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(said) <= CHECKED and said.get("configurations", ["names.yaml"]) == ["names.yaml"]
    documents: list[dict[str, Any]] = []
    for resource in said["resources"]:
        place = folder / resource
        documents += gathered(place.resolve()) if place.is_dir() else list(yaml.safe_load_all(place.read_text()))
    for made in said.get("configMapGenerator", []):
        values = dict(literal.split("=", 1) for literal in made["literals"])
        if made.get("behavior") == "merge":
            [old] = [one for one in documents if one["kind"] == "ConfigMap"]
            assert old["metadata"]["name"] == made["name"]
            old["data"] |= values
        else:
            assert set(made) == {"name", "literals"}
            documents.append(
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": values}
            )
    for patch in said.get("patches", []):
        assert set(patch) == {"target", "path"}
        for document in documents:
            if document["kind"] == patch["target"]["kind"]:
                apply_patch(document, yaml.safe_load((folder / patch["path"]).read_text()))
    for image in said.get("images", []):
        for container in containers(documents):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    return documents


def apply_patch(document: Any, operations: list[dict[str, Any]]) -> None:
    """RFC 6902's add and replace."""
    for operation in operations:
        *path, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        place = document
        for part in path:
            place = place[int(part) if isinstance(place, list) else part]
        value = copy.deepcopy(operation["value"])
        if operation["op"] == "add" and isinstance(place, list):
            assert last == "-"
            place.append(value)
        elif operation["op"] == "add":
            place[last] = value
        else:
            assert operation["op"] == "replace"
            key = int(last) if isinstance(place, list) else last
            assert place[key] is not None  # it must be there
            place[key] = value


def the(kind: str, documents: list[dict[str, Any]]) -> dict[str, Any]:
    [found] = [document for document in documents if document["kind"] == kind]
    return found


def job_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    [workers] = the("JobSet", documents)["spec"]["replicatedJobs"]
    return workers["template"]["spec"]


def containers(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return job_of(documents)["template"]["spec"]["containers"]


@pytest.fixture(params=HOSTS)
def overlay(request):
    return request.param


@pytest.fixture
def documents(overlay):
    return build(OVERLAYS / overlay)


@pytest.fixture
def container(documents):
    [found] = containers(documents)
    return found


@pytest.fixture(scope="module")
def local():
    return load_launcher()


def test_every_overlay_is_tested():
    assert {place.name for place in OVERLAYS.iterdir()} == set(HOSTS)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not there")
def test_kubectl_builds_the_same(overlay, documents):
    built = subprocess.run(
        ["kubectl", "kustomize", str(OVERLAYS / overlay)], capture_output=True, text=True, check=True
    )
    text, count = re.subn(r"\brealm-jax-run-[a-z0-9]{10}\b", f"realm-jax-run{HASH}", built.stdout)
    assert count == 2
    assert {one["kind"]: one for one in yaml.safe_load_all(text)} == {one["kind"]: one for one in documents}


def test_settings_are_those_that_a_run_was_applied_with(documents, container):
    """Pods that are started again read a ConfigMap of this name, which others' settings do not have."""
    [source] = container["envFrom"]
    assert source == {"configMapRef": {"name": f"realm-jax-run{HASH}"}}


def test_a_pod_on_every_host(overlay, documents, container):
    job_set, job = the("JobSet", documents), job_of(documents)
    assert (job_set["apiVersion"], job["completionMode"]) == ("jobset.x-k8s.io/v1alpha2", "Indexed")
    assert job["parallelism"] == job["completions"] == HOSTS[overlay]
    assert job_set["spec"]["network"]["enableDNSHostnames"] is True
    if overlay not in SLICES:
        assert {one["name"]: one.get("value") for one in container["env"]}["JAX_NUM_PROCESSES"] == str(HOSTS[overlay])


def test_what_a_host_has(overlay, documents, container):
    pod, resources = job_of(documents)["template"]["spec"], container["resources"]
    devices = {name: value for name, value in resources["limits"].items() if "/" in name}
    assert devices.items() <= resources["requests"].items()  # Kubernetes wants both equal
    if overlay not in SLICES:
        assert devices == ({"nvidia.com/gpu": "8"} if overlay == "gpu" else {}) and pod["nodeSelector"] == {}
        return
    topology, chips = SLICES[overlay]
    assert devices == {"google.com/tpu": chips}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": topology,
    }
    rows, columns = map(int, topology.split("x"))
    assert rows * columns == HOSTS[overlay] * int(chips)


def environment(overlay, documents, container, number):
    """What the container of a host sees, after Kubernetes (and on TPU slices GKE) filled it in."""
    job_set = the("JobSet", documents)["metadata"]["name"]
    downward = {
        "metadata.annotations['batch.kubernetes.io/job-completion-index']": str(number),
        "metadata.labels['jobset.sigs.k8s.io/jobset-name']": job_set,
    }
    [source] = container["envFrom"]
    settings = the("ConfigMap", documents)
    assert source["configMapRef"]["name"] == settings["metadata"]["name"]
    values = dict(settings["data"])
    for one in container["env"]:
        if "valueFrom" in one:
            values[one["name"]] = downward[one["valueFrom"]["fieldRef"]["fieldPath"]]
        else:
            values[one["name"]] = expanded(one["value"], values)
    if overlay in SLICES:
        names = [f"{job_set}-workers-0-{host}.{job_set}" for host in range(HOSTS[overlay])]
        values |= {"TPU_WORKER_ID": str(number), "TPU_WORKER_HOSTNAMES": ",".join(names)}
    return values


def expanded(text, values):
    """$(NAME) in what Kubernetes passes on; it leaves alone what it does not know, and so the test would see it."""
    return re.sub(r"\$\((\w+)\)", lambda found: values.get(found[1], found[0]), text)


def test_the_launcher_understands_its_arguments(overlay, documents, container, local, tmp_path, monkeypatch):
    (tmp_path / "documents").mkdir()
    assert container["args"][0] == "launch/local.py"
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for number in range(HOSTS[overlay]):
        values = environment(overlay, documents, container, number)
        arguments = [expanded(one, values) for one in container["args"][1:]]
        assert not any("$(" in one for one in [*arguments, *values.values()])
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        settings = local.parse([one.replace("=/data/", f"={tmp_path}/") for one in arguments])
        assert settings.host == (number, HOSTS[overlay])
        trial = overlay == "cpu"
        assert settings.run.path == tmp_path / "runs" / ("trial" if trial else "pretrain")
        assert settings.documents == (() if trial else (str(tmp_path / "documents"),))
        assert settings.recipe == {"cpu": "tiny", "gpu": "base_gpu"}.get(overlay, "base")
        embedder = {"cpu": "cpu", "gpu": "devices"}.get(overlay, "in_trainer")
        assert settings.embedder == embedder
        if embedder == "devices":
            shared = f"{settings.trainer_devices},{settings.embedder_devices}".split(",")
            assert sorted(shared) == [str(gpu) for gpu in range(8)]  # every GPU once
        if overlay not in SLICES:
            assert values["JAX_COORDINATOR_ADDRESS"] == "realm-jax-workers-0-0.realm-jax:8476"


def test_batches_can_be_shared_out(overlay, documents, container):
    values = environment(overlay, documents, container, 0)
    if overlay in SLICES:
        devices = HOSTS[overlay] * int(container["resources"]["limits"]["google.com/tpu"])
    else:
        devices = HOSTS[overlay] * len(values["TRAINER_DEVICES"].split(","))  # a CPU is one device
    given = [one.removeprefix("--gin.") for one in container["args"] if one.startswith("--gin.")]
    recipe = values["RECIPE"]
    left_open = ["CORPUS='there'"]
    for stage in ("reader", "ict", "realm"):
        if stage == "realm":
            left_open += ["WARM_START=('there',)", *(["X_CORPUS='there'", "HELDOUT='there'"] * (recipe == "tiny"))]
        batch_size = config.bind("train", [f"runs/{stage}_{recipe}.gin"], [*left_open, *given])["batch_size"]
        assert batch_size % devices == 0, (stage, batch_size, devices)


def test_time_for_checkpoints_and_restarts(documents, container, local):
    job_set, job = the("JobSet", documents)["spec"], job_of(documents)
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 2 * sys.modules["processes"].GRACE_SECS
    # The pod fails, so the Job fails, so the JobSet starts all hosts again: preemptions for ever, failures ten times.
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    disrupted, preempted = job["podFailurePolicy"]["rules"]
    assert disrupted == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert preempted["action"] == "FailJob" and preempted["onExitCodes"] == {
        "containerName": container["name"], "operator": "In", "values": [local.PREEMPTED],
    }  # fmt: skip
    assert job_set["failurePolicy"]["maxRestarts"] == 10
    [rule] = job_set["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_volumes(documents, container):
    pod = job_of(documents)["template"]["spec"]
    claim, shell = (yaml.safe_load((LAUNCH / "kubernetes" / name).read_text()) for name in ("claim.yaml", "shell.yaml"))
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = {volume.pop("name"): volume for volume in copy.deepcopy(pod["volumes"])}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/data"] == {"persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
    assert shell["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert shell["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] == "/data"
    values = the("ConfigMap", documents)["data"]
    for name in ("RUN_DIR", "CORPUS", "JAX_COMPILATION_CACHE_DIR", "REALM_JAX_CACHE"):
        assert any(values[name].startswith(place + "/") or values[name] == place for place in mounts), name


def test_a_tpu_program_is_started_as_its_driver_needs(overlay, documents, container):
    pod = job_of(documents)["template"]["spec"]
    if overlay not in SLICES:
        assert container["command"] == ["python"]
        assert pod["securityContext"]["runAsUser"] == 1000 and pod["securityContext"]["runAsNonRoot"]
        return
    assert container["env"] == [{"name": "LIBTPU_INIT_ARGS", "value": "--fibers_default_thread_stack_size=2097152"}]
    assert "LIBTPU_INIT_ARGS=--fibers_default_thread_stack_size=2097152" in (ROOT / "docs" / "tpu.md").read_text()
    exclusive = the("JobSet", documents)["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert exclusive == "cloud.google.com/gke-nodepool"  # all hosts in one slice
    assert pod["securityContext"]["runAsUser"] == 0
    assert container["securityContext"] == {"capabilities": {"add": ["SYS_RESOURCE"]}}
    *shell, python = container["command"]
    assert python == "python"
    program = "import os, sys; print(os.getppid(), sys.argv[1:])"
    started = subprocess.Popen(
        [*shell, sys.executable, "-S", "-c", program, *container["args"]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    said, _ = started.communicate(timeout=60)
    parent, arguments = said.split(" ", 1)
    assert arguments.strip() == str(container["args"])
    assert int(parent) != started.pid  # the shell has become the program, which so gets SIGTERM


def docker_lines() -> list[list[str]]:
    joined = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    return [line.split() for line in joined.splitlines() if line and not line.startswith("#")]


def test_the_image_has_what_a_run_needs():
    lines = docker_lines()
    kept = {line.strip("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"launch", "realm_jax", "gin", "constraints", "setup.py"} <= kept
    assert all((ROOT / name).exists() for name in kept)
    for words in lines:
        if words[0] == "COPY":
            for source in words[1:-1]:
                assert source == "." or ((ROOT / source).exists() and source.split("/")[0] in kept), source
    installs = " ".join(" ".join(words) for words in lines if words[0] == "RUN")
    [image] = [words[1] for words in lines if words[0] == "FROM"]
    [found] = re.findall(r"--constraint constraints/py(\d)(\d+)\.txt", installs)
    assert image == f"python:{'.'.join(found)}-slim"
    assert ["USER", "1000"] in lines and "--uid 1000" in installs
    assert 'ENTRYPOINT ["python"]' in (ROOT / "Dockerfile").read_text()


def test_the_extras_that_are_named_exist():
    setup = (ROOT / "setup.py").read_text()
    texts = (ROOT / "Dockerfile").read_text() + (ROOT / "docs" / "clusters.md").read_text()
    named = {extra for found in re.findall(r"EXTRAS=([a-z0-9,]+)", texts) for extra in found.split(",")}
    named |= {extra for found in re.findall(r"-e '\.\[([a-z0-9,]+)\]'", texts) for extra in found.split(",")}
    assert {"tpu", "cuda", "gcs"} <= named
    for extra in named | {"s3"}:
        assert f'    "{extra}": [' in setup


def test_places_that_the_documentation_names_exist():
    text = (ROOT / "docs" / "clusters.md").read_text()
    for place in set(re.findall(r"(?:launch|tests)/[\w/.-]+[\w]", text)):
        assert (ROOT / place).exists(), place
    for overlay in HOSTS:
        assert f"launch/kubernetes/overlays/{overlay}\n" in (OVERLAYS / overlay / "kustomization.yaml").read_text()
