"""Quantization-aware training: what is trained is what the phone computes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import edge_sk
from edge_sk.errors import InputError
from edge_sk.export import to_mlpackage, to_pte
from edge_sk.export.executorch.pte import lower_module, run_pte
from edge_sk.export.network import from_run
from edge_sk.quantization import FakeQuantized
from edge_sk.training import run
from edge_sk.training.distributed import World
from edge_sk.training.loop import Trainer
from edge_sk.training.plan import Plan, start
from edge_sk.training.recipe import make_recipe

pytest.importorskip("executorch")

ARCH = "timm:test_byobnet"
SIZE = (3, 16, 16)
MEAN, STD = (0.5, 0.45, 0.4), (0.3, 0.25, 0.2)


def small() -> nn.Module:
    torch.manual_seed(0)
    unit = edge_sk.SelectiveKernel(8, 8, groups=8, min_width=4)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(), unit, nn.Hardswish(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Bars of four colours, each at its place."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        labels = torch.randint(4, (32,), generator=generator)
        images = torch.rand(32, *SIZE, generator=generator) * 0.3
        for image, label in zip(images, labels.tolist(), strict=True):
            image[label if label < 3 else slice(None), :, 4 * label : 4 * label + 4] += 0.6
        found.append((images, labels))
    return found


def learn(model: nn.Module, steps: int) -> list[float]:
    optimizer, losses = torch.optim.AdamW(model.parameters(), 0.02), list[float]()
    for images, labels in batches(steps):
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def learnt() -> tuple[FakeQuantized, list[float]]:
    model = small().eval()
    quantized = FakeQuantized(model, SIZE, mean=MEAN, std=STD)
    return quantized, learn(quantized, 60)


def ranges(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if name.endswith(("min_val", "max_val"))}


def test_it_starts_as_the_network_rounded_and_learns(learnt: tuple[FakeQuantized, list[float]]) -> None:
    model = small().eval()
    before = copy.deepcopy(model.state_dict())
    quantized = FakeQuantized(model, SIZE, mean=MEAN, std=STD)
    images, _ = batches(1)[0]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    expected = model((images - mean) / std)
    got = quantized(images)
    assert 0 < (got - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    losses = learnt[1]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_ranges_follow_in_training_and_stay_in_evaluation(learnt: tuple[FakeQuantized, list[float]]) -> None:
    quantized = copy.deepcopy(learnt[0])
    images = 3 * batches(1)[0][0]
    before = ranges(quantized)
    quantized.eval()
    first = quantized(images[:1])
    assert torch.equal(first, quantized(images)[:1])  # of a batch, whatever its size
    assert all(torch.equal(value, before[name]) for name, value in ranges(quantized).items())
    quantized.train()(images)
    changed = [name for name, value in ranges(quantized).items() if not torch.equal(value, before[name])]
    assert any("max_val" in name for name in changed)


def test_the_file_computes_what_was_trained(learnt: tuple[FakeQuantized, list[float]]) -> None:
    quantized = copy.deepcopy(learnt[0]).eval()
    images = torch.cat([images for images, _ in batches(4)])
    with torch.no_grad():
        expected = quantized(images)
        converted = quantized.converted()
        assert torch.equal(converted(images), expected)
        program, delegation = lower_module(converted, images[:1], None, name="small", precision="int8")
        got = run_pte(bytes(program.buffer), images)
    assert delegation.whole
    assert "conv2d" not in str(delegation.in_float)
    # Apart from roundings that fall the other way: a few steps of the last layer.
    observers = [part for part in quantized.graph.modules() if hasattr(part, "calculate_qparams")]
    step = max(float(part.calculate_qparams()[0].max()) for part in observers[-2:])
    assert (got - expected).abs().max() <= 4 * step
    assert (got.argmax(1) == expected.argmax(1)).float().mean() > 0.97


class Stop(Exception):
    pass


def trainer(folder: Path, *settings: str, resume: bool = False) -> Trainer:
    quick = ["data.batch_size=479", "data.input_size=32", "schedule.epochs=2", "checkpoint.every_minutes=0"]
    recipe = make_recipe({}, [*quick, "optim.lr=0.02", *settings])
    return start(Plan(ARCH, recipe, "digits", "digits", 0, folder, resume), World(torch.device("cpu")))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, ``float``, and one that continues it, ``qat``."""
    folder = tmp_path_factory.mktemp("runs")
    trainer(folder / "float", "schedule.epochs=4", "optim.lr=0.1").run()
    trainer(folder / "qat", *continuing(folder), "ema.enabled=true", "ema.decay=0.5").run()
    return folder


