"""The search: its space, what it trains and what not, and that a study goes on and is shared."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import edge_sk
from edge_sk.attention import gated_units
from edge_sk.errors import InputError
from recipes import search, searching
from recipes.experiments.comparison import read_finished
from recipes.planning import load_recipe
from recipes.searching import Space, Start, Tables, front, plain_name, read_space, units

pytest.importorskip("optuna")
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

ROOT = Path(__file__).resolve().parents[2]
HOST = "sk_shufflenetv2_0.5"
SPACE = "kernels: [auto, 3+5]\nreduction: [16]\nmin_width: [32]\nepochs: 3\nstages: [2, 4]\n"
QUICK = ["data.batch_size=383", "data.input_size=32", "schedule.epochs=1", "schedule.warmup_epochs=0"]


def ratio(name: str) -> float:
    """A made-up latency: stage 2 is dear; the default network's is that of its last stage."""
    return 1 + 0.06 * (name == HOST) + 0.2 * ("2:" in name) + 0.05 * ("4:" in name) + 0.01 * ("4:3+5" in name)


def accuracy(name: str) -> float:
    """A made-up accuracy."""
    return 60 + 10 * ("4:3+5" in name) + 5 * ("2:auto" in name) + ("4:auto" in name)


@pytest.fixture
def space(tmp_path: Path) -> str:
    (tmp_path / "space.yaml").write_text(SPACE)
    return str(tmp_path / "space.yaml")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names in the order of their trainings, which are made up, as latencies are."""
    names: list[str] = []

    def train(name: str, folder: Path, seed: int, overrides: list[str], *, report: Any, **_: Any) -> dict[str, float]:
        names.append(name)
        for epoch in (1, 2, 3):
            report.epoch({"epoch": epoch, "val_top1": accuracy(name) * epoch / 3})
        return {"val_top1": accuracy(name)}

    monkeypatch.setattr(search, "train", train)
    monkeypatch.setattr(searching.Ruler, "ratios", lambda self, *names: {name: ratio(name) for name in names})
    return names


def arguments(output: Path, space: str, *more: str) -> list[str]:
    return ["--arch", HOST, "--space", space, "--output", str(output), "--finalists", "0", *more]


def record_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "search.json").read_text())


def test_a_name_says_what_its_parameters_say() -> None:
    space, _, stage_of = read_space(None, HOST)
    assert space.stages == [2, 3, 4]
    params = {"host": HOST, "stage2": "3+5+7", "stage3": "plain", "stage4": "auto", "sk_units": "stride1"}
    name = space.name(params | {"reduction": 8, "min_width": 32, "act": "none"})
    found = gated_units(edge_sk.create_model(name, num_classes=3))
    assert {stage_of[path] for path in found} == {2, 4}
    for path, unit in found.items():
        assert "+".join(map(str, unit.kernels)) == {2: "3+5+7", 4: "3+3d2"}[stage_of[path]]
        assert unit.gate.reduce.out_channels == max(unit.out_channels // 8, 32)


def test_different_parameters_are_different_networks_but_for_plain_ones(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("stages: [2, 3]\nkernels: [auto, 3+5]\nsk_units: [stride1, all]\n")
    space = read_space(str(tmp_path / "space.yaml"), HOST).space
    choices = space.choices()
    every = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    names = [space.name(params) for params in every]
    plain = [params["stage2"] == params["stage3"] == "plain" for params in every]
    assert {name for name, is_plain in zip(names, plain, strict=True) if is_plain} == {"shufflenetv2_0.5"}
    assert len(set(names)) == len(names) - sum(plain) + 1


@pytest.mark.parametrize("arch", ["sk_mobilenetv2_0.5", HOST, "timm:mobilenetv2_050"])
def test_the_default_network_is_in_the_space(arch: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        "sk_units: [stride1, all]\nkernels: [auto]\nreduction: [16]\nmin_width: [32]\n"
    )
    space, default, _ = read_space(str(tmp_path / "space.yaml"), arch)
    ours, theirs = (
        edge_sk.create_model(name, num_classes=3) for name in (space.name(default), searching.default_name(arch))
    )
    assert [str(module) for module in ours.modules()] == [str(module) for module in theirs.modules()]
    (tmp_path / "space.yaml").write_text("kernels: [3+5]\n")
    assert read_space(str(tmp_path / "space.yaml"), HOST).default == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel: [3+5]", "kernel: Extra inputs are not permitted"),
        ("kernels: [3+4]", "kernels.0: kernel size 4 is even"),
        ("kernels: ['3']", "kernels.0: a unit selects between at least 2 kernels, for instance 3.5"),
        ("kernels: []", "kernels: List should have at least 1 item"),
        ("reduction: [16, 16]", "reduction: the same is named twice"),
        ("reduction: [0]", "reduction.0: .*greater than or equal to 1"),
        ("sk_units: [main]", "sk_units.0: Input should be 'stride1', 'all' or 'late'"),
        ("hosts: [sknet50]", "'sknet50' is no host: give sk_NAME of the zoo, timm:NAME or torchvision:NAME"),
        ("hosts: [sk_shufflenetv2_0.6]", "unknown model 'shufflenetv2_0.6'; did you mean shufflenetv2_0.5"),
        ("stages: [1]", r"stages: not every host has a site in stage 1; all have \[2, 3, 4\]"),
        ("act: [rleu]", "rleu"),
        ("[1, 2]", "Input should be a valid dictionary"),
        ("holdout: 0", "holdout: Input should be greater than 0"),
    ],
)
def test_a_space_that_makes_no_sense_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text(text)
    assert search.main(arguments(tmp_path / "out", str(tmp_path / "space.yaml"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_the_page_shows_every_field_with_its_default() -> None:
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    written = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    assert written == read_space(None, "sk_mobilenetv2_1.0").space.model_dump(mode="json")


def test_a_stage_without_a_site_is_plain_and_one_network_has_one_name(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("sk_units: [stride1, late]\nkernels: [auto]\n")
    space = read_space(str(tmp_path / "space.yaml"), "sk_mobilenetv2_1.0").space
    params = {"host": "sk_mobilenetv2_1.0", "reduction": 16, "min_width": 32, "act": "none"}
    params |= {f"stage{stage}": "plain" for stage in space.stages}
    assert space.name(params | {"stage1": "auto", "sk_units": "late"}) == "mobilenetv2_1.0"
    late = {space.name(params | {"stage3": "auto", "sk_units": place}) for place in ("stride1", "late")}
    assert late == {"sk_mobilenetv2_1.0@kernels=3:auto,sk_units=stride1"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "0"], "--budget 0 is not a share of the plain network's latency, for instance 1.15"),
        (["--budget", "nan"], "--budget nan is not a share"),
        (["--trials", "0"], "--trials 0 must be at least 1"),
        (
            ["--storage", "somewhere"],
            "--storage is not the URL of a database, for instance postgresql\\+psycopg://HOST/NAME",
        ),
        (
            ["--storage", "postgresql://me:secret@localhost:1/none"],
            r"--storage postgresql://me:\*\*\*@.* cannot be opened",
        ),
        (["--storage", "oracle://host/none"], "--storage oracle://host/none cannot be opened: Failed to import DB"),
        (["--costs", "costs.json"], "--costs 'costs.json' has no auto=FILE, what units of those kernels cost"),
        (
            ["--costs", "auto=none.json", "3+5=none.json"],
            "no costs at none.json; the repository's deploy/unit_costs.py measures them",
        ),
        (["--data", "nowhere"], "--data nowhere does not exist"),
    ],
)
def test_a_command_that_makes_no_sense_is_one_line(
    more: list[str], message: str, tmp_path: Path, space: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search.main(arguments(tmp_path / "out", space, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert "secret" not in line


def test_the_front_is_what_nothing_beats() -> None:
    numbers = random.Random(0)
    points = [(str(i), numbers.choice([1.0, 1.1, 1.2, 1.3]), numbers.choice([50.0, 60.0, 70.0])) for i in range(6)]
    points += [("best", 1.05, 65.0)]
    beaten = {a[0] for a in points for b in points if b[1] <= a[1] and b[2] >= a[2] and (b[1] < a[1] or b[2] > a[2])}
    found = front(points)
    assert not beaten & set(found)
    assert {point[1:] for point in points if point[0] in found} == {
        point[1:] for point in points if point[0] not in beaten
    }
    assert "best" in found


def test_costs_add_up(tmp_path: Path) -> None:
    space, default, stage_of = read_space(None, HOST)
    start = Start(space.model_copy(update={"kernels": ["auto", "3+5"]}), default, stage_of)
    given = []
    for kernels, each in (("auto", 10), ("3+5", 30)):
        table = {"plain": 1000, "units": {unit: {"select": each} for unit in units(HOST)}, "where": "a phone"}
        (tmp_path / f"{kernels}.json").write_text(json.dumps(table))
        given.append(f"{kernels}={tmp_path / kernels}.json")
    tables, sites = Tables(given, start), [stage_of[unit] for unit in units(HOST)]
    name = f"{HOST}@kernels=2:3+5/4:auto,sk_units=stride1"
    expected = 1 + (30 * sites.count(2) + 10 * sites.count(4)) / 1000
    assert tables.ratios(HOST, plain_name(HOST), name) == {
        HOST: 1 + 10 * len(sites) / 1000,
        plain_name(HOST): 1.0,
        name: pytest.approx(expected),
    }
    assert "a phone" in tables.where
    with pytest.raises(InputError, match="has no auto=FILE, what units of those kernels cost"):
        Tables(given[1:], start)
    with pytest.raises(InputError, match="--costs are those of one host, and the space has a, b"):
        Tables(given, Start(space.model_copy(update={"hosts": ["a", "b"]}), default, stage_of))


def test_what_is_beyond_the_budget_is_never_trained(tmp_path: Path, space: str, trained: list[str]) -> None:
    assert search.main(arguments(tmp_path / "out", space, "--trials", "9")) == 0
    record = record_of(tmp_path / "out")
    # Each is tried once; the budget is the default network's latency. Where both stages select, what each was measured
    # to cost adds up to far more: of 3 x 3 choices these four are not measured.
    assert len({one["name"] for one in record["trials"]}) == len(record["trials"]) == 5
    assert not [one for one in record["trials"] if "/" in one["name"]]
    assert record["budget"] == ratio(HOST) == 1.06
    within = {one["name"] for one in record["trials"] if one["ratio"] <= 1.06}
    assert sorted(trained) == sorted(within)
    assert within == {"shufflenetv2_0.5", *(f"{HOST}@kernels=4:{one},sk_units=stride1" for one in ("auto", "3+5"))}


def test_costs_of_stages_add_up_where_they_were_measured_alike(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE + "sk_units: [all, stride1]\nact: [none, relu]\n")
    start = read_space(str(tmp_path / "space.yaml"), HOST)
    singles = start.space.singles()
    ratios = {start.space.name(one): 1.2 for one in singles.values()}
    tried = [
        SimpleNamespace(state=SimpleNamespace(name="PRUNED"), user_attrs={"name": name, "ratio": ratio})
        for name, ratio in ratios.items()
    ]
    study = SimpleNamespace(get_trials=lambda deepcopy: tried)
    args = search.parse(arguments(tmp_path / "out", "space.yaml"))
    one = search.Search(study, start.space, None, 1.1, "digits", [], args, [])  # type: ignore[arg-type]
    both = singles["stage2", "auto"] | {"stage4": "3+5", "min_width": 16}
    assert one._estimate(both) == pytest.approx(1.4)
    assert one._estimate(singles["stage2", "auto"]) == pytest.approx(1.2)
    # Fewer sites, or another activation, cost something else.
    assert one._estimate(both | {"sk_units": "stride1"}) == one._estimate(both | {"act": "relu"}) == 1.0


def test_a_curve_that_falls_behind_is_stopped(
    tmp_path: Path, space: str, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PRUNE_FROM_TRIALS", 2)
    # Each network is worse than all before it, whatever it is.
    monkeypatch.setitem(globals(), "accuracy", lambda _: 90.0 - len(trained))
    assert search.main(arguments(tmp_path / "out", space, "--trials", "4", "--budget", "9")) == 0
    record = record_of(tmp_path / "out")
    found = {one["name"]: (one["outcome"], one["epochs"]) for one in record["trials"]}
    assert [found[name] for name in trained] == [("trained", 3)] * 2 + [("stopped", search.PRUNE_FROM_EPOCH)] * 2
    assert set(record["front"]) <= set(trained[:2])


def test_the_front_and_the_best_are_those_of_the_budget(tmp_path: Path, space: str, trained: list[str]) -> None:
    assert search.main(arguments(tmp_path / "out", space, "--trials", "9", "--budget", "1.22")) == 0
    record = record_of(tmp_path / "out")
    outcomes = {one["name"]: one["outcome"] for one in record["trials"]}
    assert {name for name, outcome in outcomes.items() if outcome == "beyond the budget"} == {
        name for name in outcomes if ratio(name) > 1.22
    }
    assert {name for name, outcome in outcomes.items() if outcome != "beyond the budget"} == set(trained)
    assert record["front"] == front(
        (name, ratio(name), accuracy(name)) for name in outcomes if outcomes[name] == "trained"
    )
    best = max((name for name in outcomes if ratio(name) <= 1.22), key=accuracy)
    assert (record["trials"][0]["name"], outcomes[best]) == (best, "trained")
    assert (tmp_path / "out" / "search.png").read_bytes().startswith(b"\x89PNG")
    # Finished: nothing is tried again, and another search is refused.
    before = list(trained)
    assert search.main(arguments(tmp_path / "out", space, "--trials", "9", "--budget", "1.22")) == 0
    assert trained == before


def test_another_search_is_refused(
    tmp_path: Path, space: str, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search.main(arguments(tmp_path / "out", space, "--trials", "1", "--budget", "9")) == 0
    capsys.readouterr()
    assert search.main(arguments(tmp_path / "out", space, "--trials", "1", "--budget", "8")) == 2
    assert "study.db has --budget 9.0, not 8.0: give another --output" in capsys.readouterr().err
    assert search.main(arguments(tmp_path / "out", space, "--budget", "9", "--set", "optim.lr=0.3")) == 2
    assert "has recipe " in capsys.readouterr().err
    assert len(trained) == 1


def test_an_interrupted_trial_is_taken_up_again(
    tmp_path: Path, space: str, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, interrupted = search.train, list[str]()

    def train(name: str, *args: Any, report: Any, **more: Any) -> dict[str, float]:
        if not interrupted:
            interrupted.append(name)
            report.epoch({"epoch": 1, "val_top1": 1.0})
            raise KeyboardInterrupt
        return fake(name, *args, report=report, **more)

    monkeypatch.setattr(search, "train", train)
    command = arguments(tmp_path / "out", space, "--trials", "2", "--budget", "9")
    assert search.main(command) == 130
    assert search.main(command) == 0
    assert trained[0] == interrupted[0]
    assert len(record_of(tmp_path / "out")["trials"]) == len(set(trained)) == 2


def test_a_network_that_diverges_does_not_end_the_search(
    tmp_path: Path, space: str, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, diverged = search.train, list[str]()

    def train(name: str, folder: Path, *args: Any, **more: Any) -> dict[str, float]:
        if not diverged:
            diverged.append(name)
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text(
                '{"seed": 0, "diverged": [{"step": 1, "problem": "the loss is nan"}]}'
            )
            raise InputError("the loss is nan")
        return fake(name, folder, *args, **more)

    monkeypatch.setattr(search, "train", train)
    assert search.main(arguments(tmp_path / "out", space, "--trials", "2", "--budget", "9")) == 0
    outcomes = {one["name"]: one["outcome"] for one in record_of(tmp_path / "out")["trials"]}
    assert outcomes == {diverged[0]: "diverged", trained[0]: "trained"}


def test_the_trainings_that_rank_never_read_the_test_set() -> None:
    for name in ("digits", "light", "large"):
        overrides = search.ranking(name, ["optim.lr=0.3"], Space(epochs=3))
        short, full = load_recipe(name, overrides), load_recipe(name)
        assert (short.data.holdout, short.optim.lr, short.schedule.epochs) == (0.2, 0.3, 3)
        assert short.schedule.warmup_epochs == pytest.approx(full.schedule.warmup_epochs * 3 / full.schedule.epochs)


# Two processes share a study, or one is killed: trainings and latencies are made up where they would take minutes.
WORKER = """
import sys, time
from pathlib import Path
from recipes import search, searching
from tests.recipes import test_search

