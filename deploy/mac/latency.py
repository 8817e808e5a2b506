"""On a Mac: latency of packages there, or on a connected iPhone. Not run where the project is tested.

python deploy/mac/latency.py exports/*.mlpackage --units all cpu
python deploy/mac/latency.py exports/*.mlpackage --iphone
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
    """Measure, print, and add each measurement to the record beside its package."""
    p = argparse.ArgumentParser(
        prog="deploy/mac/latency.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("packages", nargs="+", metavar="PACKAGE", help=".mlpackage of edge-sk export")
    p.add_argument("--units", nargs="+", choices=measuring.COMPUTE_UNITS, default=["all"])
    p.add_argument("--iphone", action="store_true", help="on the connected iPhone; needs Xcode")
    p.add_argument("--rounds", type=int, default=3, help="loads (default: 3)")
    p.add_argument("--runs", type=int, default=50, help="timed predictions per load (default: 50)")
    args = p.parse_args(argv)
    if min(args.rounds, args.runs) < 1:
        raise InputError(f"--rounds {args.rounds} --runs {args.runs} measures nothing; give at least 1")
    measuring.require_macos("Core ML's latency")
    for package in args.packages:
        record = record_of(package)
        for units in args.units:
            measured = measuring.latency(package, units, iphone=args.iphone, rounds=args.rounds, runs=args.runs)
            print(f"{package} {units}: p50 {measured.p50_ms:.2f} ms, p90 {measured.p90_ms:.2f} ms, {measured.where}")
            record.add_latency(measured)
        write_record(package, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
