"""Measure what a network's selective kernels cost on this host, for the budgets of edge_sk.graft and edge_sk.merge.

python deploy/unit_costs.py --arch timm:mobilenetv2_100@kernels=auto --output costs.json     # every site grafted
python deploy/unit_costs.py --arch sk_mobilenetv2_1.0@sk_units=all --precision int8 --threads 2 --output costs.json

The file has microseconds of a forward beyond the plain convolution, by the unit's path, which is the site's. Take a
quiet machine: whole files take turns, but what runs beside them adds noise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edge_sk.errors import script  # isort: skip (before torch: Ctrl-C)
from deploy.costs import measure_costs
from edge_sk.export import network as networks
from edge_sk.files import check_output, write_text


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the file and print it as a table."""
    p = argparse.ArgumentParser(
        prog="deploy/unit_costs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--arch", required=True, help="a network with units that select, untrained: weights cost no time")
    p.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="default: fp32")
    p.add_argument("--threads", type=int, default=1, help="of the runtime (default: 1)")
    p.add_argument("--output", type=Path, required=True, metavar="FILE")
    args = p.parse_args(argv)
    check_output(args.output.parent)
    network = networks.from_arch(args.arch)
    with tempfile.TemporaryDirectory(prefix="edge_sk_costs_") as work:
        costs = measure_costs(network, precision=args.precision, threads=args.threads, work=Path(work))
    write_text(args.output, costs.model_dump_json(indent=1) + "\n")
    print(f"{args.arch} on {costs.where}: plain {costs.plain:.0f} microseconds; beyond it")
    for name, unit in costs.units.items():
        print("  " + name + "".join(f"  {outcome} {micros:.1f}" for outcome, micros in unit.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