def train(name, folder, seed, overrides, *, report, **_):
    for epoch in (1, 2, 3):
        time.sleep(0.2)
        report.epoch({"epoch": epoch, "val_top1": test_search.accuracy(name) * epoch / 3})
    with open(sys.argv[1], "a") as file:
        file.write(name + "\\n")
    return {"val_top1": test_search.accuracy(name)}

search.train = train
searching.Ruler.ratios = lambda self, *names: {name: test_search.ratio(name) for name in names}
sys.exit(search.main(sys.argv[2:]))
"""


def test_the_page_has_what_the_record_has() -> None:
    record = json.loads((ROOT / "recipes" / "results" / "search_sk_mobilenetv2_1.0.json").read_text())
    page = (ROOT / "docs" / "search.md").read_text()
    for entry in record["finalists"]:
        assert f" | {entry['ratio']:.2f} | {entry['top1']:.2f} | " in page
        low, high = entry.get("difference_ci95", (0.0, 0.0))
        assert f"[{low:+.2f}, {high:+.2f}] |" in page or "difference" not in entry
    for outcome in ("beyond the budget", "stopped", "trained"):
        count = sum(one["outcome"] == outcome for one in record["trials"])
        assert re.search(rf"\b{count} were {outcome}", page)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a database of this test alone, reached through a socket in its own folder."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    control = shutil.which("pg_ctl", path=os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")]))
    if control is None:
        pytest.skip("no PostgreSQL server is installed")
    # A server refuses to run as root; a socket's path has at most 107 characters.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    if user:
        shutil.chown(folder, "postgres")
    command = [*user, control, "-D", str(folder / "data"), "-w", "-s"]
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    subprocess.run([*command, "initdb", "-o", "-U search --auth=trust"], check=True, cwd="/", stdout=subprocess.DEVNULL)
    subprocess.run([*command, "-l", str(folder / "log"), "-o", options, "start"], check=True, cwd="/")
    try:
        yield f"postgresql+psycopg://search@/postgres?host={folder}"
    finally:
        subprocess.run([*command, "-m", "immediate", "stop"], check=True, cwd="/")
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_two_processes_share_a_study(database: str, tmp_path: Path, space: str, request: pytest.FixtureRequest) -> None:
    more = ["--budget", "9", "--trials", "6"]
    if database == "postgresql":
        more += ["--storage", request.getfixturevalue("postgres")]
    log, output = tmp_path / "log", tmp_path / "shared"
    command = [sys.executable, "-c", WORKER, str(log), *arguments(output, space, *more)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    workers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for worker in workers:
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors
    names = log.read_text().split()
    assert len(set(names)) == len(names)  # none was trained by both
    record = record_of(output)
    # The second process may be at a network when the first has the last one asked for.
    assert 6 <= len(record["trials"]) <= 7
    assert sorted(one["name"] for one in record["trials"] if one["outcome"] == "trained") == sorted(names)


@pytest.mark.slow
def test_a_killed_search_goes_on_and_tests_its_finalists(
    tmp_path: Path, space: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is made up here: files are exported and measured, networks trained, killed and tested."""
    output = tmp_path / "out"
    command = ["--arch", HOST, "--space", space, "--output", str(output), "--budget", "9", "--trials", "2"]
    command += ["--finalists", "1", "--seeds", "0", "--jobs", "2", "--set", *QUICK, "checkpoint.every_minutes=0"]
    process = subprocess.Popen([sys.executable, ROOT / "recipes" / "search.py", *command], stderr=subprocess.PIPE)
    while not (checkpoints := [*output.glob("trials/*/checkpoint.pt")]):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (killed,) = (checkpoint.parent for checkpoint in checkpoints)
    monkeypatch.setattr(search, "GRACE", 1)
    time.sleep(2)
    assert search.main(command) == 0
    record = record_of(output)
    assert len(record["trials"]) == 2
    assert all(one["outcome"] == "trained" and one["epochs"] == 3 for one in record["trials"])
    assert len(json.loads((killed / "manifest.json").read_text())["resumed"]) == 1
    default, plain, finalist = record["finalists"]
    assert (default["arch"], plain["arch"], plain["ratio"]) == (HOST, "shufflenetv2_0.5", 1.0)
    assert finalist["arch"] in {one["name"] for one in record["trials"]}
    assert 1 < finalist["ratio"] < 9
    assert set(finalist["top1_by_seed"]) == {"0"}
    # Those are of the test set, which no training that ranks has read.
    recipe = load_recipe("digits", QUICK)
    folder = next(output.glob("finalists/runs/sk_shufflenetv2_0.5-seed0"))
    assert read_finished(folder, recipe, arch=HOST, data="digits").top1 == default["top1_by_seed"]["0"]
    assert "none is shown to be better than the default" in capsys.readouterr().out
