"""Gradients and batch-norm statistics of one step, in float64; run by torchrun or alone, writes what rank 0 has."""

from __future__ import annotations

import sys

import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import edge_sk
from edge_sk.training.distributed import join_world, synchronize_batch_norm


def main() -> None:
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        torch.manual_seed(0)
        images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
        labels = torch.randint(0, 10, (8,))
        model = edge_sk.create_model(sys.argv[1], num_classes=10).double()
        forward = model
        if world.size > 1:
            forward = DistributedDataParallel(synchronize_batch_norm(model, world.device))
        mine = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size)
        F.cross_entropy(forward(images[mine]), labels[mine]).backward()
        if world.is_main:
            gradients = {name: p.grad for name, p in model.named_parameters()}
            torch.save({"gradients": gradients, "buffers": dict(model.named_buffers())}, sys.argv[2])


if __name__ == "__main__":
    main()
