"""The export command: what it calls, what it prints, how it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deploy.export import artifacts, main, parser
from edge_sk.errors import InputError
from edge_sk.export import network as networks
from edge_sk.export import parity
from edge_sk.export.executorch import pte
from edge_sk.export.network import Network

pytest.importorskip("executorch")


def test_exports(
    small_network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = dataclasses.replace(small_network, training="not finished: 1 of 3 epochs")
    monkeypatch.setattr(networks, "from_arch", lambda name, **_: stopped)
    command = ["--arch", "small_1.0", "--output", str(tmp_path), "--precisions", "fp32", "int8"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "training not finished: 1 of 3 epochs" in out
    assert "small_1.0_xnnpack_fp32.pte" in out
    assert "delegates: 1, left outside: nothing" in out
    assert "computed in float: sigmoid x1" in out
    names = {path.name for path in tmp_path.iterdir()}
    files = {f"small_1.0_xnnpack_{precision}.pte" for precision in ("fp32", "int8")}
    assert names == files | {f"{file}.json" for file in files}
    record = json.loads((tmp_path / "small_1.0_xnnpack_int8.pte.json").read_text())
    assert record["manifest"]["command"].startswith("python deploy/export.py --arch small_1.0")
    assert record["parity"]["images"] == 64
    assert record["training"] == "not finished: 1 of 3 epochs"
    # Another run of the same architecture.
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    stopped = dataclasses.replace(stopped, model=copy.deepcopy(stopped.model), weights="other")
    with torch.no_grad():
        next(stopped.model.parameters()).mul_(1.1)
    assert main(command) == 2
    for line in capsys.readouterr().err.splitlines():
        assert re.search(r"_(fp32|int8)\.pte holds other weights \(random, .*would be lost: .* --name", line)
    assert main([*command[:-1], "--name", "run 2"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / "run-2_xnnpack_fp32.pte").exists()


def test_one_failure_does_not_stop_the_others(
    small_network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(networks, "from_arch", lambda name, **_: small_network)
    strict = parity.Threshold(relative=0.0, sqnr_db=parity.EXACT_DB + 1, top1_agreement=1.0)
    monkeypatch.setitem(parity.THRESHOLDS, ("pte", "fp32"), strict)
    command = ["--arch", "small_1.0", "--output", str(tmp_path), "--precisions", "fp32", "fp16"]
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: small_1.0 pte fp32: small_1.0_xnnpack_fp32.pte does not compute")
    assert "small_1.0_xnnpack_fp16.pte" in captured.out
    arithmetic = json.loads((tmp_path / "small_1.0_xnnpack_fp16.pte.json").read_text())["parity"]["arithmetic"]
    assert arithmetic in ("fp16", "fp32, stored as fp16")
    assert f"(computed in {arithmetic})" in captured.out
    assert not (tmp_path / "small_1.0_xnnpack_fp32.pte").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "sk_shufflenetv2_1", "--output", "OUT"], r"did you mean .*sk_shufflenetv2_1\.0"),
        (["--checkpoint", "nowhere", "--output", "OUT"], "--checkpoint nowhere does not exist"),
        (["--arch", "sk_shufflenetv2_0.5", "--output", "OUT/file"], "cannot write into .*file"),
        (["--arch", "sk_shufflenetv2_0.5", "--output", "OUT", "--data", "nothing"], "nothing"),
        (["--arch", "unknown", "--output", "OUT/new", "--images", "0"], r"--images 0: .*at least 64"),
        (["--arch", "unknown", "--output", "OUT/new", "--images", "-1"], r"--images -1: .*at least 64"),
        (["--arch", "unknown", "--output", "OUT/new", "--images", "8"], r"--images 8: .*at least 64"),
        (
            ["--arch", "unknown", "--output", "OUT/new", "--accept", "accuracy_loss>=0.1"],
            "--accept 'accuracy_loss>=0.1' is none of sqnr_db>=VALUE, top1_agreement>=VALUE, relative<=VALUE, acc",
        ),
        (["--checkpoint", "nowhere", "--init-from", "x", "--output", "OUT"], "--init-from goes with --arch"),
        (
            ["--arch", "unknown", "--output", "OUT/new", "--precisions", "fp32", "palette6"],
            "--precisions palette6 makes no file: with --backend xnnpack, pte has fp32, fp16, int8$",
        ),
        (
            ["--arch", "unknown", "--output", "OUT/new", "--formats", "mlpackage", "pte", "--precisions", "palette6"],
            "--formats pte makes no file: .*mlpackage has fp16, fp32, int8, palette6; pte has fp32, fp16, int8$",
        ),
    ],
)
def test_bad_input(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([argument.replace("OUT", str(tmp_path)) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert re.search(message, captured.err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "nowhere"], "--data nowhere does not exist"),
        (["--data", "DATA/few"], "DATA/few has 2 test images; a proof needs at least 64"),
        (["--data", "DATA/torn"], "cannot read .*0.png"),
        (["--data", "DATA/no_train", "--precisions", "int8"], "has no folder 'train'"),
        (["--data", "hfds/"], "--data hfds/ has no name behind hfds/"),
        (["--formats", "pte", "mlpackage", "--target", "iOS1"], "unknown Core ML target 'iOS1'"),
        (["--output", "/proc/out"], "cannot write into /proc/out"),
        (["--output", "DATA/gr\udcfcn"], r"gr\\udcfcn' cannot be written as utf-8"),
    ],
)
def test_what_a_proof_needs_is_missed_before_anything_is_lowered(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pte, "lower", lambda *_, **__: pytest.fail("lowered"))
    for name, count in (("few", 1), ("torn", 40), ("no_train", 40)):
        for split in ("train", "val"):
            for label in "ab":
                folder = tmp_path / name / split / label
                folder.mkdir(parents=True)
                for number in range(count):
                    Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    (tmp_path / "torn" / "val" / "a" / "0.png").write_bytes(b"\x89PNG")
    shutil.rmtree(tmp_path / "no_train" / "train")
    arguments = ["--arch", "shufflenetv2_0.5", "--output", str(tmp_path / "out"), *more]
    assert main([argument.replace("DATA", str(tmp_path)) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert re.search(message.replace("DATA", str(tmp_path)), captured.err)


def test_an_empty_checkpoint_is_no_arch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", "", "--output", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("formats", "precisions", "backend", "expected"),
    [
        (["pte"], None, "xnnpack", ["pte fp32"]),
        (["pte", "mlpackage"], None, "xnnpack", ["pte fp32", "mlpackage fp16"]),
        (
            ["pte", "mlpackage"],
            ["int8", "palette6"],
            "xnnpack",
            ["pte int8", "mlpackage int8", "mlpackage palette6"],
        ),
        (["pte", "mlpackage"], ["fp16", "int8"], "vulkan", ["pte fp16", "mlpackage fp16", "mlpackage int8"]),
        (["pte", "pte"], ["fp32", "fp32"], "xnnpack", ["pte fp32"]),
    ],
)
def test_each_precision_goes_to_the_formats_that_have_it(
    formats: list[str], precisions: list[str] | None, backend: str, expected: list[str]
) -> None:
    assert [" ".join(pair) for pair in artifacts(formats, precisions, backend)] == expected


def test_checkpoint_of_another_arch(tmp_path: Path) -> None:
    """The weights say what they belong to before anything is lowered."""
    import edge_sk
    from edge_sk.training.run import RunConfig, save_config, save_weights

    config = RunConfig(
        arch="shufflenetv2_0.5", num_classes=10, classes=None, in_chans=3, input_size=(3, 40, 40), mean=(0.5,) * 3,
        std=(0.5,) * 3, interpolation="bilinear", crop_pct=1.0, recipe="digits", data="digits", edge_sk_version="0",
    )  # fmt: skip
    save_config(tmp_path, config)
    save_weights(tmp_path, edge_sk.create_model("sk_shufflenetv2_0.5", num_classes=10).state_dict())
    with pytest.raises(InputError, match=r"shufflenetv2_0.5"):
        networks.from_run(tmp_path)


@pytest.mark.parametrize("step", ["_partitioner", "run_outputs"])
def test_interrupt_leaves_no_partial_file(
    step: str,
    small_network: Network,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(networks, "from_arch", lambda name, **_: small_network)
    monkeypatch.setattr(pte, step, interrupted)
    assert main(["--arch", "small_1.0", "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flags", "said"), [([], False), (["--verbose"], True)])
def test_what_is_said_in_passing_is_shown_on_demand(
    flags: list[str], said: bool, small_network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def remarked(*_: object) -> Any:
        os.write(2, b"a remark\n")
        raise InputError("no such delegate")

    monkeypatch.setattr(networks, "from_arch", lambda name, **_: small_network)
    monkeypatch.setattr(pte, "_partitioner", remarked)
    assert main(["--arch", "small_1.0", "--output", str(tmp_path), *flags]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1] == "error: small_1.0 pte fp32: no such delegate"
    assert ("a remark" in lines) == said
    assert said or len(lines) == 1


def test_what_was_said_before_a_failure_is_shown(
    small_network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> Any:
        os.write(2, b"the delegate says why\n")
        raise AssertionError("bad node")

    monkeypatch.setattr(networks, "from_arch", lambda name, **_: small_network)
    monkeypatch.setattr(pte, "_partitioner", failing)
    assert main(["--arch", "small_1.0", "--output", str(tmp_path)]) == 2
    *said, last = capfd.readouterr().err.splitlines()
    assert "the delegate says why" in said
    assert "cannot be lowered to xnnpack fp32: ExecuTorch says bad node" in last


def test_flags_are_few_and_known() -> None:
    flags = {option for action in parser()._actions for option in action.option_strings}
    assert flags == {
        "-h", "--help", "--checkpoint", "--arch", "--init-from", "--output", "--name", "--formats", "--precisions",
        "--backend", "--data", "--images", "--accept", "--softmax", "--no-softmax", "--target", "--allow-fallback",
        "--bundle", "--merge", "--unfinished", "--verbose",
    }  # fmt: skip
