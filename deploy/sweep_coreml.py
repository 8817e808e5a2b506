"""Convert every network of the zoo and the grafts to Core ML and prove each: writes deploy/results/coreml.md.

python deploy/sweep_coreml.py                 # everything, about an hour on two cores; --resume continues
python deploy/sweep_coreml.py --pattern "sk_*"  # anew; the other rows stay

The packages are made at a small image size and thrown away; the table keeps what was proven of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

from deploy import sweeping
from edge_sk.errors import script
from edge_sk.export import to_mlpackage
from recipes.markdown_tables import markdown_table


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Sweep, print a line for each network, write the table after each; exit 1 if one fails."""
    p = sweeping.command_line("coreml", "deploy/sweep_coreml.py", __doc__)
    p.add_argument("--precision", choices=("fp16", "fp32", "int8"), default="fp16")
    args = p.parse_args(argv)
    rows = sweeping.sweep(
        {name: partial(convert, name, args.precision) for name in sweeping.names(args.pattern)},
        args,
        "coreml",
        facts={"precision": args.precision},
        describe=_describe,
        table=table,
        command=["deploy/sweep_coreml.py", *(sys.argv[1:] if argv is None else argv)],
    )
    failed = [name for name, row in rows.items() if "error" in row]
    print(f"{len(rows) - len(failed)} of {len(rows)} convert and pass")
    return 1 if failed else 0


def convert(name: str, precision: str) -> dict[str, Any]:
    """Convert one network and tell what was proven of its package.

    Raises:
        InputError: It cannot be converted, or the proof fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        record = to_mlpackage(sweeping.small_network(name), folder, precision=precision)  # type: ignore[arg-type]
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
    header = ["network", "image", "size, MB", "top-1 agreement", "SQNR, dB", "relative difference", "largest value"]
    header += ["operators", "transposes"]
    rows = []
    for name, row in sorted(content["networks"].items()):
        if "error" in row:
            rows.append([name, row["error"], *[""] * (len(header) - 2)])
            continue
        kinds = row["operators"]
        proof = [f"{row['top1_agreement']:.1%}", f"{row['sqnr_db']:.1f}", f"{row['relative']:.1e}"]
        program = [f"{row['largest_half'] or 0:.0f}", sum(kinds.values()), kinds.get("transpose", 0)]
        rows.append([name, row["input_size"][1], f"{row['size_mb']:.2f}", *proof, *program])
    return f"""\
# Core ML: every network of the zoo, and grafts

`{content["manifest"]["command"]}`: {content["precision"]}, iOS 16, coremltools {versions["coremltools"]}, \
torch {versions["torch"]}. Untrained weights with batch-norm statistics of real images; the packages are \
run by edge_sk's interpreter in float32 (graph and weights as stored, not the Neural Engine's arithmetic). \
Sizes do not depend on the image size. Rows that --resume kept are of earlier commits.

{markdown_table(header, rows, "ll" + "r" * 7)}
"""


def _describe(row: dict[str, Any]) -> str:
    return (
        f"{row['size_mb']:.2f} MB, top-1 agreement {row['top1_agreement']:.1%}, SQNR {row['sqnr_db']:.1f} dB, "
        f"{row['export_seconds']} s"
    )


if __name__ == "__main__":
    sys.exit(main())