def continuing(folder: Path) -> list[str]:
    return ["quantization.qat=true", f"checkpoint.init_from={folder / 'float'}"]


def test_a_run_is_resumed_bit_for_bit(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*continuing(runs), "ema.enabled=true", "ema.decay=0.5"]
    loss = Trainer._loss

    def fail(self: Trainer, batch: Any) -> Tensor:
        if self.state.step == 4:
            raise Stop
        return loss(self, batch)

    monkeypatch.setattr(Trainer, "_loss", fail)
    with pytest.raises(Stop):
        trainer(tmp_path, *settings).run()
    monkeypatch.undo()
    resumed = trainer(tmp_path, *settings, resume=True)
    assert resumed.state.step == 4
    resumed.run()
    whole, again = load_file(runs / "qat" / run.WEIGHTS), load_file(tmp_path / run.WEIGHTS)
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert all(value.isfinite().all() for value in whole.values())


def test_a_run_is_loaded_evaluated_and_exported_without_calibration(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = from_run(runs / "qat")
    assert (network.quantized, network.mean, network.std) == (True, (0.0,) * 3, (1.0,) * 3)
    images = network.images

    def test_only(**options: Any) -> Any:
        assert options["split"] == "test"
        return images(**options)

    monkeypatch.setattr(type(network), "images", lambda self, **options: test_only(**options))
    record = to_pte(network, tmp_path, precision="int8", softmax=True, allow_fallback=True)
    history = run.read_csv(runs / "qat")
    assert record.accuracy is not None
    assert 100 * record.accuracy.eager_top1 == pytest.approx(history[-1]["val_top1"], abs=1e-3)
    assert record.parity is not None
    assert record.parity.top1_agreement is not None
    assert record.parity.top1_agreement >= 0.95
    assert "no calibration" in record.notes[0]


def test_refusals(runs: Path, tmp_path: Path) -> None:
    def refusal(*settings: str) -> str:
        with pytest.raises(InputError) as raised:
            trainer(tmp_path / "new", *settings)
        return str(raised.value)

    assert "goes on with a trained network: set checkpoint.init_from" in refusal("quantization.qat=true")
    for setting in ("runtime.compile=true", "runtime.precision=bf16"):
        assert "needs runtime.precision=fp32 and runtime.compile=false" in refusal(*continuing(runs), setting)
    with pytest.raises(InputError, match=r"with quantization.qat True, not False"):
        trainer(runs / "qat", f"checkpoint.init_from={runs / 'float'}", resume=True)
    for arguments in ({"name": ARCH, "init_from": str(runs / "qat")}, {"name": f"local-dir:{runs / 'qat'}"}):
        with pytest.raises(
            InputError, match=r"was trained with quantization.qat=true: its folded weights are those of no other"
        ):
            edge_sk.create_model(**arguments)
    network = from_run(runs / "qat")
    with pytest.raises(InputError, match=r"makes no xnnpack fp32 file: give --formats pte --precisions int8"):
        to_pte(network, tmp_path)
    with pytest.raises(InputError, match=r"makes no mlpackage fp16 file"):
        to_mlpackage(network, tmp_path)
    config = json.loads((runs / "qat" / run.CONFIG).read_text())
    assert config["qat"] is True
    assert "architecture" not in config  # timm would load the weights into another network

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(InputError, match=r"Branching cannot be trained with quantization.qat=true: torch.export says"):
        FakeQuantized(Branching(), SIZE, mean=MEAN, std=STD)
