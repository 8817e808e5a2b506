"""The gradient of one step in float64, over two processes or two accumulated parts; the main process writes it."""

from __future__ import annotations

import sys

import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import edge_sk
from edge_sk.training.distributed import join_world


def main() -> None:
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        torch.manual_seed(0)
        images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
        labels = torch.randint(0, 10, (8,))
        model = edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=10).double()
        forward = model if world.size == 1 else DistributedDataParallel(model)
        for part in (0, 1) if world.size == 1 else (world.rank,):
            mine = slice(4 * part, 4 * part + 4)
            loss = F.cross_entropy(forward(images[mine]), labels[mine])
            (loss * world.size / 2).backward()
        if world.is_main:
            torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, sys.argv[1])


if __name__ == "__main__":
    main()
