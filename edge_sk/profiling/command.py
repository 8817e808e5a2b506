"""The command ``python -m edge_sk.profiling``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from edge_sk.errors import InputError, script
from edge_sk.profiling._profile import profile
from edge_sk.profiling.cost import Profile
from edge_sk.profiling.tables import comparison, module_table, print_table


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
    from edge_sk.models import create_model

    size = _size(args.input_size) if args.input_size else None
    if args.by_module is not None and args.by_module < 0:
        raise InputError(f"--by-module {args.by_module} is negative; 1 shows the network's children")
    profiles = []
    for name in args.names:
        model = create_model(name)
        shape = (1, 3, *size) if size else None
        profiles.append(dataclasses.replace(profile(model, shape), name=name))
    if args.json:
        print(json.dumps(_record(profiles, args.by_module, argv), indent=2))
        return 0
    print_table(comparison(profiles))
    if args.by_module is not None:
        for one in profiles:
            print(f"\n{one.name}")
            print_table(module_table(one.by_module(args.by_module)))
    return 0


def _record(profiles: Sequence[Profile], depth: int | None, argv: Sequence[str] | None) -> dict[str, Any]:
    from edge_sk.manifest import manifest

    networks = []
    for one in profiles:
        entry = one.to_dict()
        if depth is not None:
            entry["modules"] = {name: dataclasses.asdict(cost) for name, cost in one.by_module(depth).items()}
        networks.append(entry)
    command = ["-m", "edge_sk.profiling", *(sys.argv[1:] if argv is None else argv)]
    return {"networks": networks} | manifest(command)
