"""On a Mac: which unit (Neural Engine, GPU, CPU) runs each operator of a package. Not run where the project is tested.

python deploy/mac/compute_plan.py exports/sk_shufflenetv2_1.0_coreml_fp16.mlpackage
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deploy.mac import measuring
from edge_sk.errors import InputError, script
from edge_sk.export.record import record_of, write_record


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan and add its counts to the record beside each package."""
    p = argparse.ArgumentParser(
        prog="deploy/mac/compute_plan.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("packages", nargs="+", metavar="PACKAGE", help=".mlpackage of edge-sk export")
    p.add_argument("--units", choices=measuring.COMPUTE_UNITS, default="all", help="what Core ML may use")
    args = p.parse_args(argv)
    measuring.require_macos("a compute plan")
    for package in args.packages:
        record = record_of(package)
        if record.program is None:
            raise InputError(f"{package} is no package for Core ML; give an .mlpackage of edge-sk export")
        plan = measuring.compute_plan(package, args.units)
        counts = measuring.units(plan)
        print(f"{package}: " + ", ".join(f"{count} operators on the {unit}" for unit, count in counts.items()))
        for operator, unit, cost in plan:
            print(f"  {operator:24} {unit:14} {cost:6.1%}")
        known = record.program.compute_units or {}
        known[f"{measuring.this_mac()}, {args.units}"] = counts
        record.program.compute_units = known
        write_record(package, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
