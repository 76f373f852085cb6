"""The plan job: what a run would take of a TPU slice or of GPUs, known before they are rented."""

import json
from typing import Any

from realm_jax.plan.compiler_process import compile_apart
from realm_jax.plan.compiling import check_compiler
from realm_jax.plan.figures import Figures, gather
from realm_jax.plan.hardware import find_slice
from realm_jax.plan.planned_run import PlannedRun, mesh_sizes, run_of_the_file
from realm_jax.plan.table import as_json, table
from realm_jax.run_dir import RunDir, write_json_atomically

__all__ = ["Figures", "PlannedRun", "plan"]


def plan(
    *,
    run_dir: str,
    topology: str,
    analytical: bool = False,
    num_documents: int = 13_353_718,
    mean_document_len: int = 288,
    embed_chips: int = 16,
    utilisation: float = 0.4,
    run: PlannedRun | None = None,
) -> dict[str, Any]:
    """Says whether a run file's training fits on a TPU slice or on GPUs, and how fast it can be at best, on a machine without either.

    It takes any run file that the train job takes, and needs no corpus. The programs of the run are compiled by the real
    TPU compiler, which takes minutes; figures that need no compiler are counted by the shapes, and those of GPUs by them alone.

    Args:
      run_dir: gets plan.json.
      topology: the slice, such as v4:4x4x4, or GPUs, such as h100:64; an unknown one lists those that there are.
      analytical: compile nothing: what the shapes tell, in seconds, on any machine.
      num_documents: of the corpus; the paper's Wikipedia by default.
      mean_document_len: pieces that are embedded of a document, padding included.
      embed_chips: chips of the same generation that embed beside the slice; the paper has 16 beside 64.
      utilisation: share of the peak FLOP/s that is assumed where a time is not a lower bound.
      run: what to plan; by default what the run file trains.

    Returns:
      What plan.json holds.

    Raises:
      ValueError: for an unknown slice, settings that do not fit it or each other, or a missing compiler, with the remedy.
    """
    for name, value in (
        ("num_documents", num_documents),
        ("mean_document_len", mean_document_len),
        ("embed_chips", embed_chips),
    ):
        if value < 1:
            raise ValueError(f"plan.{name} must be at least 1, got {value}")
    if not 0 < utilisation <= 1:
        raise ValueError(f"plan.utilisation must be above 0 and at most 1, got {utilisation}")
    machines = find_slice(topology)
    if not analytical:
        check_compiler(machines.generation)
    run = run or run_of_the_file()
    program = run.program()
    sizes = mesh_sizes(run.mesh, machines.num_devices, run.batch_size, machines.name)
    compiled = {} if analytical else compile_apart(run, machines, sizes)
    figures = gather(
        run,
        program,
        machines,
        sizes,
        compiled,
        num_documents=num_documents,
        mean_document_len=mean_document_len,
        embed_chips=embed_chips,
        utilisation=utilisation,
    )
    print(table(figures))
    found = json.loads(json.dumps(as_json(figures)))
    write_json_atomically(RunDir.of(run_dir).path / "plan.json", found)
    return found
