"""Whole pages inside a notebook."""

import html

from colab.runtime import Stop
from realm_jax.run_dir import RunDir


def report_html(run: RunDir, height: int = 800) -> str:
    """A run's report in a frame; it holds its figures itself, so nothing is fetched.

    Raises:
      Stop: there is none yet.
    """
    if not run.report_html.exists():
        raise Stop(f"{run.report_html} is not there yet; it is made at the end of the pre-training")
    page = html.escape(run.report_html.read_text(encoding="utf-8"))
    return f'<div><iframe srcdoc="{page}" style="width:100%;height:{height}px;border:0"></iframe></div>'
