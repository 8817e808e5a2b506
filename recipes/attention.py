"""Show which kernel a network prefers: ``python recipes/attention.py --checkpoint runs/RUN --output reports/NAME``.

Plots the attention for the largest kernel minus that for the smallest, in every selective-kernel unit, against the size
of the object (the SKNet paper's Figure 3 c); attention.json has it by class and by channel too. Several checkpoints,
seeds of one architecture, give intervals over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_sk.errors import InputError, script
from edge_sk.files import check_output, write_text

# How much the middle of the picture is enlarged, as in the paper.
ENLARGEMENTS = [1.0, 1.5, 2.0]
# Size of the digit, as a fraction of the canvas.
OBJECT_SCALES = [0.25, 0.5, 1.0]
# Images enlarged more than this do not fit into memory.
MOST_ENLARGED = 10.0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--checkpoint", required=True, nargs="+", metavar="RUN", help="folders that train.py wrote")
    parser.add_argument("--data", help="as for train.py (default: what the run was trained on)")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        metavar="X",
        help="ascending; enlargements of the middle (default: 1.0 1.5 2.0), for drawn data fractions of the canvas "
        "(default: 0.25 0.5 1.0)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="images (default: the whole test set)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at once")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="loader processes")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps")
    parser.add_argument("--output", required=True, metavar="DIR", help="for attention.json, .md and .png")
    parser.add_argument("--record", metavar="FILE", help="write the JSON here too")
    return parser.parse_args(argv)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Record, summarize, draw; returns the exit code."""
    args = parse(argv)
    import torch

    from edge_sk.attention import attention_against_scale
    from edge_sk.manifest import manifest
    from edge_sk.training.data import MOST_WORKERS, eval_batches, open_split
    from edge_sk.training.distributed import pick_device
    from edge_sk.training.run import data_options, load_run
    from recipes.experiments.attention_figure import plot
    from recipes.experiments.attention_summary import markdown, summarize
    from recipes.experiments.comparison import epochs_trained, independent_seeds, trained_at

    device = pick_device(args.device)
    seeds = independent_seeds(args.checkpoint)
    loaded = [load_run(folder) for folder in args.checkpoint]
    config = loaded[0].config
    data = args.data or config.data
    if data.startswith(("scaled_digits@", "scaled_glyphs@")):
        raise InputError(f"--data {data}: the scale is what is varied; leave out @SCALE and give --scales")
    drawn = data in ("scaled_digits", "scaled_glyphs")
    scales = args.scales or (OBJECT_SCALES if drawn else ENLARGEMENTS)
    if scales != sorted(set(scales)) or len(scales) < 2 or not all(map(math.isfinite, scales)):
        raise InputError(f"--scales {' '.join(f'{scale:g}' for scale in scales)}: give two or more, ascending")
    for scale in scales:
        if not drawn and not 1 <= scale <= MOST_ENLARGED:
            raise InputError(
                f"--scales {scale:g}: the middle of an image can only be enlarged, by 1.0 to {MOST_ENLARGED}"
            )
    # One image of one network has no interval.
    least_images = 1 if len(args.checkpoint) > 1 else 2
    for name, value, least, most in (
        ("--limit", args.limit, least_images, math.inf),
        ("--batch-size", args.batch_size, 1, math.inf),
        ("--workers", args.workers, 0, MOST_WORKERS),
    ):
        if value is not None and not least <= value <= most:
            limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise InputError(f"{name} {value} must be {limits}")
    # Before the work: whether there are images, and a place for what comes of them.
    open_split(data, "test", data_options(args.checkpoint[0], data), expected_classes=config.classes)
    output = Path(args.output)
    check_output(output)
    if args.record:
        check_output(Path(args.record).parent)
    runs = []
    for folder, run in zip(args.checkpoint, loaded, strict=True):
        mean, std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (run.config.mean, run.config.std)
        )

        def normalize(images: torch.Tensor, mean: torch.Tensor = mean, std: torch.Tensor = std) -> torch.Tensor:
            return (images.to(mean.device) - mean) / std

        options = data_options(folder, data)
        batches = {}
        for scale in scales:
            # Resizing the whole image by so much more before cutting the same middle is crop and resize in one.
            crop_pct = run.config.crop_pct if drawn else run.config.crop_pct / scale
            batches[scale] = eval_batches(
                run.config.model_dump() | {"crop_pct": crop_pct},
                data=f"{data}@{scale}" if drawn else data,
                limit=args.limit,
                batch_size=args.batch_size,
                workers=args.workers,
                options=options,
                expected_classes=run.config.classes,
            )
        model = run.model.to(device)
        runs.append(attention_against_scale(model, batches, normalize, num_classes=run.config.num_classes))
        print(f"{folder}: {len(runs[-1].units)} units, {runs[-1].by_image.shape[1]} images", file=sys.stderr)
    summary = {
        "arch": config.arch,
        "data": data,
        "recipe": config.recipe,
        "epochs": epochs_trained(args.checkpoint[0]),
        "seeds": seeds,
        "trained_at": sorted(set().union(*map(trained_at, args.checkpoint))),
    } | summarize(runs, config.classes)
    summary |= manifest(None if argv is None else ["recipes/attention.py", *argv])
    text = json.dumps(summary, separators=(",", ":")) + "\n"
    for path in filter(None, (output / "attention.json", args.record)):
        write_text(path, text)
    write_text(output / "attention.md", markdown(summary))
    plot(summary, output / "attention.png", title=f"{config.arch} on {data}")
    print(markdown(summary))
    print(f"{output}: attention.json, attention.md, attention.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
