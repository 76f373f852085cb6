"""The options of a run that launch/local.py knows, on whatever machine they are typed; nothing that must be installed is needed for it."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from recipes import recipes

PASSED_ON = ("recipe", "embedder", "trainer_devices", "embedder_devices", "log_dir")
"""Beside --corpus, which may be given several times, and --gin.*."""


class Choices(NamedTuple):
    """What holds where nothing else was said."""

    recipe: str
    embedder: str


def add_options(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument(
        "--corpus",
        action="append",
        default=[],
        help="your documents, in any format of the corpus job; may be given several times; none: the embedded corpus",
    )
    parser.add_argument(
        "--recipe",
        choices=recipes(),
        help="the run files gin/runs/{reader,ict,realm}_RECIPE.gin; default: documents with --corpus, tiny without",
    )
    parser.add_argument(
        "--embedder",
        choices=("cpu", "devices", "in_trainer", "none"),
        help="where documents are embedded: on the CPU beside the trainer (default), on --embedder_devices, by the "
        "trainer itself between its steps, or on other machines alone, with launch/local.py --embed_only there",
    )
    parser.add_argument("--trainer_devices", default="", help="accelerators of the trainer, such as 0,1,2")
    parser.add_argument("--embedder_devices", default="", help="accelerators of the embed job, such as 3")
    parser.add_argument(
        "--log_dir", help="where the jobs' output goes; default: RUN/logs, of an object store ./logs/RUN"
    )


def check(known: argparse.Namespace, others: Sequence[str], embed_only: bool = False) -> Choices:
    """What holds of the options.

    Args:
      known: what `add_options` knows.
      others: the arguments that were left over: settings of the run files.
      embed_only: whether this machine only embeds.

    Raises:
      ValueError: arguments that are not known, or make no sense together.
    """
    for argument in others:
        if argument.startswith("--gin.") and "=" not in argument:
            raise ValueError(f"{argument} has no value; use =, as in {argument}=VALUE")
        if not argument.startswith("--gin."):
            raise ValueError(
                f"unknown argument {argument}; besides those of --help only --gin.NAME.PARAM=VALUE is passed on to the jobs"
            )
    embedder = known.embedder or "cpu"
    if not embed_only:
        both = known.trainer_devices and known.embedder_devices
        if embedder == "devices" and not both:
            raise ValueError(
                "--embedder=devices needs --embedder_devices, and --trainer_devices without them, such as "
                f"--trainer_devices=0,1,2 --embedder_devices=3; got {known.trainer_devices!r} and {known.embedder_devices!r}"
            )
        if embedder != "devices" and known.embedder_devices:
            raise ValueError(
                f"--embedder_devices={known.embedder_devices} is for --embedder=devices, got --embedder={embedder}; "
                "give that, or leave the devices out"
            )
        shared = sorted({*known.trainer_devices.split(",")} & {*known.embedder_devices.split(",")})
        if both and shared:
            raise ValueError(
                f"--trainer_devices and --embedder_devices both have {shared[0]}; give each accelerator to one"
            )
    recipe = known.recipe or ("documents" if known.corpus else "tiny")
    if (recipe == "tiny") == bool(known.corpus):
        raise ValueError(
            f"--recipe={recipe} {'is for the embedded corpus, not for' if known.corpus else 'needs'} --corpus"
        )
    return Choices(recipe, embedder)
