"""Train into a run folder from a script that needs several runs; one that is finished is not trained again."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from edge_sk.training.loop import Report
from edge_sk.training.run import Row


def train(
    arch: str,
    folder: Path,
    seed: int,
    overrides: Sequence[str],
    *,
    recipe: str = "digits",
    data: str | None = None,
    device: str | None = "cpu",
    report: Report | None = None,
) -> Row:
    """Train on ``data``, by default the recipe's embedded data set; the last row of the history.

    ``report`` is told of every epoch in place of the terminal.

    Raises:
        KeyboardInterrupt: A signal stopped the run, which saved its state: the same call continues it.
    """
    from edge_sk.training.distributed import join_world
    from edge_sk.training.plan import start
    from edge_sk.training.run import RECIPE, WEIGHTS, can_resume
    from recipes.planning import make_plan
    from recipes.progress import progress

    resume = can_resume(folder)
    if not resume and (folder / RECIPE).is_file() and not (folder / WEIGHTS).exists():
        # Stopped before its first checkpoint: what would be resumed has no weights, not even those it started from.
        shutil.rmtree(folder)
    plan = make_plan(
        arch, recipe=recipe, data=data or recipe, output=str(folder), overrides=overrides, seed=seed, resume=resume
    )
    with join_world(device) as world:
        trainer = start(plan, world)
        with progress(trainer) if report is None else contextlib.nullcontext(report) as shown:
            if trainer.run(shown) is not None:
                raise KeyboardInterrupt
    return trainer.state.history[-1]
