"""The C++ program gives the Python runtime's answers, on this machine and on 64-bit Arm."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from edge_sk.export.executorch import pte
from edge_sk.export.network import Network
from edge_sk.training.transforms import evaluation_transform

RUNNER = Path(__file__).parents[2] / "deploy" / "runner"


def _need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")


def _build(arch: str) -> Path:
    pip = shutil.which("pip") or shutil.which("pip3")
    done = subprocess.run(
        [str(RUNNER / "build.sh"), arch],
        env=os.environ | {"PYTHON": sys.executable} | ({"PIP": pip} if pip else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "warning:" not in done.stderr
    return RUNNER / "build" / arch / "edge_sk_runner"


@pytest.fixture(scope="module")
def here() -> list[str]:
    """Command of the runner for this machine."""
    _need("cmake", "c++")
    return [str(_build(platform.machine()))]


@pytest.fixture(scope="module")
def arm() -> list[str]:
    """Command of the runner for 64-bit Arm, emulated."""
    _need("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64")
    return ["qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu", str(_build("aarch64"))]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def raw(image: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "image.raw"
    path.write_bytes(image.numpy().tobytes())
    return path


def _run(command: list[str], *arguments: Any) -> dict[str, Any]:
    done = subprocess.run([*command, *map(str, arguments), "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_same_answer_here(here: list[str], small_pte: Path, small_network: Network, image: Tensor, raw: Path) -> None:
    expected = pte.run_pte(small_pte.read_bytes(), image[None])[0]
    told = _run(here, small_pte, raw, "--top", 10, "--runs", 3)
    torch.testing.assert_close(torch.tensor(told["outputs"]), expected, rtol=0, atol=1e-7)
    order = expected.argsort(descending=True).tolist()
    assert [one["index"] for one in told["top"]] == order
    assert small_network.labels is not None
    assert [one["label"] for one in told["top"]] == [small_network.labels[i] for i in order]
    shares = [one["probability"] for one in told["top"]]
    torch.testing.assert_close(torch.tensor(shares), expected.softmax(0)[order], rtol=1e-5, atol=1e-7)
    assert (told["arch"], told["precision"], told["runs"]) == ("small_1.0", "fp32", 3)
    assert 0 < told["min_ms"] <= told["p50_ms"] <= told["p90_ms"]


def test_same_answer_on_arm(here: list[str], arm: list[str], small_pte: Path, raw: Path) -> None:
    native, emulated = _run(here, small_pte, raw), _run(arm, small_pte, raw)
    assert emulated["machine"] == "aarch64"
    largest = max(map(abs, native["outputs"]))
    for ours, theirs in zip(native["outputs"], emulated["outputs"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5 * largest)
    assert [one["index"] for one in native["top"]] == [one["index"] for one in emulated["top"]]


@pytest.fixture(scope="module")
def evaluated(small_network: Network, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Network]]:
    """The network exported with another ``crop_pct``, interpolation and input."""
    folder = tmp_path_factory.mktemp("evaluated")

    @functools.cache
    def export(
        crop_pct: float, interpolation: str, input_size: tuple[int, int, int] = (3, 32, 32)
    ) -> tuple[Path, Network]:
        network = dataclasses.replace(
            small_network, crop_pct=crop_pct, interpolation=interpolation, input_size=input_size
        )
        path = folder / f"{crop_pct}_{interpolation}_{input_size}.pte"
        path.write_bytes(pte.lower(network).program.buffer)
        return path, network

    return export


@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"),
    [
        ((32, 32), 1.0, "bilinear"),
        ((50, 40), 1.0, "bilinear"),
        ((20, 30), 1.0, "bilinear"),
        ((33, 32), 1.0, "bilinear"),  # half a pixel beside the crop
        ((49, 49), 0.5, "bilinear"),  # 49 * (64 / 49) < 64
        ((98, 107), 0.5, "bilinear"),
        ((98, 107), 0.5, "bicubic"),
        ((24, 20), 0.875, "bicubic"),
    ],
)
def test_preprocessing_is_evaluation_s(
    size: tuple[int, int],
    crop_pct: float,
    interpolation: str,
    here: list[str],
    evaluated: Callable[..., tuple[Path, Network]],
    tmp_path: Path,
) -> None:
    preprocessing_is_evaluation_s(*evaluated(crop_pct, interpolation), size, here, tmp_path)


def preprocessing_is_evaluation_s(
    model: Path, network: Network, size: tuple[int, int], here: list[str], tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    picture.save(tmp_path / "picture.ppm")
    transform = evaluation_transform(network.input_size, network.crop_pct, network.interpolation)
    pixels = transform(picture).float() / 255
    expected = pte.run_pte(model.read_bytes(), pixels[None])[0]
    told = torch.tensor(_run(here, model, tmp_path / "picture.ppm")["outputs"])
    # Rounding to 8 bits may differ by one step in a few pixels.
    torch.testing.assert_close(told, expected, rtol=0, atol=2e-3 * expected.abs().max().item())


@pytest.mark.parametrize("input_size", [(3, 32, 48), (3, 48, 32)])
@pytest.mark.parametrize("size", [(107, 98), (98, 107), (30, 61)])
def test_preprocessing_of_inputs_that_are_not_square(
    input_size: tuple[int, int, int],
    size: tuple[int, int],
    here: list[str],
    evaluated: Callable[..., tuple[Path, Network]],
    tmp_path: Path,
) -> None:
    preprocessing_is_evaluation_s(*evaluated(0.875, "bilinear", input_size), size, here, tmp_path)


def test_another_interpolation_is_refused(
    here: list[str], evaluated: Callable[..., tuple[Path, Network]], raw: Path, tmp_path: Path
) -> None:
    model, _ = evaluated(1.0, "lanczos")
    Image.new("RGB", (40, 40)).save(tmp_path / "picture.ppm")
    command = [*here, str(model), str(tmp_path / "picture.ppm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "evaluated with lanczos resizing, this program has bilinear and bicubic" in done.stderr
    assert _run(here, model, raw)["outputs"]


class _Heads(nn.Module):
    """A map, and one value per channel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(network.children())[:4])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.features(x)
        return {"out": features, "aux": features.mean((2, 3))}


