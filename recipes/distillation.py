"""Does a small network learn more from a larger, trained one than from the labels alone? On the embedded data.

python recipes/distillation.py            # five seeds: results/distillation.json, with its command

The teacher is trained once. For every seed the student is trained twice, with and without the teacher: same initial
weights, same batches, same augmentation. Every run is a run folder of ``recipes/train.py``; interrupted, the same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_sk.errors import script  # isort: skip (before torch: Ctrl-C)
from edge_sk.files import write_text
from edge_sk.manifest import manifest
from recipes.experiments.confidence import mean_interval
from recipes.runs import train

RECORD = Path(__file__).resolve().parent / "results" / "distillation.json"
MEASURES = ("val_top1", "val_loss")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--teacher", default="sk_shufflenetv2_1.0", metavar="A", help="(default: %(default)s)")
    parser.add_argument("--student", default="shufflenetv2_0.5", metavar="A", help="(default: %(default)s)")
    parser.add_argument("--recipe", default="digits", help="an embedded data set and its recipe (default: digits)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N", help="(default: 0 to 4)")
    parser.add_argument("--teacher-epochs", type=int, default=20, metavar="N", help="(default: 20)")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="of the student (default: 10)")
    parser.add_argument("--weight", type=float, default=0.5, help="distill.weight (default: 0.5)")
    parser.add_argument("--temperature", type=float, default=4.0, help="distill.temperature (default: 4)")
    parser.add_argument("--output", type=Path, default=Path("runs/distillation"), help="run folders")
    parser.add_argument("--record", type=Path, default=RECORD)
    return parser.parse_args(argv)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and write its record."""
    args = parse(argv)
    source, shared = args.output / "teacher", ["checkpoint.evaluate_every=1000"]
    taught = train(args.teacher, source, 0, [*shared, f"schedule.epochs={args.teacher_epochs}"], recipe=args.recipe)
    shared.append(f"schedule.epochs={args.epochs}")
    distill = [f"distill.teacher={source}", f"distill.weight={args.weight}", f"distill.temperature={args.temperature}"]
    arms: dict[str, list[dict[str, float]]] = {"labels alone": [], "distilled": []}
    for seed in args.seeds:
        for arm, overrides in zip(arms, ([], distill), strict=True):
            folder = args.output / f"{arm.replace(' ', '-')}-seed{seed}"
            row = train(args.student, folder, seed, [*shared, *overrides], recipe=args.recipe)
            arms[arm].append({"seed": seed} | {name: row[name] for name in MEASURES})
    differences = {name: [new[name] - old[name] for old, new in zip(*arms.values(), strict=True)] for name in MEASURES}
    record = {
        "teacher": {"arch": args.teacher, "epochs": args.teacher_epochs} | {name: taught[name] for name in MEASURES},
        "student": {"arch": args.student, "epochs": args.epochs},
        "recipe": args.recipe,
        "weight": args.weight,
        "temperature": args.temperature,
        "arms": arms,
        "difference": {
            name: {"mean": statistics.fmean(values), "ci95": mean_interval(values), "values": values}
            for name, values in differences.items()
        },
    } | manifest(["recipes/distillation.py", *(sys.argv[1:] if argv is None else argv)])
    write_text(args.record, json.dumps(record, indent=1) + "\n")
    for name, found in record["difference"].items():
        means = [statistics.fmean(row[name] for row in rows) for rows in arms.values()]
        interval = "[{:+.3f}, {:+.3f}]".format(*found["ci95"])
        print(f"{name}: labels alone {means[0]:.3f}, distilled {means[1]:.3f}: {found['mean']:+.3f} {interval}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
