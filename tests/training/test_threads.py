"""The number of threads follows the time that the work takes with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge_sk.training import threads
from edge_sk.training.threads import SECONDS_BETWEEN, SLOW_STEPS, Threads


class Machine:
    """Work of a known time for each number of threads, a clock that it moves, and torch's number of threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float], cores: int = 4) -> None:
        self.now, self.count, self.seconds, self.trials = 0.0, cores, seconds, 0
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(threads.torch, "get_num_threads", lambda: self.count)
        monkeypatch.setattr(threads.torch, "set_num_threads", lambda count: setattr(self, "count", count))

    def work(self) -> None:
        self.now += self.seconds(self.count)
        self.trials += 1

    def step(self, chooser: Threads) -> bool:
        self.now += self.seconds(self.count)
        return chooser.after_step(self.seconds(self.count))


def quiet(count: int) -> float:
    return 1.0 / count


def shared(count: int) -> float:
    """Another program takes a core: whoever uses all cores waits."""
    return 1.0 if count == 1 else 0.4 + 0.8 * count


@pytest.mark.parametrize(("seconds", "best"), [(quiet, 4), (shared, 1), (lambda n: abs(n - 2) + 1.0, 2)])
def test_the_fastest_number_is_chosen(monkeypatch, seconds, best):
    machine = Machine(monkeypatch, seconds)
    assert Threads(machine.work).count == machine.count == best


def test_a_resumed_run_begins_with_its_own_number(monkeypatch):
    machine = Machine(monkeypatch, quiet)
    assert Threads(machine.work, 2).count == machine.count == 2


def test_a_machine_with_fewer_cores_takes_all_it_has(monkeypatch):
    machine = Machine(monkeypatch, quiet, cores=2)
    assert Threads(machine.work, 16).count == machine.count == 2


def test_slow_steps_lead_to_fewer_threads_and_time_leads_back(monkeypatch):
    machine = Machine(monkeypatch, quiet)
    chooser = Threads(machine.work)
    machine.seconds = shared
    changed = [machine.step(chooser) for _ in range(SLOW_STEPS)]
    assert changed == [False] * (SLOW_STEPS - 1) + [True]
    assert machine.count == 1
    machine.seconds = quiet
    began = machine.now
    while not machine.step(chooser):
        assert machine.now < began + 30 * SECONDS_BETWEEN
    assert machine.count == 4
    assert machine.now >= began + SECONDS_BETWEEN


def test_one_slow_step_changes_nothing(monkeypatch):
    machine = Machine(monkeypatch, quiet)
    chooser = Threads(machine.work)
    trials = machine.trials
    for _ in range(100):
        assert not chooser.after_step(10.0)
        assert not chooser.after_step(0.25)
    assert machine.trials == trials


def test_trials_are_a_small_share_of_the_time(monkeypatch):
    machine = Machine(monkeypatch, lambda count: 20 * shared(count))
    chooser = Threads(machine.work)
    steps, trials = 4000, machine.trials
    for _ in range(steps):
        machine.step(chooser)
    spent = machine.now - 20.0 * steps
    assert machine.trials > trials
    assert spent < 0.08 * machine.now


def test_steps_that_are_slower_than_the_trials_do_not_repeat_them(monkeypatch):
    machine = Machine(monkeypatch, quiet)
    chooser = Threads(machine.work)
    trials = machine.trials
    for _ in range(1000):
        chooser.after_step(2.0)  # the loader's processes, or an optimizer that takes its time
    assert machine.trials <= 2 * trials


def test_a_hopeless_number_is_tried_once(monkeypatch):
    machine = Machine(monkeypatch, lambda count: 1.0 if count == 1 else 30.0)
    assert Threads(machine.work).count == 1
    assert machine.now <= 4 * 1.0 + 2 * 30.0
