"""Shared by the sweeps: the networks that an export format must take (the zoo, and grafts of others), and the loop."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import InputError  # isort: skip (before torch: Ctrl-C)
import torch
from pydantic import BaseModel

import edge_sk
from edge_sk.export.network import Network, from_arch, with_statistics
from edge_sk.files import artifact_path, write_text
from edge_sk.manifest import manifest
from edge_sk.reading import read_json, short, validated

RESULTS = Path(__file__).parent / "results"

GRAFTS = (
    "timm:mobilenetv1_100",
    "timm:mobilenetv2_100",
    "timm:mobilenetv3_large_100",
    "timm:mobilenetv4_conv_small",
    "timm:efficientnet_b0",
    "timm:efficientnet_lite0",
    "timm:mobileone_s1",
    "timm:ghostnet_100",
    "timm:regnety_002",
    "timm:resnext50_32x4d",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:mobilenet_v3_large",
    "torchvision:mnasnet1_0",
)
"""Selective kernels are put into these with :func:`edge_sk.graft`'s defaults."""

PREFIX = "graft "


def names(pattern: str = "*") -> list[str]:
    """Return the names of the zoo that match, and with ``*`` the grafts as ``graft NAME``.

    Raises:
        InputError: None matches.
    """
    found = edge_sk.list_models(pattern)
    if not found:
        raise InputError(f"no name of the zoo matches {pattern!r}; edge_sk.list_models() names them")
    return found + ([PREFIX + name for name in GRAFTS] if pattern == "*" else [])


def small_network(name: str, *, size: int = 64) -> Network:
    """Build a network for small images, with batch-norm statistics as after training; the graph is that of any size."""
    network = from_arch(name.removeprefix(PREFIX))
    model = network.model
    if name.startswith(PREFIX):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, _ = edge_sk.graft(model)
    side = min(size, network.input_size[1])
    shape = (network.input_size[0], side, side)
    return with_statistics(dataclasses.replace(network, arch=name, model=model, input_size=shape), vary=True)


def command_line(stem: str, prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser with the options of every sweep; ``stem`` names its record and its table."""
    p = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--pattern", default="*", help="names of the zoo; grafts are taken with '*' only")
    p.add_argument("--resume", action="store_true", help="keep the rows that --output already has")
    p.add_argument("--output", type=Path, default=RESULTS, help=f"folder of {stem}.json and {stem}.md")
    return p


class Sweep(BaseModel, extra="allow"):
    """The record of a sweep: a row for each network, and facts that hold for all rows."""

    networks: dict[str, dict[str, Any]]


def sweep(
    jobs: Mapping[str, Callable[[], dict[str, Any]]],
    args: argparse.Namespace,
    stem: str,
    *,
    facts: Mapping[str, Any],
    describe: Callable[[dict[str, Any]], str],
    table: Callable[[dict[str, Any]], str],
    command: Sequence[str],
) -> dict[str, Any]:
    """Run the jobs and return all rows; after each, print a line and write the record ``stem`` and its table.

    Raises:
        InputError: The record to be continued has other ``facts``, which hold for all its rows.
    """
    data = artifact_path(args.output, stem, ".json")
    rows: dict[str, Any] = {}
    if data.exists() and (args.resume or args.pattern != "*"):
        old = validated(Sweep, read_json(data), data)
        for name, value in facts.items():
            if (found := getattr(old, name, None)) != value:
                raise InputError(f"{data} is of {short(found)}, not {value}; give another --output")
        rows = old.networks
        try:
            table({"networks": rows, **facts, "manifest": manifest(command)})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{data} has a damaged row ({type(error).__name__}: {short(error)}); give another --output"
            ) from None
    for key, job in jobs.items():
        if args.resume and key in rows and "error" not in rows[key]:
            continue
        try:
            rows[key] = job()
        except InputError as error:
            rows[key] = {"error": str(error)}
        print(f"{key}: {rows[key].get('error') or describe(rows[key])}", flush=True)
        content = {"networks": rows, **facts, "manifest": manifest(command)}
        write_text(data, json.dumps(content, indent=1) + "\n")
        write_text(artifact_path(args.output, stem, ".md"), table(content))
    return rows
