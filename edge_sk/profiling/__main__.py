"""The command ``python -m edge_sk.profiling``: count networks, given by name, and print one table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edge_sk import running
from edge_sk.errors import InputError, script
from edge_sk.manifest import manifest
from edge_sk.models import create_model
from edge_sk.profiling import Profile, comparison, print_table, profile
from edge_sk.profiling.counting import fvcore


def _size(text: str) -> tuple[int, ...]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise InputError(f"--input-size {text!r} is not SIDE or HEIGHTxWIDTH in pixels, for instance 224 or 192x320")
    return height, width


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edge_sk.profiling",
        description="Compare what networks cost: parameters, MACs (convolutions and matrix products, batch "
        "norm folded), elementwise work, activations.",
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="a zoo name, timm:NAME or torchvision:NAME; with options: sk_shufflenetv2_1.0@kernels=3+5",
    )
    parser.add_argument(
        "--by-module",
        nargs="?",
        type=int,
        const=1,
        metavar="DEPTH",
        help="also the modules of each network, DEPTH levels deep (default 1)",
    )
    parser.add_argument(
        "--input-size", metavar="SIDE", help="side of the image, or HEIGHTxWIDTH (default: each network's)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Compare what networks cost."""
    args = _parser().parse_args(argv)
    size = _size(args.input_size) if args.input_size else None
    if args.by_module is not None and args.by_module < 0:
        raise InputError(f"--by-module {args.by_module} is negative; 1 shows the network's children")
    profiles, networks = [], []
    for name in args.names:
        model = create_model(name)
        profiles.append(dataclasses.replace(profile(model, (1, 3, *size) if size else None), name=name))
        if args.json:
            networks.append(_network(model, profiles[-1], args.by_module))
    if args.json:
        command = ["-m", "edge_sk.profiling", *(sys.argv[1:] if argv is None else argv)]
        print(json.dumps({"networks": networks} | manifest(command), indent=2))
        return 0
    print_table(comparison(profiles))
    if args.by_module is not None:
        for one in profiles:
            print(f"\n{one.name}")
            print_table(one.by_module(args.by_module).table())
    return 0


def _network(model: nn.Module, cost: Profile, depth: int | None) -> dict[str, Any]:
    entry = cost.to_dict() | {"fvcore_total": _fvcore_total(model, cost)}
    if depth is not None:
        entry["modules"] = {name: dataclasses.asdict(part) for name, part in cost.by_module(depth).items()}
    return entry


def _fvcore_total(model: nn.Module, cost: Profile) -> int:
    """What fvcore itself counts."""
    # A trace must end in tensors: networks for segmentation or detection answer with a dictionary.
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
