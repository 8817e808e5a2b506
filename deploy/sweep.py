"""Lower every network of the zoo and the grafts and say whether each is one delegate: deploy/results/delegation.md.

python deploy/sweep.py                       # everything, about an hour on two cores; --resume continues
python deploy/sweep.py --pattern "sk_mob*" --precisions fp32   # anew; the other rows stay

Delegation depends on the graph and not on the image's size, so networks are lowered with small images. Each program is
run on real images against eager, with batch-norm statistics as after training.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from edge_sk.errors import script  # isort: skip (before torch: Ctrl-C)
import torch

from deploy import sweeping
from edge_sk.export import parity, prepare
from edge_sk.export.executorch import pte
from edge_sk.export.network import Network
from recipes.markdown_tables import markdown_table

MOBILE = ("shufflenet", "mobilenet")
OTHERS = (
    "timm:convmixer_768_32",
    "timm:convnext_atto",
    "timm:edgenext_xx_small",
    "timm:efficientvit_b0",
    "timm:ese_vovnet19b_dw",
    "timm:fastvit_t8",
    "timm:ghostnetv2_100",
    "timm:inception_next_tiny",
    "timm:mixnet_s",
    "timm:mobilevit_s",
    "timm:pvt_v2_b0",
    "timm:resnest14d",
    "timm:starnet_s1",
    "timm:xception41p",
    "torchvision:convnext_tiny",
)
"""More grafts: most have sites without batch norm, and layers that no delegate takes."""
IMAGES = 16


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Sweep, print a line for each network, write the table after each."""
    p = sweeping.command_line("delegation", "deploy/sweep.py", __doc__)
    p.add_argument("--precisions", nargs="+", choices=("fp32", "int8"), default=["fp32", "int8"])
    args = p.parse_args(argv)
    rows = sweeping.sweep(
        {f"{name} {precision}": partial(_job, name, precision) for name, precision in _jobs(args)},
        args,
        "delegation",
        facts={},
        describe=_describe,
        table=table,
        command=["deploy/sweep.py", *(sys.argv[1:] if argv is None else argv)],
    )
    short = [key for key, row in rows.items() if not _is_whole(row) or (key.endswith("fp32") and not _is_equal(row))]
    print(f"{len(rows) - len(short)} of {len(rows)} are one delegate with nothing left; in fp32 with the same outputs")
    for key in short:
        print(f"  {key}: {rows[key].get('error') or _describe(rows[key])}")
    return 1 if short else 0


def _is_whole(row: dict[str, Any]) -> bool:
    return row.get("delegates") == 1 and not row["left"]


def _is_equal(row: dict[str, Any]) -> bool:
    limit = parity.THRESHOLDS["pte", "fp32"].relative
    return limit is not None and row["relative_difference"] <= limit


def _jobs(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for precision in args.precisions:
        for name in sweeping.names(args.pattern):
            mobile = not name.startswith(sweeping.PREFIX) and any(word in name for word in MOBILE)
            if precision == "fp32" or mobile:
                yield name, precision
        if precision == "fp32" and args.pattern == "*":
            yield from ((sweeping.PREFIX + name, precision) for name in OTHERS)


def _job(name: str, precision: str) -> dict[str, Any]:
    return lower(sweeping.small_network(name), precision)


def lower(network: Network, precision: str) -> dict[str, Any]:
    """Lower a network and run it once.

    Raises:
        InputError: It cannot be exported or run.
    """
    started = time.perf_counter()
    # Four images give ranges that are good enough to lower; this says nothing about accuracy.
    program, delegated, rewrites = pte.lower(network, precision=precision, calibration_images=4)  # type: ignore[arg-type]
    images, _ = next(iter(network.images(split="test", limit=IMAGES)))
    got = pte.run_pte(bytes(program.buffer), images)
    with torch.no_grad():
        expected = prepare.reference(network)(images)
    return {
        "delegates": delegated.delegates,
        "left": {item.operator: item.count for item in delegated.left},
        "operators": delegated.operators_delegated,
        "in_float": delegated.in_float,
        "rewrites": rewrites,
        "relative_difference": float((got - expected).abs().max() / expected.abs().max()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(content: dict[str, Any]) -> str:
    """The results as Markdown."""
    versions = content["manifest"]["versions"]
    rows = []
    for key, row in sorted(content["networks"].items()):
        name, _, precision = key.rpartition(" ")
        if "error" in row:
            rows.append([name, precision, "", row["error"], ""])
            continue
        left = ", ".join(f"{count}x {operator}" for operator, count in row["left"].items()) or "none"
        rows.append([name, precision, row["delegates"], left, f"{row['relative_difference']:.1e}"])
    header = ["network", "precision", "delegates", "operators left outside", "relative difference"]
    return f"""\
# ExecuTorch: every network of the zoo, and grafts

`{content["manifest"]["command"]}`: XNNPACK, ExecuTorch {versions["executorch"]}, torch {versions["torch"]}. \
Untrained weights with batch-norm statistics of real images; {IMAGES} test images through the ExecuTorch \
runtime against eager. The int8 difference is that of untrained weights calibrated on four images, and says \
nothing about accuracy. Rows that --resume kept are of earlier commits.

{markdown_table(header, rows, "llrlr")}
"""


def _describe(row: dict[str, Any]) -> str:
    left = ", ".join(f"{count}x {name}" for name, count in row["left"].items()) or "nothing"
    return (
        f"{row['delegates']} delegate(s), left {left}, difference {row['relative_difference']:.1e}, {row['seconds']} s"
    )


if __name__ == "__main__":
    sys.exit(main())