def test_every_output_is_named_and_written(
    here: list[str], small_network: Network, image: Tensor, raw: Path, tmp_path: Path
) -> None:
    network = dataclasses.replace(small_network, model=_Heads(small_network.model).eval(), labels=None)
    program = pte.lower(network).program.buffer
    (tmp_path / "heads.pte").write_bytes(program)
    arguments = [str(tmp_path / "heads.pte"), str(raw), "--write", str(tmp_path / "new" / "folder")]
    told = _run(here, *arguments)
    assert (told["shapes"], told["top"]) == ({"out": [1, 16, 16, 16], "aux": [1, 16]}, [])
    assert "outputs" not in told
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"out.raw", "aux.raw"}
    for name, expected in zip(told["shapes"], pte.run_outputs(bytes(program), image[None]), strict=True):
        written = np.fromfile(tmp_path / "new" / "folder" / f"{name}.raw", dtype=np.float32)
        torch.testing.assert_close(torch.from_numpy(written), expected.flatten(), rtol=0, atol=1e-6)
    done = subprocess.run([*here, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["out 1x16x16x16", "aux 1x16"]


def test_text(here: list[str], small_pte: Path, raw: Path) -> None:
    done = subprocess.run([*here, small_pte, raw, "--top", "2"], capture_output=True, text=True, check=True)
    head, *classes = done.stdout.splitlines()
    assert done.stderr == ""
    assert head.startswith(f"small_1.0 fp32 on {platform.machine()}, loaded in ")
    assert len(classes) == 2
    assert "%" in classes[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a model and an input are needed"),
        (["MODEL", "RAW", "more"], "not also more"),
        (["MODEL", "RAW", "--top", "none"], "--top none is not a whole number of at least 1"),
        (["MODEL", "RAW", "--runs"], "--runs needs a number"),
        (["MODEL", "RAW", "--fast"], "unknown option --fast"),
        (["MODEL", "RAW", "--write"], "--write needs a folder"),
        (["MODEL", "RAW", "--write", "RAW"], "image.raw a folder with room?"),
        (["missing.pte", "RAW"], "cannot load missing.pte"),
        (["TRUNCATED", "RAW"], "is it a whole .pte"),
        (["MODEL", "missing.ppm"], "cannot read missing.ppm"),
        (["MODEL", "SHORT"], "has 8 bytes; float32 of 1x3x32x32 has 12288"),
        (["MODEL", "JPEG"], "does not start with P5 or P6"),
        (["MODEL", "CUT"], "it is truncated"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, here: list[str], small_pte: Path, raw: Path, tmp_path: Path
) -> None:
    for name, content in {
        "short.raw": b"12345678",
        "photo.ppm": b"\xff\xd8\xff\xe0JFIF",
        "cut.ppm": b"P6\n# a comment\n32 32\n255\n123",
        "truncated.pte": small_pte.read_bytes()[:999],
    }.items():
        (tmp_path / name).write_bytes(content)
    names = {
        "MODEL": small_pte, "RAW": raw, "SHORT": tmp_path / "short.raw", "JPEG": tmp_path / "photo.ppm",
        "CUT": tmp_path / "cut.ppm", "TRUNCATED": tmp_path / "truncated.pte",
    }  # fmt: skip
    command = [*here, *(str(names.get(argument, argument)) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert done.stdout == ""


def test_unknown_architecture() -> None:
    done = subprocess.run([str(RUNNER / "build.sh"), "riscv64"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'riscv64' is neither x86_64 nor aarch64" in done.stderr
