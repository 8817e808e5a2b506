from __future__ import annotations

import errno
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sk.errors import InputError
from edge_sk.training import glyphs
from edge_sk.training.distributed import World
from edge_sk.training.glyphs import ScaledGlyphs
from edge_sk.training.plan import start
from edge_sk.training.run import load_run, read_csv, saved_recipe
from recipes.compare import RECIPES, TRIAL_SEED, Run, main, parse, train_command
from recipes.experiments.comparison import (
    SCALE_EDGES,
    Finished,
    compare,
    independent_seeds,
    markdown,
    read_finished,
    run_folder,
    verdict,
)
from recipes.planning import load_recipe, make_plan
from recipes.train import main as train

QUICK = ["schedule.epochs=1", "schedule.warmup_epochs=0", "data.batch_size=479", "data.input_size=32"]
ARCHS = ["shufflenetv2_0.5", "sk_shufflenetv2_0.5@kernels=3+3,select=false"]
COSTS = {"plain": {"params": 100, "macs": 1000}, "sk": {"params": 120, "macs": 1100}}


def arguments(output: Path, *more: str, archs: list[str] = ARCHS) -> list[str]:
    common = ["--arch", *archs, "--seeds", "3", "--recipe", "digits", "--data", "digits", "--device", "cpu"]
    return [*common, "--output", str(output), "--set", *QUICK, *more]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("compared")
    assert main(arguments(output, "--jobs", "2", "--record", str(output / "record.json"))) == 0
    return output


def results(*, sk: list[float]) -> dict[str, dict[int, Finished]]:
    plain = [80.0, 82.0, 84.0, 86.0, 88.0]
    return {
        "plain": {seed: Finished(top1, 10 + seed) for seed, top1 in enumerate(plain)},
        "sk": {seed: Finished(base + gain, 20) for seed, (base, gain) in enumerate(zip(plain, sk, strict=True))},
    }


def test_the_difference_is_taken_seed_by_seed() -> None:
    # The networks' own spread is 3.2 points; the paired gain of 1 to 3 is certain all the same.
    plain, sk = compare(results(sk=[1.0, 1.5, 2.0, 2.5, 3.0]), COSTS)
    assert plain["top1"] == 84.0
    assert plain["top1_deviation"] == pytest.approx(math.sqrt(10), abs=1e-3)
    assert plain["seconds"] == 12
    assert "difference" not in plain
    assert sk["difference"] == 2.0
    half = 2.776445 * math.sqrt(0.625 / 5)  # t(0.975, 4)
    assert sk["difference_ci95"] == [pytest.approx(2 - half, abs=1e-3), pytest.approx(2 + half, abs=1e-3)]
    assert sk["difference_by_seed"] == {"0": 1.0, "1": 1.5, "2": 2.0, "3": 2.5, "4": 3.0}
    assert (sk["params"], sk["macs"]) == (120, 1100)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([1.0, 1.5, 2.0, 2.5, 3.0], "better"),
        ([-1.0, -1.5, -2.0, -2.5, -3.0], "worse"),
        ([-2.0, 3.0, 1.0, -1.0, 1.0], "not shown"),
    ],
)
def test_the_verdict_is_the_intervals(gains: list[float], expected: str) -> None:
    assert verdict(compare(results(sk=gains), COSTS)[1]) == expected


def test_one_seed_has_no_interval() -> None:
    one = {arch: {0: runs[0]} for arch, runs in results(sk=[1.0] * 5).items()}
    entries = compare(one, COSTS)
    assert entries[1]["difference_ci95"] is None
    assert verdict(entries[1]) == "not shown"
    assert "| `sk` | 1 | 81.00 | - | +1.00 (one seed) | not shown |" in markdown(entries)


def test_only_seeds_that_both_have_are_paired() -> None:
    unpaired = results(sk=[1.0, 1.0, 1.0, 1.0, 5.0])
    del unpaired["sk"][0], unpaired["plain"][4]
    plain, sk = compare(unpaired, COSTS)
    assert (len(plain["top1_by_seed"]), len(sk["top1_by_seed"])) == (4, 4)
    assert (sk["difference"], sk["difference_ci95"]) == (1.0, [1.0, 1.0])
    assert [*sk["difference_by_seed"]] == ["1", "2", "3"]
    alone = compare({"plain": {0: Finished(80, 1)}, "sk": {1: Finished(81, 1)}}, COSTS)
    assert (alone[1]["difference"], verdict(alone[1])) == (None, "not shown")
    assert "| `sk` | 1 | 81.00 | - |  | not shown |" in markdown(alone)


