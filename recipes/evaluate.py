"""Evaluate a trained network: ``edge-sk evaluate --checkpoint runs/RUN``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence

from edge_sk.errors import InputError, script

# Fields of the recipe's data section that decide nothing in a test.
OF_TRAINING = ("batch_size", "accumulation", "train_split", "num_classes", "holdout")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="edge-sk evaluate", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="folder that train.py wrote")
    parser.add_argument("--data", help="as for train.py (default: what the run was trained on)")
    parser.add_argument("--input-size", type=int, metavar="PIXELS", help="crop, for example 320 (default: the run's)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images per process (default: the recipe's)")
    parser.add_argument("--set", metavar="K=V", nargs="+", action="extend", default=[], help="data.* recipe fields")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best there is)")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes (default: by data and cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def check_fields(overrides: Sequence[str]) -> None:
    """Refuse what an evaluation would ignore.

    Raises:
        InputError: A field of the training alone, or one given twice, as by ``--input-size`` and ``--set``.
    """
    keys = [override.partition("=")[0].strip() for override in overrides]
    for key in keys:
        section, _, field = key.partition(".")
        if section != "data" or field in OF_TRAINING:
            raise InputError(
                f"--set {key} changes nothing in an evaluation; fields of data do, except {', '.join(OF_TRAINING)}"
            )
        if keys.count(key) > 1:
            raise InputError(f"{key} is given {keys.count(key)} times; give it once")


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; returns the exit code."""
    args = parse(argv)
    from edge_sk.training.data import make_shard, open_split, ordered_batches
    from edge_sk.training.distributed import join_world
    from edge_sk.training.evaluation import evaluate
    from edge_sk.training.run import load_run, saved_recipe, unfinished
    from edge_sk.training.transforms import Normalizer, Preprocessing, evaluation_transform

    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size} must be at least 1")
    if args.input_size is not None and args.input_size < 8:
        raise InputError(f"--input-size {args.input_size} is too small: at least 8 pixels")
    run = load_run(args.checkpoint)
    config = run.config
    overrides = list(args.set)
    overrides += [] if args.input_size is None else [f"data.input_size={args.input_size}"]
    overrides += [] if args.batch_size is None else [f"data.eval_batch_size={args.batch_size}"]
    options = saved_recipe(args.checkpoint, overrides).data
    check_fields(overrides)
    preprocessing = Preprocessing.of(config.model_dump(), options)
    data = args.data or config.data
    epochs = unfinished(args.checkpoint)
    with join_world(args.device) as world:
        shard = make_shard(data, world, args.workers)
        opened = open_split(data, "test", options, expected_classes=config.classes)
        transform = evaluation_transform(preprocessing.input_size, preprocessing.crop_pct, preprocessing.interpolation)
        batches = ordered_batches(opened, transform, shard, batch_size=options.eval_batch_size)
        normalizer = Normalizer(config, world.device)
        metrics = evaluate(run.model.to(world.device), batches, normalizer, world)
        for name in metrics.unreadable:
            print(f"warning: skipped an image that cannot be read: {name}", file=sys.stderr)
        if len(metrics.unreadable) > options.max_unreadable:
            raise InputError(
                f"{len(metrics.unreadable)} images cannot be read, data.max_unreadable allows {options.max_unreadable}"
            )
        if not math.isfinite(metrics.loss):
            raise InputError(
                f"the loss is {metrics.loss}: the network's outputs are not finite; its weights or config.json are "
                "damaged"
            )
        if not world.is_main:
            return 0
    if epochs:
        print(f"warning: the training of {args.checkpoint} is not finished: {epochs}", file=sys.stderr)
    if args.json:
        result = {
            "top1": metrics.top1,
            "top5": metrics.top5,
            "loss": metrics.loss,
            "images": metrics.images,
            "unreadable": len(metrics.unreadable),
            "input_size": list(preprocessing.input_size),
            "crop_pct": preprocessing.crop_pct,
            "interpolation": preprocessing.interpolation,
            "unfinished": epochs,
            "arch": config.arch,
            "data": data,
        }
        print(json.dumps(result, allow_nan=False))
    else:
        size = " x ".join(map(str, preprocessing.input_size[1:]))
        top5 = f"top-5 {metrics.top5:.2f} %, " if config.num_classes > 5 else ""
        print(
            f"{config.arch} on {data} at {size}, crop {preprocessing.crop_pct:g}: top-1 {metrics.top1:.2f} %, "
            f"{top5}loss {metrics.loss:.4f}, {metrics.images:,} images"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
