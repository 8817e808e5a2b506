"""Train a network: ``edge-sk train --arch sk_shufflenetv2_1.0``."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sk.errors import require, script

if TYPE_CHECKING:
    from edge_sk.training.plan import Plan

RECIPES = Path(__file__).resolve().parent
# Training images and classes of torch/NAME, so that --dry-run needs no download.
KNOWN = {
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "mnist": (60_000, 10),
    "fashion_mnist": (60_000, 10),
    "kmnist": (60_000, 10),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="edge-sk train",
        description=__doc__,
        epilog=f"Recipes: {', '.join(sorted(path.stem for path in RECIPES.glob('*.yaml')))}. Everything else is a "
        "field of the recipe: the repository's recipes/README.md explains them all, --dry-run prints those of a run.",
    )
    parser.add_argument("--arch", required=True, help="a name of the zoo, timm:NAME or torchvision:NAME")
    parser.add_argument("--recipe", help="a recipe beside this script or a .yaml file (default: by data and arch)")
    parser.add_argument(
        "--data", help="digits, scaled_digits, scaled_glyphs, FOLDER (train/, val/), torch/NAME, hfds/NAME, wds/FOLDER"
    )
    parser.add_argument("--output", metavar="DIR", help="run folder (default: runs/ARCH-RECIPE-DATA-seedN)")
    parser.add_argument(
        "--set", metavar="K=V", nargs="+", action="extend", default=[], help="recipe fields, as optim.lr=0.1"
    )
    parser.add_argument("--seed", type=int, help="(default: 0)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best there is)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the run folder")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes (default: by data and cores)")
    parser.add_argument("--dry-run", action="store_true", help="print recipe, parameters, MACs and steps")
    return parser.parse_args(argv)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    args = parse(argv)
    from edge_sk.export.parity import MIN_IMAGES
    from edge_sk.training.distributed import join_world
    from edge_sk.training.plan import start
    from recipes.curves import plot_curves
    from recipes.planning import make_plan
    from recipes.progress import progress

    plan = make_plan(
        args.arch,
        recipe=args.recipe,
        data=args.data,
        output=args.output,
        overrides=args.set,
        seed=args.seed,
        resume=args.resume,
    )
    # The library tells which weights a network starts from, and what of it starts fresh.
    logging.basicConfig(format="%(message)s")
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("edge_sk.models").setLevel(logging.INFO)
    schedule = plan.recipe.schedule
    if schedule.milestones and schedule.milestones[0] >= schedule.epochs and os.environ.get("RANK", "0") == "0":
        print(
            f"warning: the learning rate never falls: schedule.milestones begin at epoch {schedule.milestones[0]} of "
            f"{schedule.epochs}; for instance --set schedule.name=cosine schedule.milestones=[]",
            file=sys.stderr,
        )
    if args.dry_run:
        print_plan(plan)
        return 0
    require("matplotlib", extra="train", needed_for="curves.png")  # drawn when the training ends
    with join_world(args.device) as world:
        trainer = start(plan, world, workers=args.workers, argv=None if argv is None else ["recipes/train.py", *argv])
        if world.is_main and trainer.finished:
            print(f"{plan.folder} is finished: all {len(trainer.state.history)} epochs were trained before")
        elif world.is_main and trainer.state.step:
            print(f"{plan.folder} continues after step {trainer.state.step:,}")
        with progress(trainer) as report:
            stopped = trainer.run(report)
        if not world.is_main:
            return 0 if stopped is None else 128 + stopped
    if trainer.state.history:
        plot_curves(plan.folder, trainer.state.history, title=trainer.title)
    folder = shlex.quote(str(plan.folder))
    if stopped is not None:
        print(f"\nstopped by {signal.Signals(stopped).name} at step {trainer.state.step}; saved. Continue with:")
        resume = shlex.join(["--arch", plan.arch, "--output", str(plan.folder), "--resume"])
        print(f"  edge-sk train {resume}")
        return 128 + stopped
    last = trainer.state.history[-1]
    print(f"\ntop-1 {last['val_top1']:.2f} % on {last['val_images']:,} validation images. Run folder: {plan.folder}")
    print("Next:")
    print(f"  edge-sk evaluate --checkpoint {folder}")
    exports = shlex.quote(os.path.join("exports", plan.folder.name))
    int8 = " --precisions int8" if plan.recipe.quantization.qat else ""
    print(f"  edge-sk export --checkpoint {folder} --output {exports}{int8}")
    if last["val_images"] < MIN_IMAGES:
        print(f"An export is proven on at least {MIN_IMAGES} validation images: give it others with --data.")
    return 0


def print_plan(plan: Plan) -> None:
    """What the run would be: recipe, parameters, MACs, steps."""
    from edge_sk.profiling import profile
    from edge_sk.training.data import count_classes, open_both, steps_per_epoch
    from edge_sk.training.plan import build_model
    from edge_sk.training.recipe import recipe_to_yaml

    options, name = plan.recipe.data, plan.data.removeprefix("torch/").lower()
    if plan.data.startswith("torch/") and name in KNOWN:
        images, classes = KNOWN[name]
        images -= round(options.holdout * images)
        num_classes, validation = options.num_classes or classes, ""
    else:
        train, test = open_both(plan.data, options)
        images, num_classes = len(train), count_classes(plan.data, train.classes, options)
        validation = f", {len(test):,} validation images"
    model, preprocessing = build_model(plan, num_classes)
    cost = profile(model, input_size=(1, *preprocessing.input_size))
    batch, epochs = plan.recipe.data.batch_size, plan.recipe.schedule.epochs
    steps = steps_per_epoch(images, batch)
    print(recipe_to_yaml(plan.recipe))
    print(f"arch        {plan.arch}")
    print(f"data        {plan.data}: {images:,} training images{validation}, {num_classes:,} classes")
    print(f"input       {' x '.join(map(str, preprocessing.input_size))}")
    print(f"parameters  {cost.params:,}")
    print(f"MACs        {cost.macs:,}")
    left = f"; {images % batch} of each epoch's images unused" if images % batch else ""
    print(f"steps       {steps * epochs:,} ({epochs} epochs of {steps:,} steps of {batch} images{left})")
    print(f"run folder  {plan.folder}")


if __name__ == "__main__":
    sys.exit(main())
