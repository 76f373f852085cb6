"""The figures of a plan, gathered from the shapes and, where the run was compiled, from the compiler."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from realm_jax.plan import arithmetic
from realm_jax.plan.arithmetic import IndexBytes, StepBytes, StepFlops
from realm_jax.plan.collectives import Collectives
from realm_jax.plan.compiling import Compiled
from realm_jax.plan.hardware import Slice
from realm_jax.plan.planned_run import MeshSizes, PlannedRun
from realm_jax.plan.programs import abstract_state, without_data
from realm_jax.tasks.task import Program


class Memory(NamedTuple):
    """What lies in the memory of one device while the run trains."""

    parts: dict[str, int]  # bytes by name
    capacity: int
    is_whole: bool  # false where nothing was compiled: temporaries are then the least that there must be
    refused: dict[str, tuple[int, int]]  # programs that the compiler could not fit: bytes that it needs, and may use
    embed_job: int | None  # bytes of a device of the embed job, where it was compiled

    @property
    def needed(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool | None:
        """None: not known without compiling."""
        if self.refused or self.needed > self.capacity or (self.embed_job or 0) > self.capacity:
            return False
        return True if self.is_whole else None


class Roofline(NamedTuple):
    """Seconds that a step takes at least, one thing at its peak and all others for nothing."""

    arithmetic: float
    memory: float
    interconnect: float

    @property
    def limit(self) -> str:
        return max(self._fields, key=lambda name: getattr(self, name))

    @property
    def secs(self) -> float:
        return max(self)


class Step(NamedTuple):
    """One step of the whole slice."""

    flops: StepFlops
    bytes: StepBytes  # of a device
    sent_bytes: float  # of a device, by the compiled program's collectives where there is one, else by the shapes
    expected_sent_bytes: float  # by the shapes
    roofline: Roofline
    mfu_limit: float  # model FLOPs over the peak, at the roofline
    secs: float  # at the utilisation that was assumed


class Refresh(NamedTuple):
    """Embedding the whole corpus, beside the trainer."""

    mode: str
    flops: float
    steps_of_compute: float  # training steps of the same FLOPs
    secs: float  # on the embedder's chips, at the same utilisation
    every_steps: float  # how often those chips renew the index
    wanted_every_steps: int  # what the run asks for
    chips_wanted: int  # that renew it so often


class HostMemory(NamedTuple):
    """Bytes of the index in the memory of one host."""

    index: IndexBytes  # type: ignore[assignment]  # hides tuple.index, which nobody calls; of all documents
    replicated: int  # every host holds all
    sharded: int  # every host holds its share
    is_sharded: bool  # what the run does
    on_devices: bool  # the exact index: `Memory` has it, hosts keep its float32 rows as files


class Figures(NamedTuple):
    """Everything that the table shows."""

    run: PlannedRun
    program: Program
    machines: Slice
    sizes: MeshSizes
    memory: Memory
    step: Step
    collectives: Collectives | None
    compile_secs: dict[str, float]
    refresh: Refresh | None
    host_memory: HostMemory | None
    assumed: dict[str, Any]  # num_documents, mean_document_len, embed_chips, utilisation


def gather(
    run: PlannedRun,
    program: Program,
    machines: Slice,
    sizes: MeshSizes,
    compiled: Mapping[str, Compiled],
    *,
    num_documents: int,
    mean_document_len: int,
    embed_chips: int,
    utilisation: float,
) -> Figures:
    """All figures of a run on a slice.

    Args:
      run: the settings.
      program: of its task.
      machines: the slice.
      sizes: of the mesh over it.
      compiled: its programs by name, as `programs.programs_of` names them; {} to do without.
      num_documents: of the corpus.
      mean_document_len: pieces that the embedder reads of a document.
      embed_chips: chips of the same generation that embed beside the slice.
      utilisation: share of the peak that trainer and embedder are assumed to reach.
    """
    state = abstract_state(without_data(program), run.optimizer, run.num_steps)
    memory = _memory(run, program, machines, sizes, state, compiled, num_documents)
    train = compiled.get("train step")
    collectives = train.collectives if train is not None else None
    step = _step(run, program, machines, sizes, state, collectives, utilisation)
    refresh = host_memory = None
    if program.retriever is not None:
        refresh = _refresh(run, program, machines, step, num_documents, mean_document_len, embed_chips, utilisation)
        index = arithmetic.index_bytes(run.index, num_documents, program.retriever.embed_dim)
        host_memory = HostMemory(
            index=index,
            replicated=sum(index),
            sharded=-(-sum(index) // machines.num_hosts),
            is_sharded=run.refresh.index_hosts == "sharded",
            on_devices=run.index.backend == "exact",
        )
    return Figures(
        run,
        program,
        machines,
        sizes,
        memory,
        step,
        collectives,
        {name: one.secs for name, one in compiled.items()},
        refresh,
        host_memory,
        {
            "num_documents": num_documents,
            "mean_document_len": mean_document_len,
            "embed_chips": embed_chips,
            "utilisation": utilisation,
        },
    )


def _memory(
    run: PlannedRun,
    program: Program,
    machines: Slice,
    sizes: MeshSizes,
    state: Any,
    compiled: Mapping[str, Compiled],
    num_documents: int,
) -> Memory:
    batch = arithmetic.whole_bytes(program.batch_shapes(run.batch_size)) // sizes.rows
    parts = {
        "parameters": arithmetic.device_bytes(state.params, sizes),
        "optimizer moments": arithmetic.device_bytes(state.opt_state, sizes),
        "batch of the step": batch,
        "batch of the next step": batch,
    }
    if program.retriever is not None and run.refresh.mode != "frozen":  # whole on every device, whatever the layout
        parts["copy of the retriever for a snapshot"] = arithmetic.whole_bytes(state.params["retriever"])
    if program.retriever is not None and run.refresh.search == "in_step":  # whatever backend the version is built for
        held = arithmetic.device_index_bytes(run.index, num_documents, program.retriever.embed_dim, always=True)
        parts["exact index, served and next"] = 2 * -(-held // sizes.num_devices)
        pieces = arithmetic.resident_bytes(num_documents, program.document_len)
        parts["documents' pieces"] = -(-pieces // sizes.num_devices)
    elif program.retriever is not None and run.index.backend == "exact":
        held = arithmetic.device_index_bytes(run.index, num_documents, program.retriever.embed_dim)
        hosts = machines.num_hosts if run.refresh.index_hosts == "sharded" else 1
        parts["exact index, served and next, first of a host"] = 2 * -(-held // hosts)
    train, query = compiled.get("train step"), compiled.get("query embedding")
    refused = {name: (one.needs_bytes, one.has_bytes) for name, one in compiled.items() if one.memory is None}
    if train is None or train.memory is None:
        examples = run.batch_size // run.accumulation_steps
        kept = examples * arithmetic.kept_bytes(program) / sizes.num_devices
        working = examples * arithmetic.working_bytes(program) / sizes.num_devices
        parts["gradients"] = arithmetic.device_bytes(_trained(state.params, program.frozen), sizes)
        if working and run.accumulation_steps > 1:
            parts["sum of the gradients of the parts before"] = parts["gradients"]
        parts["kept for the backward pass, at least"] = round(kept)
        if working:
            parts["logits, then one layer, about"] = round(working)
    else:
        known = parts["parameters"] + parts["optimizer moments"] + parts["batch of the step"]
        parts["padding of these arrays"] = max(0, train.memory.arguments - known)
        beside = query.memory.temporaries if query is not None and query.memory is not None else 0
        parts["temporaries"] = max(train.memory.temporaries, beside)  # one of the two runs at a time
        parts["new results"] = train.memory.results
        parts["program"] = train.memory.code
    reserved = machines.device_hbm_bytes - machines.device_usable_bytes
    parts["kept by the runtime"] = reserved
    embedder = compiled.get("embed job")
    embed_job = sum(embedder.memory) + reserved if embedder is not None and embedder.memory is not None else None
    return Memory(parts, machines.device_hbm_bytes, train is not None and train.memory is not None, refused, embed_job)


def _trained(params: Any, frozen: tuple[str, ...]) -> Any:
    """The parameters without the frozen ones; paths stay as they are."""
    if not frozen:
        return params

    def without(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            name: without(value, f"{prefix}{name}/") if isinstance(value, Mapping) else value
            for name, value in tree.items()
            if prefix + name not in frozen
        }

    return without(params, "")


def _step(
    run: PlannedRun,
    program: Program,
    machines: Slice,
    sizes: MeshSizes,
    state: Any,
    collectives: Collectives | None,
    utilisation: float,
) -> Step:
    trained = arithmetic.device_bytes(_trained(state.params, program.frozen), sizes)
    flops = arithmetic.step_flops(program, run.batch_size)
    moved = arithmetic.step_bytes(program, run.batch_size, sizes, run.accumulation_steps, trained)
    expected = arithmetic.expected_sent_bytes(program, run.batch_size, sizes, run.accumulation_steps, trained)
    sent = expected if collectives is None else collectives.sent_bytes
    peak = machines.num_devices * machines.device_flops_per_sec
    roofline = Roofline(
        arithmetic=sum(flops) / peak,
        memory=sum(moved) / machines.device_hbm_bytes_per_sec,
        interconnect=sent / machines.device_interconnect_bytes_per_sec,
    )
    return Step(
        flops=flops,
        bytes=moved,
        sent_bytes=sent,
        expected_sent_bytes=expected,
        roofline=roofline,
        mfu_limit=flops.model / (peak * roofline.secs),
        secs=flops.model / (peak * utilisation),
    )


def _refresh(
    run: PlannedRun,
    program: Program,
    machines: Slice,
    step: Step,
    num_documents: int,
    mean_document_len: int,
    embed_chips: int,
    utilisation: float,
) -> Refresh:
    assert program.retriever is not None
    flops = arithmetic.corpus_flops(program.retriever.encoder, num_documents, mean_document_len)
    steps_of_compute = flops / step.flops.model
    chip = machines.device_flops_per_sec * machines.generation.devices_per_chip
    return Refresh(
        mode=run.refresh.mode,
        flops=flops,
        steps_of_compute=steps_of_compute,
        secs=flops / (embed_chips * chip * utilisation),
        every_steps=steps_of_compute * machines.num_chips / embed_chips,
        wanted_every_steps=run.refresh.snapshot_every_steps,
        chips_wanted=math.ceil(steps_of_compute * machines.num_chips / run.refresh.snapshot_every_steps),
    )
