"""Networks in folders: a run's is timm's too, and one that timm saved is ours."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

import edge_sk
from edge_sk import InputError
from edge_sk.training.run import RunConfig, load_config, load_run, save_config, save_weights

SIZE = (3, 48, 40)


def run_folder(folder: Path, arch: str) -> nn.Module:
    """A run's network, and its folder with three classes."""
    model = edge_sk.create_model(arch, num_classes=3)
    config = RunConfig(
        arch=arch, num_classes=3, classes=["ant", "bee", "cat"], in_chans=3, input_size=SIZE, mean=(0.5, 0.4, 0.3),
        std=(0.25,) * 3, interpolation="bicubic", crop_pct=0.9, recipe="light", data="digits", edge_sk_version="0.2.0",
    )  # fmt: skip
    save_config(folder, config)
    save_weights(folder, model.state_dict())
    assert load_config(folder) == config
    return model.eval()


def same(one: nn.Module, other: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(one.eval()(images), other.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    "arch",
    [
        *("sk_shufflenetv2_0.5@kernels=3+5,select=false", "sk_mobilenetv2_0.5", "timm:mobilenetv2_050"),
        "timm:mobilenetv2_050@kernels=auto",
    ],
)
def test_a_run_folder_is_a_network_of_ours_and_of_timm(arch: str, tmp_path: Path) -> None:
    edge_sk.register_with_timm()
    model = run_folder(tmp_path, arch)
    name = f"local-dir:{tmp_path}"
    ours, theirs = edge_sk.create_model(name), timm.create_model(name, pretrained=True)
    for loaded in (ours, theirs):
        same(loaded, model)
        cfg = loaded.default_cfg
        assert (tuple(cfg["input_size"]), cfg["crop_pct"], cfg["interpolation"]) == (SIZE, 0.9, "bicubic")
        assert (tuple(cfg["mean"]), list(cfg["label_names"])) == ((0.5, 0.4, 0.3), ["ant", "bee", "cat"])
    # For other classes, the classifier alone starts anew.
    for other in (edge_sk.create_model(name, num_classes=7), timm.create_model(name, pretrained=True, num_classes=7)):
        assert other(torch.randn(2, 3, 64, 64)).shape == (2, 7)
        first, before = next(other.parameters()), next(model.parameters())
        assert torch.equal(first, before)


def test_a_network_of_torchvision_is_timms_too(tmp_path: Path) -> None:
    edge_sk.register_with_timm()
    model = run_folder(tmp_path, "torchvision:shufflenet_v2_x0_5@kernels=3+5")
    same(timm.create_model(f"local-dir:{tmp_path}", pretrained=True), model)
    with pytest.raises(InputError, match="edge_sk has no trained weights to download"):
        timm.create_model("edge_sk", pretrained=True, arch="shufflenetv2_0.5")
    assert timm.create_model("edge_sk", arch="shufflenetv2_0.5", num_classes=5)(torch.rand(1, 3, 64, 64)).shape == (
        1,
        5,
    )


def test_a_folder_that_timm_saved(tmp_path: Path) -> None:
    edge_sk.register_with_timm()
    for name in ("mobilenetv2_050", "sk_shufflenetv2_050"):
        folder = tmp_path / name
        model = timm.create_model(name, num_classes=4, in_chans=1).eval()
        save_for_hf(model, folder, safe_serialization=True)
        loaded = edge_sk.create_model(f"local-dir:{folder}").eval()
        images = torch.randn(2, 1, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = run_folder(tmp_path, "shufflenetv2_0.5")
    asked = []

    def snapshot(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        assert "config.json" in allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    same(edge_sk.create_model("hf-hub:someone/net"), model)
    same(edge_sk.create_model("shufflenetv2_0.5", num_classes=3, init_from="hf-hub:someone/net@v1"), model)
    assert asked == [("someone/net", None), ("someone/net", "v1")]

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"^hf-hub:someone/net cannot be downloaded: no connection; see hugg"):
        edge_sk.create_model("hf-hub:someone/net")


def test_version_0_1_wrote_nothing_for_timm(tmp_path: Path) -> None:
    model = run_folder(tmp_path, "shufflenetv2_0.5")
    content = json.loads((tmp_path / "config.json").read_text())
    for key in ("architecture", "label_names", "model_args", "pretrained_cfg"):
        del content[key]
    (tmp_path / "config.json").write_text(json.dumps(content))
    same(load_run(tmp_path).model, model)
    same(edge_sk.create_model(f"local-dir:{tmp_path}"), model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no config\.json; give a run folder"),
        ("{}", r"config\.json names no network of edge_sk or timm \(architecture=None\)"),
        ('{"architecture": "mobilenetv2_05"}', "names no network .*; did you mean mobilenetv2_050"),
        ('{"architecture": 5}', r"config\.json: architecture: Input should be a valid string"),
    ],
)
def test_a_folder_that_names_no_network(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        edge_sk.create_model(f"local-dir:{tmp_path}")


def test_a_folder_has_its_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="brings its weights; give the name of an architecture with init_from"):
        edge_sk.create_model(f"local-dir:{tmp_path}", init_from=tmp_path)
