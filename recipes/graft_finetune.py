"""Does a network train on better after a graft? Train one on the digits, graft it, fine-tune both as long.

python recipes/graft_finetune.py                     # three seeds: results/graft_finetune.json, with its command
python recipes/graft_finetune.py --seeds 0 --output runs/graft_finetune

Every run is a run folder of ``recipes/train.py``; the fine-tuning recipe is the digits recipe with a fifth of the
learning rate and no warm-up. Accuracy before fine-tuning is measured on the same test images. Interrupted, the same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import script  # isort: skip (before torch: Ctrl-C)
import torch

import edge_sk
from edge_sk.files import write_text
from edge_sk.manifest import manifest
from recipes.runs import train

RECIPES = Path(__file__).resolve().parent
RECORD = RECIPES / "results" / "graft_finetune.json"
ARCH = "torchvision:shufflenet_v2_x0_5"
ARMS = {
    "ungrafted": ARCH,
    "preserve, k and k+2": f"{ARCH}@kernels=3+5",
    "preserve, k and 3x3 dilated": f"{ARCH}@kernels=3+3d2",
    "random, k and 3x3 dilated": f"{ARCH}@kernels=3+3d2,init=random",
}


@torch.no_grad()
def top1(model: torch.nn.Module, folder: Path) -> tuple[float, torch.Tensor]:
    """Top-1 in per cent on the test digits, fed as the run folder says; and the scores."""
    from edge_sk.rewriting.normalize import Normalize
    from edge_sk.training.data import eval_batches
    from edge_sk.training.run import load_config

    model.eval()
    config = load_config(folder)
    normalize = Normalize(config.mean, config.std)
    batches = [
        (model(normalize(images)), labels) for images, labels in eval_batches(config.model_dump(), data="digits")
    ]
    scores, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return 100 * int((scores.argmax(1) == labels).sum()) / len(labels), scores


def one_seed(seed: int, output: Path, epochs: int) -> dict[str, Any]:
    """Train, graft in every way, fine-tune."""
    from edge_sk.training.randomness import seed_everything

    start = output / f"start-seed{seed}"
    trained = train(ARCH, start, seed, [f"schedule.epochs={epochs}"])["val_top1"]
    row: dict[str, Any] = {"seed": seed, "trained": trained, "arms": {}}
    fine = [f"checkpoint.init_from={start}", "optim.lr=0.02", "schedule.warmup_epochs=0", f"schedule.epochs={epochs}"]
    scores: dict[str, torch.Tensor] = {}
    for arm, arch in ARMS.items():
        seed_everything(seed, "weights")  # the network that the run below starts from
        model = edge_sk.create_model(arch, num_classes=10, init_from=start)
        before, scores[arm] = top1(model, start)
        name = arm.replace(",", "").replace("+", "").replace(" ", "-")
        row["arms"][arm] = {
            "before": before,
            "score_difference": float(
                (scores[arm] - scores["ungrafted"]).abs().max() / scores["ungrafted"].abs().max()
            ),
            "params": sum(parameter.numel() for parameter in model.parameters()),
            "after": train(arch, output / f"{name}-seed{seed}", seed, fine)["val_top1"],
        }
    return row


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and write its record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="of training, and again of fine-tuning")
    parser.add_argument("--output", type=Path, default=Path("runs/graft_finetune"), help="run folders")
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args(argv)
    rows = [one_seed(seed, args.output, args.epochs) for seed in args.seeds]
    summary = {
        arm: {
            key: {"mean": statistics.fmean(values), "values": values}
            for key in ("before", "after", "score_difference")
            if (values := [row["arms"][arm][key] for row in rows])
        }
        for arm in ARMS
    }
    command = ["recipes/graft_finetune.py", *(sys.argv[1:] if argv is None else argv)]
    record = {"arch": ARCH, "epochs": args.epochs, "summary": summary, "rows": rows} | manifest(command)
    write_text(args.record, json.dumps(record, indent=1) + "\n")
    for arm, values in summary.items():
        print(f"{arm:30} before {values['before']['mean']:6.2f} %   after {values['after']['mean']:6.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
