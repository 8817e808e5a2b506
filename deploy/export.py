r"""Export a trained network for phones: files for ExecuTorch and Core ML, each proven equal, with a record beside it.

edge-sk export --checkpoint runs/sk_shufflenetv2_1.0-digits-seed0 --output exports
edge-sk export --arch sk_shufflenetv2_1.0 --formats pte --precisions fp32 int8 --output exports
edge-sk export --arch timm:mobilenetv4_conv_small --init-from timm:mobilenetv4_conv_small.e2400_r224_in1k \
    --data imagenet --formats pte mlpackage --output exports
edge-sk export --checkpoint runs/sk_shufflenetv2_1.0-digits-seed0 --merge budget=1.10 --output exports
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_sk.errors import InputError, require, script  # isort: skip (before torch: Ctrl-C)
from deploy.merging import merge_network, parse_wish
from edge_sk.export import network as networks
from edge_sk.export import parity
from edge_sk.export.coreml import mlpackage
from edge_sk.export.executorch.pte import BACKENDS
from edge_sk.export.record import OutputParity, ParityEvidence, Record
from edge_sk.files import check_output
from edge_sk.stderr import show_stderr

FORMATS = ("pte", "mlpackage")
PRECISIONS = ("fp32", "fp16", "int8", "palette6")

DEFAULT_PRECISIONS = {"pte": ("fp32",), "mlpackage": ("fp16",)}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="edge-sk export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="RUN", help="run folder of edge-sk train")
    source.add_argument(
        "--arch",
        help="a name of the zoo, timm:NAME or torchvision:NAME, untrained (for latency) or with --init-from; "
        "local-dir:FOLDER or hf-hub:USER/NAME have their weights",
    )
    p.add_argument(
        "--init-from",
        metavar="WEIGHTS",
        help="trained weights for --arch: timm:NAME.TAG, torchvision:NAME.WEIGHTS, local-dir:FOLDER, "
        "hf-hub:USER/NAME or a file; their classes and preprocessing go into the files",
    )
    p.add_argument("--output", required=True, metavar="DIR", help="folder for the files")
    p.add_argument("--name", help="first part of the files' names, where two runs share a folder; default: the arch")
    p.add_argument("--formats", nargs="+", choices=FORMATS, default=["pte"], help="default: pte")
    p.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="default: fp32 for .pte, fp16 for .mlpackage")
    p.add_argument("--backend", choices=("xnnpack", "coreml", "vulkan"), default="xnnpack", help="delegate of the .pte")
    p.add_argument(
        "--merge",
        nargs="+",
        metavar="K=V",
        help="merge the units whose selection matters least: budget=1.10 of the plain network's latency, tolerance=0.3 "
        "points, or keep=3 units; with threads=N of the latency (1), costs=FILE measured elsewhere, finetune=EPOCHS, "
        "plain=RUN to record its accuracy",
    )
    p.add_argument("--data", help="images for parity and calibration; default: the training's; digits with --arch")
    p.add_argument("--unfinished", action="store_true", help="export a run whose training is not finished")
    p.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="test images for parity and accuracy, spread over the test set, at least 64; default: of a trained "
        "network's own data all of digits and scaled_digits and 1000 of other sets, else 64",
    )
    p.add_argument(
        "--softmax",
        action=argparse.BooleanOptionalAction,
        help="end in probabilities instead of logits; default: logits in a .pte, a classifier in an .mlpackage",
    )
    p.add_argument("--target", default="iOS16", help="oldest system of the .mlpackage: iOS16, iOS17, iOS18, iOS26")
    p.add_argument(
        "--accept",
        nargs="+",
        default=[],
        metavar="DEMAND",
        help="replace demands on the proof, which the record repeats: 'accuracy_loss<=0.05', 'top1_agreement>=0.9', "
        "'sqnr_db>=5', 'relative<=0.02'",
    )
    p.add_argument("--allow-fallback", action="store_true", help="accept operators outside the delegate")
    p.add_argument("--bundle", action="store_true", help="also write .bpte: the program with inputs and outputs")
    p.add_argument(
        "--verbose",
        action="store_true",
        help="show what ExecuTorch and coremltools write to stderr; without it, it is shown when an export fails, and "
        "a crash of the process leaves it in edge_sk_*.log in the folder for temporary files",
    )
    return p


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Export what the command line says."""
    args = parser().parse_args(argv)
    try:
        parity.check_count(args.images)
    except InputError as error:
        raise InputError(f"--images {args.images}: {error}") from None
    if args.checkpoint is not None and args.init_from is not None:
        raise InputError("--checkpoint has its own weights; --init-from goes with --arch")
    parity.accepting(parity.SANITY, args.accept)
    wanted = artifacts(args.formats, args.precisions, args.backend)
    wish = parse_wish(args.merge) if args.merge else None
    if wish is not None:
        require("matplotlib", extra="deploy", needed_for="--merge")
    mlpackage.oldest_system(args.target)
    network = (
        networks.from_run(args.checkpoint, data=args.data, unfinished=args.unfinished)
        if args.checkpoint is not None
        else networks.from_arch(args.arch, data=args.data, init_from=args.init_from)
    )
    network = dataclasses.replace(network, name=args.name)
    # Before minutes of lowering: a place for the files, and the images that prove them.
    if args.backend == "xnnpack" or args.bundle or "mlpackage" in args.formats:
        network.check_images(args.images, calibration=("pte", "int8") in wanted)
    check_output(Path(args.output))
    command = ["deploy/export.py", *(sys.argv[1:] if argv is None else argv)]
    if wish is not None:
        # The units' costs are those of the first .pte that is wanted.
        precision = next((made for name, made in wanted if name == "pte"), "fp32")
        network = merge_network(
            network,
            wish,
            precision=precision,  # type: ignore[arg-type]
            checkpoint=args.checkpoint,
            output=Path(args.output),
            argv=command,
        )
    failures: list[InputError] = []
    for file_format, precision in wanted:
        print(f"{network.stem} {file_format} {precision}: a minute or more", flush=True)
        try:
            with show_stderr(args.verbose):
                record = _export(network, file_format, precision, args, command)
        except InputError as error:
            # The other files are still wanted; the exit code tells.
            print(f"error: {network.arch} {file_format} {precision}: {error}", file=sys.stderr)
            failures.append(error)
        else:
            print(summary(record))
    return 2 if failures else 0


