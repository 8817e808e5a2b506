"""The command ``python -m edge_sk.profiling``: count networks, given by name, and print one table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence

import torch
from torch import nn

from edge_sk import running
from edge_sk.errors import InputError, script
from edge_sk.manifest import manifest
from edge_sk.models import create_model
from edge_sk.profiling import Profile, comparison, print_table, profile
from edge_sk.profiling.counting import fvcore


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="edge-sk profile",
        description="Compare what networks cost: parameters, MACs (convolutions and matrix products, batch "
        "norm folded), elementwise work, activations.",
    )
    name = "a zoo name, timm:NAME or torchvision:NAME; with options: sk_shufflenetv2_1.0@kernels=3+5"
    p.add_argument("names", nargs="+", metavar="NAME", help=name)
    depth = "also the modules of each network, DEPTH levels deep (default 1)"
    p.add_argument("--by-module", nargs="?", type=int, const=1, metavar="DEPTH", help=depth)
    p.add_argument("--input-size", metavar="SIDE", help="side, or HEIGHTxWIDTH, of the image (default: each network's)")
    p.add_argument(
        "--num-classes", type=int, metavar="N", help="classes of every network (default: its own, mostly 1000)"
    )
    p.add_argument("--json", action="store_true", help="print one JSON object instead")
    return p


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Compare what networks cost."""
    args = _parser().parse_args(argv)
    size = _input_size(args.input_size) if args.input_size else None
    if args.by_module is not None and args.by_module < 0:
        raise InputError(f"--by-module {args.by_module} is negative; 1 shows the network's children")
    profiles, entries = [], []
    for name in args.names:
        model = create_model(name, num_classes=args.num_classes)
        cost = dataclasses.replace(profile(model, size), name=name)
        profiles.append(cost)
        if args.json:
            entry = cost.to_dict() | {"fvcore_total": _fvcore_total(model, cost)}
            if args.by_module is not None:
                modules = cost.by_module(args.by_module)
                entry["modules"] = {path: dataclasses.asdict(part) for path, part in modules.items()}
            entries.append(entry)
    if args.json:
        command = ["-m", "edge_sk.profiling", *(sys.argv[1:] if argv is None else argv)]
        print(json.dumps({"networks": entries} | manifest(command), indent=2))
        return 0
    print_table(comparison(profiles))
    if args.by_module is not None:
        for cost in profiles:
            print(f"\n{cost.name}")
            print_table(cost.by_module(args.by_module).table())
    return 0


def _input_size(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise InputError(f"--input-size {text!r} is not SIDE or HEIGHTxWIDTH in pixels, for instance 224 or 192x320")
    return 3, height, width


def _fvcore_total(model: nn.Module, cost: Profile) -> int:
    """Return fvcore's own count."""
    # fvcore traces the model, and a trace must return tensors: networks for segmentation return dictionaries.
    model.register_forward_hook(lambda _module, _inputs, output: tuple(running.leaves(output)))
    image = torch.zeros(cost.input_size).to(running.reference(model))
    analysis = fvcore().FlopCountAnalysis(model, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    try:
        with running.evaluating(model):
            return int(analysis.total())
    except Exception as error:
        raise InputError(
            f"{cost.name} cannot be traced by fvcore: {running.first_line(error)}; leave out --json"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
