"""What selective kernels cost in training: a step of ours, of the textbook form and of the plain network, in one run.

    python recipes/training_speed.py --arch sk_shufflenetv2_1.0 --output recipes/results/training_speed.json

The textbook form stacks the branches, takes the softmax and sums (recipes.textbook), in the same places. The three
take turns, so that a noisy machine disturbs them alike; ratios are medians over the rounds. With one thread on a CPU a
step is timed by the processor time of the process, which other programs cannot take part of; with several, which add up
their time and their waiting, by the clock; on a GPU by the clock, between synchronisations. Memory is what autograd
keeps for the backward pass, of the network and of its first unit alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import script  # isort: skip (before torch: Ctrl-C)
import torch
from torch import Tensor, nn

import edge_sk
from edge_sk import InputError, SelectiveKernel
from edge_sk.files import write_text
from edge_sk.manifest import manifest
from edge_sk.training.activations import keep_outputs
from recipes.textbook import textbook


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward, parameters and input left out, each storage once."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = model(x)
    del alive
    return sum(kept.values())


def first_unit(model: nn.Module, x: Tensor) -> tuple[str, Tensor]:
    """Name of the network's first selective kernel, and its input."""
    name, unit = next((n, m) for n, m in model.named_modules() if isinstance(m, SelectiveKernel))
    seen: list[Tensor] = []
    handle = unit.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(x)
    handle.remove()
    return name, seen[0]


def stepper(model: nn.Module, x: Tensor, target: Tensor, precision: str) -> Callable[[], float]:
    """A function that runs one step, forward and backward, and returns its seconds."""
    loss_of = nn.CrossEntropyLoss()
    device = x.device.type

    def step() -> float:
        model.zero_grad(set_to_none=True)
        start = clock(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(model(x), target)
        loss.backward()
        return clock(device) - start

    return step


def clock(device: str) -> float:
    """Seconds: processor time of one thread on a CPU, else wall time, on a GPU once all work is done."""
    if device == "cpu" and torch.get_num_threads() == 1:
        return time.process_time()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(arch: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time the three forms of one architecture."""
    name = arch.split("@")[0]
    if not name.startswith("sk_"):
        raise InputError(f"{arch} has no plain network to compare with; give a name that starts with sk_")
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    models = {
        "plain": edge_sk.create_model(name.removeprefix("sk_"), num_classes=1000),
        "textbook": textbook(edge_sk.create_model(arch, num_classes=1000)),
        "edge_sk": edge_sk.create_model(arch, num_classes=1000),
    }
    x = torch.randn(args.batch_size, 3, args.input_size, args.input_size, device=args.device).to(memory_format=layout)
    target = torch.randint(1000, (args.batch_size,), device=args.device)
    memory, steps = {}, {}
    for model in models.values():
        model.to(args.device).to(memory_format=layout).train()
    memory["plain, torch's ReLU6"] = saved_bytes(models["plain"], x) / 1e6
    for form, model in models.items():
        keep_outputs(model)
        memory[form] = saved_bytes(model, x) / 1e6
        run = torch.compile(model) if args.compile else model
        steps[form] = stepper(run, x, target, args.precision)  # pyright: ignore
    name, unit_x = first_unit(models["edge_sk"], x)
    unit_memory = {
        form: saved_bytes(models[form].get_submodule(name), unit_x) / 1e6 for form in ("textbook", "edge_sk")
    }
    seconds: dict[str, list[float]] = {form: [] for form in models}
    for round_ in range(args.warmup + args.rounds):
        for form, step in steps.items():
            spent = step()
            if round_ >= args.warmup:
                seconds[form].append(spent)
    ratios = {
        f"{form}/plain": [s / p for s, p in zip(seconds[form], seconds["plain"], strict=True)]
        for form in ("textbook", "edge_sk")
    }
    ratios["edge_sk/textbook"] = [s / t for s, t in zip(seconds["edge_sk"], seconds["textbook"], strict=True)]
    return {
        "arch": arch,
        "step_ms": {form: round(1e3 * statistics.median(values), 3) for form, values in seconds.items()},
        "step_ratio": {
            pair: {
                "median": round(statistics.median(values), 3),
                "min": round(min(values), 3),
                "max": round(max(values), 3),
            }
            for pair, values in ratios.items()
        },
        "kept_for_backward_mb": {form: round(value, 2) for form, value in memory.items()},
        "memory_ratio": {
            "edge_sk/plain": round(memory["edge_sk"] / memory["plain"], 3),
            "edge_sk/plain, torch's ReLU6": round(memory["edge_sk"] / memory["plain, torch's ReLU6"], 3),
            "edge_sk/textbook": round(memory["edge_sk"] / memory["textbook"], 3),
            "edge_sk/textbook, one unit": round(unit_memory["edge_sk"] / unit_memory["textbook"], 3),
        },
    }


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["sk_shufflenetv2_1.0", "sk_mobilenetv2_1.0"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    if args.device != "cpu" and not torch.cuda.is_available():
        raise InputError(f"--device {args.device}: this machine has no such device; use cpu")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = [measure(arch, args) for arch in args.arch]
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    device = torch.cuda.get_device_name() if args.device != "cpu" else "cpu"
    record = {"what": "training step", "device": device, "settings": settings, "results": results}
    record |= manifest(argv if argv is None else ["recipes/training_speed.py", *argv])
    text = json.dumps(record, indent=2)
    print(text)
    if args.output:
        write_text(args.output, text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
