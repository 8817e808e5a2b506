"""On a Mac: Core ML's own predictions against eager, on real images. Not run where the project is tested.

python deploy/mac/check.py exports/sk_shufflenetv2_1.0_coreml_fp16.mlpackage --checkpoint runs/sk_shufflenetv2_1.0

edge-sk export does the same by itself when it runs on a Mac; this is for packages that were made elsewhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deploy.mac import measuring
from edge_sk.errors import script
from edge_sk.export import network as networks
from edge_sk.export.coreml.check import INTERPRETER_NOTE, check_interface, check_outputs
from edge_sk.export.coreml.mil import MilProgram
from edge_sk.export.record import record_of, write_record


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Check each package; its record then says that Core ML itself was compared."""
    p = argparse.ArgumentParser(
        prog="deploy/mac/check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("packages", nargs="+", metavar="PACKAGE", help=".mlpackage of edge-sk export")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="RUN", help="the run folder that was exported")
    source.add_argument("--arch", help="the name that was exported without training")
    p.add_argument("--data", help="images; default: the training's; digits with --arch")
    args = p.parse_args(argv)
    measuring.require_macos("comparing with Core ML")
    network = (
        networks.from_run(args.checkpoint, data=args.data, unfinished=True)
        if args.checkpoint
        else networks.from_arch(args.arch, data=args.data)
    )
    for package in args.packages:
        record = record_of(package)
        program = MilProgram.load(package)
        check_interface(program, network, record.labels)
        record.parity, record.accuracy, notes = check_outputs(program, network, record.precision)
        record.notes = [note for note in record.notes if note != INTERPRETER_NOTE] + notes
        write_record(package, record)
        agreement = record.parity.top1_agreement
        same = "equal" if agreement is None else f"top-1 agreement {agreement:.1%}"
        print(f"{package}: {same}, {record.parity.runtime}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
