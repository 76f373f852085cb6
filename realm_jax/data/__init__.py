"""Batches as pure functions of (seed, step, row): any host can make any row, and a resumed run makes the same ones."""
