"""One process of many: what torchrun started, and the few collectives that training needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edge_sk.errors import InputError


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place; every process must call it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process the main one's buffers (batch-norm statistics)."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def join_world(device: str | None = None) -> Iterator[World]:
    """Join the processes that torchrun started; alone when it was not used.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``None`` takes a GPU if there is one.

    Raises:
        InputError: No such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device, local_rank=local_rank if size > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(chosen)
        return
    store, rank, size = next(dist.rendezvous("env://"))
    # torchrun's agent keeps one store over restarts, where gloo would find the address of the worker that died.
    store = dist.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield World(chosen, rank=rank, size=size)
    finally:
        dist.destroy_process_group()


def pick_device(name: str | None, *, local_rank: int | None = None) -> torch.device:
    """The device to compute on; under torchrun, a bare ``cuda`` is this process's GPU.

    Raises:
        InputError: There is no such device here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; allowed: cpu, cuda, cuda:N, mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index if device.index is not None else (local_rank or 0)
        if index >= count:
            raise InputError(f"device {name!r} asks for GPU {index}, this machine has {count}; use --device cpu")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' needs a Mac with Metal; use --device cpu")
    if device.type not in ("cpu", "mps"):
        raise InputError(f"device {name!r} is not supported; allowed: cpu, cuda, cuda:N, mps")
    return device


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Let batch norms in training use the statistics of all processes' images together.

    On a GPU this is torch's ``SyncBatchNorm`` by timm's conversion; that one refuses the CPU, for which
    batch norms are given the same computation over gloo. Names in the state dict stay.
    """
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            _synchronize_on_cpu(module)
    return model


def _synchronize_on_cpu(norm: nn.BatchNorm2d) -> None:
    plain = norm.forward

    def forward(images: Tensor) -> Tensor:
        if not norm.training:
            return plain(images)
        normalized = _normalize_together(norm, images)
        # timm's BatchNormAct2d has its dropout and activation inside.
        for part in ("drop", "act"):
            if isinstance(after := getattr(norm, part, None), nn.Module):
                normalized = after(normalized)
        return normalized

    norm.forward = forward


def _normalize_together(norm: nn.BatchNorm2d, images: Tensor) -> Tensor:
    # torch.distributed.nn's all_reduce is differentiable: the gradient is summed over the processes too.
    from torch.distributed.nn.functional import all_reduce

    channels = images.shape[1]
    count = images.numel() // channels
    sums = torch.cat([images.sum((0, 2, 3)), images.new_tensor([float(count)])])
    sums = all_reduce(sums)
    total = sums[channels]
    mean = sums[:channels] / total
    centred = images - mean.view(1, -1, 1, 1)
    variance = all_reduce(centred.square().sum((0, 2, 3))) / total
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
            momentum = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked or 1)
            norm.running_mean.lerp_(mean.detach(), momentum)
            # Running variances are unbiased, as torch's.
            norm.running_var.lerp_(variance.detach() * (total / (total - 1)), momentum)
    scaled = centred * torch.rsqrt(variance + norm.eps).view(1, -1, 1, 1)
    if norm.weight is None:
        return scaled
    return scaled * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
