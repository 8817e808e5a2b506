"""What int8 costs in accuracy after training, and with quantization-aware training. On the embedded data.

python recipes/quantization.py            # three seeds: results/quantization.json, with its command

For every architecture and seed a network is trained in float, and that run continued with ``quantization.qat``. The
first is exported in fp32 and, calibrated, in int8; the second in int8 with the ranges it learnt. Accuracy is that of
the ``.pte`` files, run by ExecuTorch. Runs are run folders of ``recipes/train.py``; interrupted, the same command goes
on where it stopped.
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
from edge_sk.files import write_text
from edge_sk.manifest import manifest
from recipes.planning import file_name
from recipes.runs import train

RECORD = Path(__file__).resolve().parent / "results" / "quantization.json"
ARCHS = ["sk_mobilenetv3_small_1.0", "sk_mobilenetv2_1.0"]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--arch", nargs="+", default=ARCHS, metavar="A", help=f"(default: {' '.join(ARCHS)})")
    parser.add_argument("--recipe", default="digits", help="digits or scaled_digits, also the data (default: digits)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="of the training in float (default: 20)")
    parser.add_argument("--qat-epochs", type=int, default=5, metavar="N", help="after them (default: 5)")
    parser.add_argument("--qat-lr", type=float, default=0.002, help="optim.lr of these (default: 0.002)")
    parser.add_argument("--output", type=Path, default=Path("runs/quantization"), help="run folders and files")
    parser.add_argument("--record", type=Path, default=RECORD)
    return parser.parse_args(argv)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Train, export and write the record."""
    args = parse(argv)
    shared = ["checkpoint.evaluate_every=1000"]
    found: dict[str, list[dict[str, Any]]] = {}
    for arch in args.arch:
        for seed in args.seeds:
            folder = args.output / f"{file_name(arch)}-seed{seed}"
            learnt = folder.with_name(f"{folder.name}-qat")
            train(arch, folder, seed, [*shared, f"schedule.epochs={args.epochs}"], recipe=args.recipe)
            qat = ["quantization.qat=true", f"checkpoint.init_from={folder}", f"optim.lr={args.qat_lr}"]
            train(arch, learnt, seed, [*shared, *qat, f"schedule.epochs={args.qat_epochs}"], recipe=args.recipe)
            row = {
                "seed": seed,
                "fp32": exported(folder, "fp32"),
                "int8": exported(folder, "int8"),
                "qat_int8": exported(learnt, "int8"),
            }
            found.setdefault(arch, []).append(row)
            print(f"{arch} seed {seed}: " + ", ".join(f"{key} {row[key]['top1']:.2f} %" for key in [*row][1:]))
    record = {
        "recipe": args.recipe,
        "epochs": args.epochs,
        "qat": {"epochs": args.qat_epochs, "lr": args.qat_lr},
        "archs": found,
        "mean_top1": {arch: means(rows) for arch, rows in found.items()},
    } | manifest(["recipes/quantization.py", *(sys.argv[1:] if argv is None else argv)])
    write_text(args.record, json.dumps(record, indent=1) + "\n")
    for arch, mean in record["mean_top1"].items():
        print(f"{arch}: " + ", ".join(f"{name} {value:.2f} %" for name, value in mean.items()))
    return 0


def exported(folder: Path, precision: Any) -> dict[str, Any]:
    """Accuracy of a run's ``.pte`` and its parity with the network; a file that is there is not made again."""
    from edge_sk.export import to_pte
    from edge_sk.export.network import from_run
    from edge_sk.export.record import read_record

    path = next(folder.glob(f"*_{precision}.pte.json"), None)
    # The files are what is compared here, not refused.
    free = ["sqnr_db>=-300", "accuracy_loss<=1"] if precision == "int8" else []
    record = (
        read_record(path)
        if path
        else to_pte(from_run(folder), folder, precision=precision, accept=free, allow_fallback=True)
    )
    assert record.accuracy is not None
    assert record.parity is not None
    proof = {"sqnr_db": record.parity.sqnr_db, "top1_agreement": record.parity.top1_agreement}
    return {"top1": 100 * record.accuracy.top1, "bytes": record.size_bytes} | proof


def means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean accuracy over the seeds, in per cent, and its losses against fp32."""
    mean = {key: statistics.fmean(row[key]["top1"] for row in rows) for key in ("fp32", "int8", "qat_int8")}
    return mean | {f"{key} - fp32": mean[key] - mean["fp32"] for key in ("int8", "qat_int8")}


if __name__ == "__main__":
    sys.exit(main())