def artifacts(formats: Sequence[str], precisions: Sequence[str] | None, backend: str) -> list[tuple[str, str]]:
    """The format and precision of each file to make: each precision in every format that has it.

    Raises:
        InputError: None of the formats has a precision, or a format has none of the precisions.
    """
    has = {"pte": BACKENDS[backend], "mlpackage": mlpackage.PRECISIONS}
    wanted = [
        (name, precision)
        for name in dict.fromkeys(formats)
        for precision in dict.fromkeys(precisions or DEFAULT_PRECISIONS[name])
        if precision in has[name]
    ]
    made = {part for pair in wanted for part in pair}
    for flag, given in (("--precisions", precisions or ()), ("--formats", formats)):
        for choice in given:
            if choice not in made:
                known = "; ".join(f"{name} has {', '.join(has[name])}" for name in dict.fromkeys(formats))
                raise InputError(f"{flag} {choice} makes no file: with --backend {backend}, {known}")
    return wanted


def _export(
    network: networks.Network, file_format: str, precision: str, args: argparse.Namespace, command: list[str]
) -> Record:
    from edge_sk import export

    if file_format == "pte":
        return export.to_pte(
            network,
            args.output,
            precision=precision,  # type: ignore[arg-type]
            backend=args.backend,
            softmax=bool(args.softmax),
            allow_fallback=args.allow_fallback,
            bundle=args.bundle,
            images=args.images,
            accept=args.accept,
            argv=command,
        )
    return export.to_mlpackage(
        network,
        args.output,
        precision=precision,  # type: ignore[arg-type]
        softmax=args.softmax is not False,
        target=args.target,
        images=args.images,
        accept=args.accept,
        argv=command,
    )


def _measured(proof: ParityEvidence | OutputParity) -> str:
    agreement = "" if proof.top1_agreement is None else f"top-1 agreement {proof.top1_agreement:.1%}, "
    return f"{agreement}SQNR {proof.sqnr_db:.1f} dB, largest relative difference {proof.relative:.1e}"


def summary(record: Record) -> str:
    """A few lines for people."""
    lines = [f"{record.file}  {record.size_bytes / 1e6:.2f} MB" + (f", returns {record.maps}" if record.maps else "")]
    if record.delegation is not None:
        left = ", ".join(f"{item.count}x {item.operator}" for item in record.delegation.left) or "nothing"
        lines.append(f"  delegates: {record.delegation.delegates}, left outside: {left}")
        if record.delegation.in_float:
            lines.append(f"  computed in float: {', '.join(record.delegation.in_float)}")
    if record.program is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in record.program.operators.items())
        lines.append(f"  {record.program.target} and later; operators: {kinds}")
    if (proof := record.parity) is not None:
        lines.append(
            f"  passed on {proof.images} images (computed in {proof.arithmetic or 'unknown'}): " + _measured(proof)
        )
        lines += [f"    {name}: {_measured(one)}" for name, one in proof.outputs.items()]
        if proof.threshold_accuracy_loss is not None and record.accuracy is None:
            lines.append(f"  accuracy loss expected by the network's own probabilities: {proof.accuracy_loss:.2%}")
    if (accuracy := record.accuracy) is not None:
        lines.append(f"  accuracy on {accuracy.images} images: {accuracy.top1:.2%}, eager {accuracy.eager_top1:.2%}")
    if record.training is not None:
        lines.append(f"  training {record.training}")
    lines += [f"  note: {note}" for note in record.notes]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
