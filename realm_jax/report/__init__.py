"""The report of a run: final figures in report.json, and report.html to look at them with curves and examples."""

import logging

from realm_jax.report.assemble import assemble, table
from realm_jax.report.figures import check_figures, write_report
from realm_jax.report.gather import gather
from realm_jax.report.page import render
from realm_jax.run_dir import RunDir, write_text_atomically

logger = logging.getLogger(__name__)

__all__ = ["check_figures", "gather", "render", "report", "write_report"]


def report(*, run_dir: str) -> str:
    """Gathers the final figures into RUN/report.json and writes RUN/report.html: figures, curves, examples, settings, in one file that needs no network.

    Works while a run is still going: what is not there yet is named on the page.

    Args:
      run_dir: the run.

    Returns:
      The path of the page, which is printed too.

    Raises:
      FileNotFoundError: when there is no run in the directory.
      ValueError: for a report.json that lacks figures, or damaged JSON, naming the file.
    """
    run = RunDir.of(run_dir)
    # The command line writes the job's own configuration first, so a misspelt path exists by now.
    ours = {run.config_file("report").name, run.report_html.name}
    if not run.path.is_dir() or not {entry.name for entry in run.path.iterdir()} - ours:
        raise FileNotFoundError(f"there is no run in {run.path}; give the --run_dir that the run was started with")
    figures = assemble(run)
    if figures is not None:
        write_report(run, figures)
        print(table(figures))
    gathered = gather(run)
    for what in gathered.missing:
        logger.warning("the report lacks %s", what)
    write_text_atomically(run.report_html, render(gathered))
    print(run.report_html)
    return str(run.report_html)
