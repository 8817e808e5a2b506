"""The processes that torchrun started, and what they exchange in training."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edge_sk.errors import InputError

STARTING_S = 1800  # the processes of a run may be so far apart when they start


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0  # place among the processes of this node
    local_size: int = 1
    node: int = 0
    store: dist.Store | None = None  # shared by all; none for a process alone

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place; all must call it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all must call it."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)))

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block in the main process, then in the first of every other node, then in the rest; once a run.

        What the first one leaves, a download or an index, the next ones find. After one that fails the others go on,
        and fail with the same message.
        """
        if self.store is not None and not self.is_main:
            # A download or a network disk may take hours: no barrier of the process group waits as long.
            self.store.wait([f"node {self.node if self.local_rank else 0}"], timedelta(days=2))
        try:
            yield
        finally:
            if self.store is not None and not self.local_rank:
                self.store.set(f"node {self.node}", "done")

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process the main one's buffers (batch-norm statistics)."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def join_world(device: str | None = None) -> Iterator[World]:
    """Join the processes that torchrun started; alone when it was not used. The device is as for ``pick_device``."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device, local_rank=local_rank if size > 1 else 0)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # Batches have one shape: the fastest convolutions are worth looking for.
        torch.backends.cudnn.benchmark = True
    if size == 1:
        yield World(chosen)
        return
    shared, rank, size = next(dist.rendezvous("env://"))
    own, token = _agree_on_round(shared, rank)
    store = dist.PrefixStore(token, shared)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    local_size, node = int(os.environ.get("LOCAL_WORLD_SIZE", size)), int(os.environ.get("GROUP_RANK", "0"))
    try:
        yield World(chosen, rank, size, local_rank, local_size, node, dist.PrefixStore("turns", store))
    finally:
        dist.destroy_process_group()
        del own


def _agree_on_round(shared: dist.Store, rank: int) -> tuple[dist.Store, str]:
    """A name of this start that all processes of it know, and the main process's own store, to be kept open.

    torchrun's agents keep the shared store over restarts, where gloo would find the addresses of processes that died.
    The agents' counts of restarts do not tell the starts apart: an agent that replaces a lost one begins at 0. A store
    in the main process ends with it, so that what it says is of now.
    """
    host = os.environ["MASTER_ADDR"]
    if rank == 0:
        own = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        own.set("round", token := uuid.uuid4().hex)
        shared.set("port", str(own.port))
        return own, token
    deadline = time.monotonic() + STARTING_S
    while True:
        try:
            port = int(shared.get("port"))
            # A store that is not there is reported with a page of stack frames: this asks first.
            socket.create_connection((host, port), timeout=2).close()
            own = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))
            return own, own.get("round").decode()
        except (OSError, dist.DistError):
            # The port of an earlier start, whose main process died.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def pick_device(name: str | None, *, local_rank: int = 0) -> torch.device:
    """The device ``cpu``, ``cuda`` (under torchrun this process's GPU), ``cuda:1``, ``mps``, or by default the best."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"unknown device {name!r}; allowed: cpu, cuda, cuda:N, mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' needs a Mac with Metal; use --device cpu")
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index if device.index is not None else local_rank
    if index >= count:
        raise InputError(f"device {name!r} asks for GPU {index}, this machine has {count}; use --device cpu")
    return torch.device("cuda", index)