def test_a_comparison_leaves_its_record(compared: Path) -> None:
    record = json.loads((compared / "compare.json").read_text())
    assert record == json.loads((compared / "record.json").read_text())
    assert [entry["arch"] for entry in record["networks"]] == ARCHS
    assert (record["seeds"], record["epochs"], record["set"]) == ([3], 1, QUICK)
    plain, summed = record["networks"]
    assert plain["input_size"] == summed["input_size"] == [3, 32, 32]
    # Two branches have twice the depthwise convolutions.
    assert summed["params"] > plain["params"]
    assert summed["macs"] > plain["macs"]
    assert summed["difference"] == pytest.approx(summed["top1"] - plain["top1"], abs=1e-3)
    assert {"command", "versions", "host", "date"} <= record.keys()
    assert record["trained_at"] == [
        json.loads((compared / "runs" / f"{ARCHS[0]}-seed3" / "manifest.json").read_text())["commit"]
    ]
    assert record["command"].startswith("python recipes/compare.py --arch shufflenetv2_0.5")
    assert (compared / "compare.md").read_text() == markdown(record["networks"])


def test_finished_runs_are_not_done_again(compared: Path) -> None:
    files = sorted(compared.glob("runs/*/*"))
    assert len(files) > 10
    before = {path: path.stat().st_mtime_ns for path in files}
    table = (compared / "compare.md").read_text()
    assert main(arguments(compared)) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert (compared / "compare.md").read_text() == table


