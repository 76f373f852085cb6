"""Starts the torch side of a benchmark in its own environment and asks it for one run at a time."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

PEER = Path(__file__).parent / "peers" / "torch_realm.py"
DEFAULT_PYTHON = ".venv-parity/bin/python"


class TorchPeer:
    """A process with torch and transformers; both sides of a comparison run in turn, never at once."""

    def __init__(self, python: str = DEFAULT_PYTHON, script: Path = PEER):
        """
        Args:
          python: of the environment that `make parity` makes.
          script: what runs there.

        Raises:
          SystemExit: there is none, with the remedy.
        """
        if not Path(python).exists():
            raise SystemExit(f"{python} is not there; make the environment with `make .venv-parity/.installed`")
        environment = {**os.environ, "TRANSFORMERS_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One answer of the peer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the torch peer died; see its message above")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
