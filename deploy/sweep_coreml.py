"""Convert every network of the zoo and the grafts to Core ML and prove each: writes deploy/results/coreml.md.

python deploy/sweep_coreml.py                 # everything, about an hour on two cores; --resume continues
python deploy/sweep_coreml.py --pattern "sk_*"  # anew; the other rows stay

The packages are made at a small image size and thrown away; the table keeps what was proven of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy import sweeping
from edge_sk.errors import InputError, script
from edge_sk.export import to_mlpackage
from edge_sk.files import artifact_path, write_text
from edge_sk.manifest import manifest

RESULTS = Path(__file__).parent / "results"


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Sweep, print a line for each network, write the table after each; exit 1 if one fails."""
    p = argparse.ArgumentParser(
        prog="deploy/sweep_coreml.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--pattern", default="*", help="names of the zoo; grafts are taken with '*' only")
    p.add_argument("--precision", choices=("fp16", "fp32", "int8"), default="fp16")
    p.add_argument("--resume", action="store_true", help="keep the rows that --output already has")
    p.add_argument("--output", type=Path, default=RESULTS, help="folder of coreml.json and coreml.md")
    args = p.parse_args(argv)
    data = artifact_path(args.output, "coreml", ".json")
    rows: dict[str, Any] = {}
    if data.exists() and (args.resume or args.pattern != "*"):
        old = json.loads(data.read_text(encoding="utf-8"))
        if old["precision"] != args.precision:
            raise InputError(f"{data} is of {old['precision']}, not {args.precision}; give another --output")
        rows = old["networks"]
    for name in sweeping.names(args.pattern):
        if args.resume and name in rows and "error" not in rows[name]:
            continue
        rows[name] = row = convert(name, args.precision)
        print(f"{name}: {row.get('error') or _proof(row)}", flush=True)
        content = {"networks": rows, "precision": args.precision}
        content["manifest"] = manifest(["deploy/sweep_coreml.py", *(sys.argv[1:] if argv is None else argv)])
        write_text(data, json.dumps(content, indent=1) + "\n")
        write_text(artifact_path(args.output, "coreml", ".md"), table(content))
    failed = [name for name, row in rows.items() if "error" in row]
    print(f"{len(rows) - len(failed)} of {len(rows)} convert and pass")
    return 1 if failed else 0


def convert(name: str, precision: str) -> dict[str, Any]:
    """What is known of one network's package, or the error that refused it."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            record = to_mlpackage(sweeping.small_network(name), folder, precision=precision)  # type: ignore[arg-type]
    except InputError as error:
        return {"error": str(error)}
    assert record.parity is not None
    assert record.program is not None
    return {
        "input_size": record.input.shape[1:],
        "size_mb": round(record.size_bytes / 1e6, 2),
        "sqnr_db": record.parity.sqnr_db,
        "relative": record.parity.relative,
        "top1_agreement": record.parity.top1_agreement,
        "images": record.parity.images,
        "largest_half": record.program.largest_half,
        "max_rank": record.program.max_rank,
        "operators": record.program.operators,
        "export_seconds": record.export_seconds,
    }


def table(content: dict[str, Any]) -> str:
    """The results as Markdown."""
    versions = content["manifest"]["versions"]
    lines = [
        "# Core ML: every network of the zoo, and grafts",
        "",
        f"`{content['manifest']['command']}`: {content['precision']}, iOS 16, coremltools {versions['coremltools']}, "
        f"torch {versions['torch']}. Untrained weights with batch-norm statistics of real images; the packages are "
        "run by edge_sk's interpreter in float32 (graph and weights as stored, not the Neural Engine's arithmetic). "
        "Sizes do not depend on the image size. Rows that --resume kept are of earlier commits.",
        "",
        "| network | image | size, MB | top-1 agreement | SQNR, dB | relative difference | largest value "
        "| operators | transposes |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in sorted(content["networks"].items()):
        if "error" in row:
            lines.append(f"| {name} | {row['error']} |||||||||")
            continue
        kinds = row["operators"]
        lines.append(
            f"| {name} | {row['input_size'][1]} | {row['size_mb']:.2f} | {row['top1_agreement']:.1%} | "
            f"{row['sqnr_db']:.1f} | {row['relative']:.1e} | {row['largest_half'] or 0:.0f} | {sum(kinds.values())} | "
            f"{kinds.get('transpose', 0)} |"
        )
    return "\n".join(lines) + "\n"


def _proof(row: dict[str, Any]) -> str:
    return (
        f"{row['size_mb']:.2f} MB, top-1 agreement {row['top1_agreement']:.1%}, SQNR {row['sqnr_db']:.1f} dB, "
        f"{row['export_seconds']} s"
    )


if __name__ == "__main__":
    sys.exit(main())