def test_what_was_terminated_goes_on_to_the_same_result(tmp_path: Path) -> None:
    settings = ["schedule.epochs=2", "schedule.warmup_epochs=0", "data.batch_size=100", "data.input_size=32"]
    common = ["--arch", "sk_shufflenetv2_0.5", "--seeds", "1", "--data", "digits", "--device", "cpu"]
    common += ["--set", *settings, "checkpoint.every_minutes=0", "--output"]
    assert main([*common, str(tmp_path / "whole")]) == 0
    output = tmp_path / "terminated"
    run = output / "runs" / "sk_shufflenetv2_0.5-seed1"
    process = subprocess.Popen([sys.executable, RECIPES / "compare.py", *common, output], stderr=subprocess.PIPE)
    while not (run / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not (output / "compare.json").exists()
    assert "stopped by SIGTERM at step" in (output / "logs" / f"{run.name}.log").read_text()
    assert main([*common, str(output)]) == 0
    (whole,), (resumed,) = (
        json.loads((folder / "compare.json").read_text())["networks"] for folder in (tmp_path / "whole", output)
    )
    assert resumed["top1_by_seed"] == whole["top1_by_seed"]
    weights = [folder / "runs" / run.name / "model.safetensors" for folder in (tmp_path / "whole", output)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_each_network_gets_the_rate_of_its_best_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, images in (("train", 64), ("validation", 60), ("test", 200)):
        monkeypatch.setitem(glyphs.IMAGES, split, images)
    settings = ["schedule.epochs=2", "schedule.warmup_epochs=0", "data.batch_size=32", "data.input_size=32"]
    common = ["--arch", *ARCHS, "--seeds", "3", "4", "--data", "scaled_glyphs", "--device", "cpu", "--workers", "0"]
    common += ["--rates", "1e-9", "0.01", "--output", str(tmp_path), "--set", *settings]

    def train_here(runs: list[Run], args: Namespace) -> None:
        # In this process, which has the small data set; the second network's last seed is left untrained.
        for run in runs:
            if (run.arch, run.seed) != (ARCHS[1], 4):
                assert train(train_command(run, args)[2:]) == 0

    monkeypatch.setattr("recipes.compare.train_all", train_here)
    assert main([*common, "--record", str(tmp_path / "record.json")]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert [[*network["top1_by_seed"]] for network in record["networks"]] == [["3", "4"], ["3"]]
    for network in record["networks"]:
        (chosen,), trials = network["chosen"], network["trials"]
        assert trials[chosen] == max(trials.values())
        for key, top1 in trials.items():
            rate = key.removeprefix("optim.lr=")
            folder = run_folder(tmp_path / f"lr{rate}", network["arch"], TRIAL_SEED)
            recipe = saved_recipe(folder)
            assert (recipe.data.val_split, recipe.optim.lr) == ("validation", float(rate))
            assert read_csv(folder)[-1]["val_top1"] == pytest.approx(top1)
        for seed, top1 in network["top1_by_seed"].items():
            recipe = saved_recipe(run_folder(tmp_path, network["arch"], int(seed)))
            assert (recipe.data.val_split, f"optim.lr={recipe.optim.lr:g}") == (None, chosen)
            # The bins hold the test images that the accuracy is of.
            scales = [ScaledGlyphs("test").glyph(index).scale for index in range(200)]
            sizes = np.histogram(scales, SCALE_EDGES)[0]
            assert sum(sizes) == 200
            assert np.average(network["top1_by_scale"][seed], weights=sizes) == pytest.approx(top1, abs=1e-3)
    capsys.readouterr()
    monkeypatch.setattr("recipes.compare.train_all", lambda *_: pytest.fail("trained"))
    (tmp_path / "record.json").unlink()
    assert main([*common, "--finished", "--record", str(tmp_path / "record.json")]) == 0
    again = json.loads((tmp_path / "record.json").read_text())
    assert again["networks"] == record["networks"]
    assert main([*common, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("to train") == 1


def test_an_interrupted_run_is_resumed(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "copy"
    shutil.copytree(compared, output)
    folder = output / "runs" / "shufflenetv2_0.5-seed3"
    (folder / "model.safetensors").unlink()
    assert main(arguments(output, "--dry-run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"to train  {folder}"
    assert lines[1].startswith("finished  ")
    command = train_command(Run("shufflenetv2_0.5", 3, folder), parse(arguments(output)))
    assert command[-1] == "--resume"
    fresh = train_command(Run("shufflenetv2_0.5", 4, folder.parent / "new"), parse(arguments(output)))
    assert "--resume" not in fresh


def test_garbage_weights_are_trained_again(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "copy"
    shutil.copytree(compared, output)
    folder = output / "runs" / "shufflenetv2_0.5-seed3"
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    assert main(arguments(output, "--dry-run")) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"to train  {folder}"
    assert main(arguments(output)) == 0
    assert (folder / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "{}"),
        ("manifest.json", '{"seed": 3, "resumed": 3}'),
        ("manifest.json", '{"seed": 3, "resumed": [3]}'),
        ("config.json", "[]"),
        ("recipe.yaml", "["),
        ("metrics.csv", "epoch,test_top1,seconds\nnan,90,1\n"),
        ("metrics.csv", "epoch,test_top1,seconds\n1e400,90,1\n"),
        ("metrics.csv", "epoch,test_top1,seconds\n1,inf,1\n"),
        ("metrics.csv", f"epoch,test_top1,seconds\n1,{'9' * 200_000},1\n"),
        ("metrics.csv", "epoch,test_top1,seconds\n1,90,1,,\n1\n"),
    ],
)
def test_a_damaged_file_of_a_run_is_found_before_any_training(
    name: str, content: str, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    output = tmp_path / "copy"
    shutil.copytree(compared, output)
    (output / "runs" / "shufflenetv2_0.5-seed3" / name).write_text(content)
    monkeypatch.setattr("recipes.compare.train_all", lambda *_: pytest.fail("trained"))
    for more in ([], ["--dry-run"]):
        assert main(arguments(output, *more)) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert name in said.err
        assert said.err.count("\n") == 1
        assert len(said.err) < 700


def test_a_run_of_another_recipe_is_not_mixed_in(compared: Path) -> None:
    recipe = load_recipe("digits", [*QUICK, "optim.lr=0.2"])
    folder = compared / "runs" / "shufflenetv2_0.5-seed3"
    with pytest.raises(InputError, match=r"is of another comparison \(optim.lr: 0.1 -> 0.2\): give another --output"):
        read_finished(folder, recipe, arch="shufflenetv2_0.5", data="digits")
    recipe = load_recipe("digits", [*QUICK, "checkpoint.every_minutes=3"])
    with pytest.raises(InputError, match="data: digits -> scaled_digits"):
        read_finished(folder, recipe, arch="shufflenetv2_0.5", data="scaled_digits")
    assert read_finished(folder, recipe, arch="shufflenetv2_0.5", data="digits") is not None
    assert read_finished(folder.parent / "none", recipe, arch="shufflenetv2_0.5", data="digits") is None


def test_a_run_is_not_finished_before_its_last_weights_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    common = ["--arch", "shufflenetv2_0.5", "--device", "cpu", "--output", str(folder)]
    recipe = load_recipe("digits", QUICK)

    def disk_is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_sk.training.loop.save_weights", disk_is_full)
        assert train([*common, "--set", *QUICK]) != 0
    # As a run that was stopped once leaves them.
    (folder / "model.safetensors").write_bytes(b"weights of an earlier epoch")
    assert read_finished(folder, recipe, arch="shufflenetv2_0.5", data="digits") is None
    assert train([*common, "--resume"]) == 0
    assert read_finished(folder, recipe, arch="shufflenetv2_0.5", data="digits") is not None
    load_run(folder)


def test_without_a_recipe_it_is_the_one_train_would_take(tmp_path: Path) -> None:
    common = ["--arch", "shufflenetv2_0.5", "--output", str(tmp_path / "out"), "--dry-run"]
    for data, other in (("scaled_digits", "digits"), ("digits", "scaled_digits")):
        recipe = load_recipe(data)
        assert recipe != load_recipe(other)
        folder = tmp_path / "out" / "runs" / "shufflenetv2_0.5-seed0"
        start(make_plan("shufflenetv2_0.5", data=data, output=str(folder)), World(torch.device("cpu")))
        # A folder of another recipe would be refused.
        assert main([*common, "--data", data]) == 0
        assert main([*common, "--data", data, "--recipe", other]) == 2
        shutil.rmtree(folder)


def test_seeds_of_one_training_are_told_from_others(compared: Path, tmp_path: Path) -> None:
    run = compared / "runs" / f"{ARCHS[0]}-seed3"
    again = tmp_path / "again"
    shutil.copytree(run, again)
    with pytest.raises(InputError, match=f"{again} has seed 3, as {run}: give each seed once"):
        independent_seeds([run, again])
    manifest = json.loads((again / "manifest.json").read_text())
    (again / "manifest.json").write_text(json.dumps(manifest | {"seed": 4}))
    assert independent_seeds([run, again]) == [3, 4]
    (again / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("lr: 0.1", "lr: 0.2"))
    with pytest.raises(InputError, match=r"is another training than .* \(optim.lr: 0.1 -> 0.2\): give seeds of one"):
        independent_seeds([run, again])
    (again / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("epochs: 1", "epochs: 2"))
    with pytest.raises(InputError, match=rf"{again} is not finished; continue it: python recipes/train.py --arch"):
        independent_seeds([run, again])
    # One alone is no sample, whatever it is.
    assert independent_seeds([again]) == [4]
    (again / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    (again / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest.json is not JSON"):
        independent_seeds([again])
    (again / "metrics.csv").write_text("epoch,step\n1,3\n")
    with pytest.raises(InputError, match=r"metrics.csv is damaged \(KeyError: 'val_top1'\)"):
        independent_seeds([run, again])


def test_a_run_that_fails_is_named_with_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--arch", "shufflenetv2_0.5", "--seeds", "0", "--data", str(tmp_path / "none")]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    log = tmp_path / "out" / "logs" / "shufflenetv2_0.5-seed0.log"
    assert f"1 of 1 runs failed, see {log}" in message
    assert "does not exist" in log.read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arch", "shufflenetv2_0.5", "--device", "gpu"], "unknown device 'gpu'"),
        (["--arch", "shufflenetv2_0.5", "--workers", "-1"], "--workers -1 must be from 0 to 256"),
        (["--arch", "shufflenetv2_0.5", "--workers", "999999999999"], "--workers 999999999999 must be from 0 to 256"),
        (["--arch", "shufflenetv2_0.5", "sk_shufflenetv2_0.6"], "unknown model 'sk_shufflenetv2_0.6'"),
        (["--arch", "shufflenetv2_0.5", "shufflenetv2_0.5"], "names one twice"),
        (["--arch", "shufflenetv2_0.5", "--seeds", "1", "1"], "--seeds 1 1 names one twice"),
        (["--arch", "shufflenetv2_0.5", "--jobs", "0"], "--jobs 0 must be from 1 to 256"),
        (["--arch", "shufflenetv2_0.5", "--set", "optim.speed=1"], "unknown key optim.speed"),
        (
            ["--arch", "shufflenetv2_0.5", "--rates", "0.1", "0.1"],
            "--rates 0.1 0.1: give different rates above 0",
        ),
        (
            ["--arch", "shufflenetv2_0.5", "--data", "scaled_glyphs", "--rates", "0.1", "0"],
            "--rates 0.1 0: give different rates above 0",
        ),
        (
            ["--arch", "shufflenetv2_0.5", "sknet50", "--data", "images"],
            "the architectures have different recipes (large, light): choose one with --recipe",
        ),
    ],
)
def test_bad_input_is_one_line(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*more, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_networks_given_different_images_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archs = ["shufflenetv2_0.5", "timm:lcnet_050", "timm:tf_mobilenetv3_small_minimal_100"]
    assert main(["--arch", *archs, "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "warning: the networks are given different images: mean" in capsys.readouterr().err
