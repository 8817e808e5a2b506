"""How many threads a CPU computes with: measured before training, and again when other programs take or leave cores."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

import torch

REPEATS = 3
SLOW = 1.8  # times what was measured
HOPELESS = 2.0  # times the best: beside other programs, a step of many threads can take half a minute
SLOW_STEPS = 5  # in a row
SHARE = 0.05  # of the time that goes into trials, at most, while fewer threads compute than there are cores
SECONDS_BETWEEN = 60.0  # of trials, at least


def fixed() -> bool:
    """Whether the user or torchrun has set the number of threads, or there is but one core."""
    return "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() == 1


class Threads:
    """Keeps torch at the number of threads with which ``work`` is fastest.

    Threads wait for each other after every operator: where another program takes one of two cores, one thread is the
    faster (docs/training.md has both). Numbers of threads differ in their rounding: a resumed run begins with its own.

    Args:
        work: Something like a training step, without an effect; it is run a few times for every number of threads.
        count: The number to begin with; ``None``: the fastest.
    """

    def __init__(self, work: Callable[[], object], count: int | None = None) -> None:
        most = torch.get_num_threads()
        self._work, self._candidates = work, [most]
        while self._candidates[0] > 1:
            self._candidates.insert(0, self._candidates[0] // 2)
        self._choose(self._candidates if count is None else [min(count, most)])

    def after_step(self, seconds: float) -> bool:
        """Take note of a step's time; returns whether it led to another number of threads."""
        self._slow_steps = self._slow_steps + 1 if seconds > SLOW * self._expected else 0
        fewer_for_long = self.count < self._candidates[-1] and time.monotonic() >= self._next_trial
        if self._slow_steps < SLOW_STEPS and not fewer_for_long:
            return False
        before = self.count
        self._choose(self._candidates)
        if self.count == before:
            self._expected = max(self._expected, seconds)
        return self.count != before

    def _choose(self, candidates: list[int]) -> None:
        """Time the work with each number of threads, and compute with the fastest from here on."""
        began, seconds = time.monotonic(), dict[int, float]()
        for count in candidates:
            seconds[count] = self._time(count, HOPELESS * min(seconds.values(), default=math.inf))
        self.count = min(seconds, key=lambda count: seconds[count])
        torch.set_num_threads(self.count)
        self._expected, self._slow_steps = seconds[self.count], 0
        now = time.monotonic()
        self._next_trial = now + max(SECONDS_BETWEEN, (now - began) / SHARE)

    def _time(self, count: int, limit: float) -> float:
        torch.set_num_threads(count)
        seconds = list[float]()
        # The first starts the threads.
        while len(seconds) <= REPEATS and (not seconds or min(seconds) <= limit):
            began = time.perf_counter()
            self._work()
            seconds.append(time.perf_counter() - began)
        return min(seconds[1:] or seconds)
