"""Two processes that meet, die and are started again, as under torchrun's agents, whose counts of restarts differ."""

from __future__ import annotations

import multiprocessing
import os
import signal

import torch
import torch.distributed as dist

from edge_sk.training.distributed import join_world


def work(rank: int, restarts: int, port: int, die: bool) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "GROUP_RANK": str(rank), "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(restarts)}
    with join_world("cpu") as world:
        assert (world.rank, world.size, world.local_size, world.node) == (rank, 2, 1, rank)
        assert world.any(rank == 1)
        assert not world.any(False)
        with world.in_turn():
            pass
        assert world.sum(torch.tensor(float(rank + 1))) == 3
        if die:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    agent = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    # Both die; then the second agent is replaced by one that counts from 0; then both count 0 once more.
    for counts, die in (((0, 0), True), ((1, 0), True), ((0, 0), False)):
        pair = [context.Process(target=work, args=(rank, count, agent.port, die)) for rank, count in enumerate(counts)]
        # The second comes first, and finds the port of the start before.
        for process in reversed(pair):
            process.start()
        for process in pair:
            process.join(60)
        assert [process.exitcode for process in pair] == [-signal.SIGKILL if die else 0] * 2


if __name__ == "__main__":
    main()
