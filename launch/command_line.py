"""The command line of launch/local.py."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import options
from hosts import Host, check_devices, has_tpu, host_in

from realm_jax.run_dir import RunDir, check_can_write
from realm_jax.storage import Place, RemotePath, as_place


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line said."""

    run: RunDir
    documents: tuple[str, ...]
    recipe: str
    bindings: tuple[str, ...]
    embedder: str
    embedder_devices: str
    trainer_devices: str
    host: Host = Host()
    embed_only: bool = False
    logs: Path = Path("logs")

    @property
    def embeds(self) -> bool:
        """Whether an embed job runs here beside the trainer."""
        return self.embedder in ("cpu", "devices")

    @property
    def lock(self) -> Place:
        """Held by the launcher of this machine."""
        return self.run.launcher_lock if self.host.is_first else self.run.other_launcher_lock(self.host.number)

    @property
    def run_file(self) -> str:
        return self.stage_file("realm")

    def stage_file(self, stage: str) -> str:
        return f"runs/{stage}_{self.recipe}.gin"


def parse(arguments: Sequence[str], description: str | None = None) -> Settings:
    """What the arguments say; ends with status 2 and a message where they make no sense together."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--run_dir", required=True, help="where the run lies; an interrupted one is resumed")
    options.add_options(parser)
    parser.add_argument(
        "--embed_only", action="store_true", help="this machine embeds for a trainer elsewhere, and does nothing else"
    )
    parser.add_argument(
        "--host", type=int, help="which of the run's machines this is; default: as the environment says"
    )
    parser.add_argument("--num_hosts", type=int, help="how many machines execute this command for the run")
    known, others = parser.parse_known_args(arguments)
    try:
        chosen = options.check(known, others, known.embed_only)
    except ValueError as refused:
        parser.error(str(refused))
    for source in known.corpus:
        if not source.startswith("tfds:") and not as_place(source).exists():
            parser.error(f"--corpus={source} does not exist")
    if (known.host is None) != (known.num_hosts is None):
        parser.error("--host and --num_hosts go together, such as --host=0 --num_hosts=4")
    if known.host is not None and not 0 <= known.host < known.num_hosts:
        parser.error(f"--host must lie between 0 and --num_hosts - 1 = {known.num_hosts - 1}, got {known.host}")
    try:
        host = host_in(os.environ) if known.host is None else Host(known.host, known.num_hosts)
        for name in ("trainer_devices", "embedder_devices"):
            check_devices(getattr(known, name), f"--{name}", host, has_tpu())
        check_can_write(known.run_dir, "--run_dir")
    except ValueError as refused:
        parser.error(str(refused))
    if chosen.embedder == "in_trainer" and known.embed_only:
        parser.error("--embed_only embeds for a trainer that does not: start that with --embedder=none")
    run = RunDir.of(known.run_dir)
    return Settings(
        run=run,
        documents=tuple(known.corpus),
        recipe=chosen.recipe,
        bindings=tuple(others),
        embedder=chosen.embedder,
        embedder_devices=known.embedder_devices,
        trainer_devices=known.trainer_devices,
        host=host,
        embed_only=known.embed_only,
        logs=log_folder(run, host, known.embed_only, known.log_dir),
    )


def log_folder(run: RunDir, host: Host, embed_only: bool, said: str | None) -> Path:
    """Where this machine's jobs leave their output: never where those of another machine of the run leave theirs."""
    logs = Path(said) if said else Path("logs", run.path.name) if isinstance(run.path, RemotePath) else run.logs
    if host.is_first and not embed_only:
        return logs
    return logs / f"{'embed-' if embed_only else ''}host-{host.number:05d}"
