"""Lower every network of the zoo and the grafts and say whether each is one delegate: deploy/results/delegation.md.

python deploy/sweep.py                       # everything, about an hour on two cores; --resume continues
python deploy/sweep.py --pattern "sk_mob*" --precisions fp32   # anew; the other rows stay

Delegation depends on the graph and not on the image's size, so networks are lowered with small images. Each program is
run on real images against eager, with batch-norm statistics as after training.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from deploy import sweeping
from edge_sk.errors import InputError, script
from edge_sk.export import parity, pte
from edge_sk.export.network import Network
from edge_sk.files import artifact_path, write_text
from edge_sk.manifest import manifest

RESULTS = Path(__file__).parent / "results"
MOBILE = ("shufflenet", "mobilenet")
IMAGES = 16


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Sweep, print a line for each network, write the table after each."""
    p = argparse.ArgumentParser(
        prog="deploy/sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--pattern", default="*", help="names of the zoo; grafts are taken with '*' only")
    p.add_argument("--precisions", nargs="+", choices=("fp32", "int8"), default=["fp32", "int8"])
    p.add_argument("--resume", action="store_true", help="keep what --output already has")
    p.add_argument("--output", type=Path, default=RESULTS, help="folder of delegation.json and delegation.md")
    args = p.parse_args(argv)
    data = artifact_path(args.output, "delegation", ".json")
    rows: dict[str, Any] = {}
    if data.exists() and (args.resume or args.pattern != "*"):
        rows = json.loads(data.read_text(encoding="utf-8"))["networks"]
    for name, precision in _jobs(args.pattern, args.precisions):
        key = f"{name} {precision}"
        if args.resume and key in rows and "error" not in rows[key]:
            continue
        try:
            rows[key] = lower(sweeping.small_network(name), precision)
        except InputError as error:
            rows[key] = {"error": str(error)}
        print(f"{key}: {_verdict(rows[key])}", flush=True)
        command = ["deploy/sweep.py", *(sys.argv[1:] if argv is None else argv)]
        content = {"networks": rows, "manifest": manifest(command)}
        write_text(data, json.dumps(content, indent=1) + "\n")
        write_text(artifact_path(args.output, "delegation", ".md"), table(content))
    short = [key for key, row in rows.items() if not _is_whole(row) or (key.endswith("fp32") and not _is_equal(row))]
    print(f"{len(rows) - len(short)} of {len(rows)} are one delegate with nothing left; in fp32 with the same outputs")
    for key in short:
        print(f"  {key}: {_verdict(rows[key])}")
    return 1 if short else 0


def _is_whole(row: dict[str, Any]) -> bool:
    return row.get("delegates") == 1 and not row["left"]


def _is_equal(row: dict[str, Any]) -> bool:
    limit = parity.THRESHOLDS["pte", "fp32"].relative
    return limit is not None and row["relative_difference"] <= limit


def _jobs(pattern: str, precisions: Sequence[str]) -> Iterator[tuple[str, str]]:
    names = sweeping.names(pattern)
    for precision in precisions:
        for name in names:
            if precision == "fp32" or (not name.startswith(sweeping.PREFIX) and any(word in name for word in MOBILE)):
                yield name, precision


def lower(network: Network, precision: str) -> dict[str, Any]:
    """Lower a network and run it once.

    Raises:
        InputError: It cannot be exported or run.
    """
    started = time.perf_counter()
    # Four images settle the ranges well enough to lower; nothing is said about accuracy here.
    form, program, delegated = pte.lower(network, precision=precision, calibration_images=4)  # type: ignore[arg-type]
    images, _ = next(iter(network.images(split="test", limit=IMAGES)))
    got = pte.run_pte(bytes(program.buffer), images)
    with torch.no_grad():
        expected = pte.reference(network, softmax=False)(images)
    return {
        "delegates": delegated.delegates,
        "left": {item.operator: item.count for item in delegated.left},
        "operators": delegated.operators_delegated,
        "in_float": delegated.in_float,
        "rewrites": form.reparameterized,
        "relative_difference": float((got - expected).abs().max() / expected.abs().max()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(content: dict[str, Any]) -> str:
    """The results as Markdown."""
    versions = content["manifest"]["versions"]
    lines = [
        "# ExecuTorch: every network of the zoo, and grafts",
        "",
        f"`{content['manifest']['command']}`: XNNPACK, ExecuTorch {versions['executorch']}, torch {versions['torch']}. "
        f"Untrained weights with batch-norm statistics of real images; {IMAGES} test images through the ExecuTorch "
        "runtime against eager. The int8 difference is that of untrained weights calibrated on four images, and says "
        "nothing about accuracy. Rows that --resume kept are of earlier commits.",
        "",
        "| network | precision | delegates | operators left outside | relative difference |",
        "|---|---|---:|---|---:|",
    ]
    for key, row in sorted(content["networks"].items()):
        name, _, precision = key.rpartition(" ")
        if "error" in row:
            lines.append(f"| {name} | {precision} | | {row['error']} | |")
            continue
        left = ", ".join(f"{count}x {operator}" for operator, count in row["left"].items()) or "none"
        lines.append(f"| {name} | {precision} | {row['delegates']} | {left} | {row['relative_difference']:.1e} |")
    return "\n".join(lines) + "\n"


def _verdict(row: dict[str, Any]) -> str:
    if "error" in row:
        return row["error"]
    left = ", ".join(f"{count}x {name}" for name, count in row["left"].items()) or "nothing"
    return (
        f"{row['delegates']} delegate(s), left {left}, difference {row['relative_difference']:.1e}, {row['seconds']} s"
    )


if __name__ == "__main__":
    sys.exit(main())
