"""A plan as a table to read, and as JSON."""

import dataclasses
import importlib.metadata
from typing import Any

from realm_jax.plan.figures import Figures


def table(figures: Figures) -> str:
    """The plan in plain text."""
    sections = [
        _head(figures),
        _memory(figures),
        _step(figures),
        _collectives(figures),
        _refresh(figures),
        _host_memory(figures),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _row(label: str, value: str, note: str = "") -> str:
    return f"  {label:<46} {value:>12}  {note}".rstrip()


def _gib(count: int | float) -> str:
    """Bytes of memory, in the binary unit that suits them.

    >>> _gib(32 << 30), _gib(5_420_000), _gib(31_000), _gib(0)
    ('32.00 GiB', '5.17 MiB', '30.3 KiB', '0 B')
    """
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= 0.1 * size:
            return f"{count / size:.2f} GiB" if unit == "GiB" else f"{count / size:.3g} {unit}"
    return f"{count:.3g} B"


def _large(count: int | float, unit: str) -> str:
    """A count with a decimal prefix.

    >>> _large(1.38e15, "FLOP"), _large(950, "B"), _large(0, "B")
    ('1.38 PFLOP', '950 B', '0 B')
    """
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {prefix}{unit}"
    return f"{count:.3g} {unit}"


def _time(secs: int | float) -> str:
    """Seconds, in the unit that suits them.

    >>> _time(0.0004), _time(0.195), _time(12), _time(400), _time(39000)
    ('0.4 ms', '195 ms', '12 s', '6.7 min', '10.8 h')
    """
    if secs < 1:
        return f"{secs * 1e3:.3g} ms"
    if secs < 120:
        return f"{secs:.3g} s"
    return f"{secs / 60:.1f} min" if secs < 7200 else f"{secs / 3600:.1f} h"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _head(figures: Figures) -> list[str]:
    machines, run = figures.machines, figures.run
    device = machines.generation.device
    cores = f" of 2 cores, {machines.num_devices} devices" if device == "core" else ""
    rows = run.batch_size / figures.sizes.rows
    micro = f" in {run.accumulation_steps} parts" if run.accumulation_steps > 1 else ""
    return [
        f"{figures.program.name} on {machines.name}: {_plural(machines.num_chips, machines.generation.chip)}{cores}, {_plural(machines.num_hosts, 'host')}; "
        f"mesh {figures.sizes}; batch {run.batch_size}{micro}, {rows:g} a {device}",
        f"fits: {_verdict(figures)}",
    ]


def _verdict(figures: Figures) -> str:
    memory, device = figures.memory, figures.machines.generation.device
    if memory.refused:
        told = "; ".join(
            f"the {name} needs at least {_gib(needs)}, the compiler may use {_gib(has)}"
            for name, (needs, has) in memory.refused.items()
        )
        return f"NO: {told} of a {device}"
    if memory.fits is False:
        if memory.needed <= memory.capacity:
            return f"NO: the embed job needs {_gib(memory.embed_job or 0)}, a {device} has {_gib(memory.capacity)}"
        least = "" if memory.is_whole else "at least "
        return f"NO: needs {least}{_gib(memory.needed)} of a {device}, which has {_gib(memory.capacity)}"
    if memory.fits is None:
        return f"not known without compiling; needs at least {_gib(memory.needed)} of a {device}, which has {_gib(memory.capacity)}"
    return f"yes; {_gib(memory.capacity - memory.needed)} of {_gib(memory.capacity)} a {device} stay free"


def _memory(figures: Figures) -> list[str]:
    memory, device = figures.memory, figures.machines.generation.device
    lines = [f"memory of a {device}"]
    lines += [_row(name, _gib(count)) for name, count in memory.parts.items()]
    free = memory.capacity - memory.needed
    lines.append(
        _row("free" if memory.is_whole else "free, at most", _gib(max(free, 0)), f"of {_gib(memory.capacity)}")
    )
    if memory.embed_job is not None:
        batches = figures.run.batches
        note = f"{batches.batch_size} documents of {batches.document_len} at once on one host"
        lines.append(_row(f"a {device} of the embed job", _gib(memory.embed_job), note))
    if figures.compile_secs:
        told = ", ".join(f"{name} {_time(secs)}" for name, secs in figures.compile_secs.items())
        lines.append(f"  compiled: {told}; {_versions()}")
    return lines


def _versions() -> str:
    found = []
    for name in ("jax", "libtpu"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def _step(figures: Figures) -> list[str]:
    step, run, device = figures.step, figures.run, figures.machines.generation.device
    roofline, moved = step.roofline, step.bytes
    again = f"and {_large(step.flops.recomputed, 'FLOP')} made again (remat)" if step.flops.recomputed else ""
    source = "by the compiled program" if figures.collectives is not None else "by the shapes"
    all_steps = f"all {run.num_steps} steps: {_time(step.secs * run.num_steps)}"
    percent = f"{100 * figures.assumed['utilisation']:g} %"
    return [
        "a step",
        _row("model FLOPs, forward and backward", _large(step.flops.model, "FLOP"), again),
        _row(f"memory read and written, a {device}", _large(sum(moved), "B"), _parts(moved._asdict())),
        _row(f"sent to other {device}s, a {device}", _large(step.sent_bytes, "B"), source),
        _row("at least, by arithmetic", _time(roofline.arithmetic)),
        _row("at least, by memory", _time(roofline.memory)),
        _row("at least, by interconnect", _time(roofline.interconnect)),
        _row(
            "the greatest of the three",
            _time(roofline.secs),
            f"{roofline.limit} limits; mfu at most {100 * step.mfu_limit:.0f} %",
        ),
        _row(f"if mfu is {percent}", _time(step.secs), all_steps),
    ]


def _parts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_large(count, 'B')}" for name, count in counts.items() if count)


def _collectives(figures: Figures) -> list[str]:
    if figures.collectives is None:
        return []
    device = figures.machines.generation.device
    lines = [f"collectives of a step, a {device}"]
    for one in figures.collectives.traffic:
        note = f"arrays of {_large(one.payload_bytes, 'B')}, sent {_large(one.sent_bytes, 'B')}"
        lines.append(_row(one.kind, f"{one.times} times", note))
    if not figures.collectives.traffic:
        lines.append("  none")
    lines.append(_row("expected by the shapes", "", f"sent {_large(figures.step.expected_sent_bytes, 'B')}"))
    if figures.collectives.uncounted_loops:
        lines.append(
            f"  {_plural(figures.collectives.uncounted_loops, 'loop')} with collectives of unknown length counted once: "
            "the figures are too small"
        )
    return lines


def _refresh(figures: Figures) -> list[str]:
    refresh, assumed, step = figures.refresh, figures.assumed, figures.step
    if refresh is None:
        return []
    chip, percent = figures.machines.generation.chip, f"{100 * assumed['utilisation']:g} %"
    chips = _plural(assumed["embed_chips"], chip)
    lines = [
        f"a refresh: {assumed['num_documents']} documents of {assumed['mean_document_len']} pieces",
        _row(
            "FLOPs of embedding them", _large(refresh.flops, "FLOP"), f"those of {refresh.steps_of_compute:.0f} steps"
        ),
        _row(f"on {chips} beside the slice", _time(refresh.secs), f"at {percent} of the peak"),
    ]
    if refresh.mode == "frozen":
        return [*lines, "  the run embeds them once (RefreshConfig.mode='frozen')"]
    if refresh.mode == "synchronous":
        waits = refresh.secs / (refresh.secs + refresh.wanted_every_steps * step.secs)
        note = f"every {refresh.wanted_every_steps} steps: {100 * waits:.0f} % of the time (RefreshConfig.mode='synchronous')"
        return [*lines, _row("training waits for it", _time(refresh.secs), note)]
    return [
        *lines,
        _row(
            "the index is renewed every",
            f"{refresh.every_steps:.0f} steps",
            "at the same share of the peak as the trainer's",
        ),
        _row(
            f"for every {refresh.wanted_every_steps} steps, as set", _plural(refresh.chips_wanted, chip), "must embed"
        ),
    ]


def _host_memory(figures: Figures) -> list[str]:
    held = figures.host_memory
    if held is None:
        return []
    if held.on_devices:
        return [
            f"index (exact) on the first {figures.machines.generation.device} of every host; its float32 rows in files, "
            f"{_large(held.index.rows, 'B')}"
        ]
    hosts, set_so = figures.machines.num_hosts, "as the run is set"
    replicated, sharded = (f"with RefreshConfig.index_hosts='{way}'" for way in ("replicated", "sharded"))
    whole = f"twice that while a version is swapped in; {replicated if held.is_sharded else set_so}"
    lines = [
        f"index ({figures.run.index.backend}) in the memory of a host",
        _row("every host holds all", _large(held.replicated, "B"), _parts(held.index._asdict())),
        _row("", "", whole),
    ]
    if hosts > 1:
        note = f"likewise; {set_so if held.is_sharded else sharded}"
        lines.append(_row(f"each of {hosts} hosts its share", _large(held.sharded, "B"), note))
    return lines


def as_json(figures: Figures) -> dict[str, Any]:
    """Everything in the table, in bytes, FLOPs and seconds."""
    memory, step = figures.memory, figures.step
    run = dataclasses.asdict(figures.run)
    return {
        "task": figures.program.name,
        "topology": figures.machines.name,
        "num_chips": figures.machines.num_chips,
        "num_devices": figures.machines.num_devices,
        "num_hosts": figures.machines.num_hosts,
        "device": figures.machines.generation.device,
        "mesh": figures.sizes._asdict(),
        "fits": memory.fits,
        "memory_bytes": {
            "parts": memory.parts,
            "needed": memory.needed,
            "capacity": memory.capacity,
            "is_whole": memory.is_whole,
            "refused": {name: list(pair) for name, pair in memory.refused.items()},
            "embed_job": memory.embed_job,
        },
        "compile_secs": {name: round(secs, 1) for name, secs in figures.compile_secs.items()},
        "versions": _versions(),
        "step": {
            "flops": step.flops._asdict(),
            "memory_bytes": step.bytes._asdict(),
            "sent_bytes": step.sent_bytes,
            "expected_sent_bytes": step.expected_sent_bytes,
            "roofline_secs": step.roofline._asdict(),
            "limit": step.roofline.limit,
            "mfu_limit": step.mfu_limit,
            "secs": step.secs,
        },
        "collectives": None
        if figures.collectives is None
        else {
            "by_kind": [one._asdict() for one in figures.collectives.traffic],
            "uncounted_loops": figures.collectives.uncounted_loops,
        },
        "refresh": None if figures.refresh is None else figures.refresh._asdict(),
        "index_host_bytes": None
        if figures.host_memory is None
        else figures.host_memory._asdict() | {"index": figures.host_memory.index._asdict()},
        "assumed": figures.assumed,
        "run": run,
    }
