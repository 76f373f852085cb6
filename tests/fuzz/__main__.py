"""The long run: so many random inputs a target, each target in a process of its own; a line a target, then what was found.

    python -m tests.fuzz [--inputs=100000] [--targets=markdown,page] [--seed=7] [--minutes=10]

The seed is printed and repeats a run to the byte. Inputs that showed a fault are written to `--out`, one a finding.

Ends with status 1 if anything was found; with 3 if nothing was, but a target had fewer inputs than asked, which is said as SHORT.
"""

import argparse
import json
import multiprocessing
import random
import sys
from pathlib import Path

from tests.fuzz.long_run import fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="a target")
    parser.add_argument("--targets", default="", help="names, a comma between; all by default")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--minutes", type=float, default=60, help="at most, a target; then it is SHORT")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    names = options.targets.split(",") if options.targets else list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"unknown targets {', '.join(sorted(unknown))}, valid: {', '.join(TARGETS)}")
    print(
        f"seed {options.seed}\n{'target':26}{'inputs':>9}{'refused or read':>17}{'secs':>8}  findings",
        flush=True,
    )
    found = 0
    short: list[str] = []
    spawn = multiprocessing.get_context("spawn")
    for name in names:
        options.out.mkdir(parents=True, exist_ok=True)
        record = options.out / f"{name}.json"
        record.unlink(missing_ok=True)
        process = spawn.Process(target=fuzz, args=(name, vars(options)))
        process.start()
        process.join()
        done = json.loads(record.read_text()) if record.exists() else {"inputs": 0, "secs": 0.0, "findings": {}}
        if process.exitcode:
            done["findings"][f"the process ended with {process.exitcode}, input {options.out / name}.last"] = ""
        findings = done["findings"]
        is_short = done["inputs"] < options.inputs
        print(
            f"{name:26}{done['inputs']:9}{done['inputs'] - done.get('faults', 0):17}{done['secs']:8.0f}  {len(findings)}"
            f"{'  SHORT' if is_short else ''}",
            flush=True,
        )
        for what, where in findings.items():
            print(f"    {what}  {where}", flush=True)
        found += len(findings)
        if is_short:
            short.append(name)
    if short:
        print(
            f"SHORT: {len(short)} of {len(names)} targets had fewer than the {options.inputs} inputs asked, in {options.minutes:g} minutes "
            f"each: {', '.join(short)}; give more --minutes"
        )
    return 1 if found else 3 if short else 0


if __name__ == "__main__":
    sys.exit(main())
