"""Starting weights bring how their images were prepared: mean, std, crop and interpolation."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import edge_sk
from edge_sk import InputError

ARCH = "shufflenetv2_0.5"
GIVEN = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.5, 0.125), "crop_pct": 0.95, "interpolation": "bicubic"}
ZOO = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_pct": 0.875, "interpolation": "bilinear"}


def images(model: Any) -> dict[str, Any]:
    """How a network says that it is fed; its two dictionaries must agree, for timm reads the other one."""
    cfg = model.default_cfg
    assert getattr(model, "pretrained_cfg", cfg) == cfg
    return {key: cfg[key] for key in GIVEN}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights of 5 classes in a folder with a ``config.json``, as a run has it."""
    save_file(edge_sk.create_model(ARCH, num_classes=5).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"arch": ARCH, "num_classes": 5, **GIVEN}))
    return tmp_path


@pytest.mark.parametrize("name", [ARCH, f"sk_{ARCH}", "torchvision:shufflenet_v2_x0_5"])
def test_from_a_run_folder(name: str, folder: Path) -> None:
    assert images(edge_sk.create_model(name, num_classes=5)) == ZOO
    for source in (folder, folder / "model.safetensors"):
        model = edge_sk.create_model(name, num_classes=5, init_from=source)
        assert images(model) == GIVEN
        assert model.default_cfg["input_size"] == (3, 224, 224)
        assert model.default_cfg["architecture"] == name


def test_from_a_folder_that_timm_saved(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("mobilenetv1_100"), tmp_path, safe_serialization="both")  # type: ignore[arg-type]
    kept = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    model = edge_sk.create_model("mobilenetv1_1.0", init_from=tmp_path)
    assert images(model) == images(edge_sk.create_model("timm:mobilenetv1_100"))
    assert images(model)["mean"] == tuple(kept["mean"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("source", "name", "mean", "std"),
    [
        ("timm:mobilenetv1_100", "mobilenetv1_1.0", 0.5, 0.5),
        ("timm:mobilenetv1_100.ra4_e3600_r224_in1k", "sk_mobilenetv1_1.0@kernels=3+5", 0.5, 0.5),
        ("timm:mobilenetv3_large_100.miil_in21k_ft_in1k", "timm:mobilenetv3_large_100.ra_in1k@kernels=3+5", 0.0, 1.0),
    ],
)
def test_from_timm(source: str, name: str, mean: float, std: float, monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model(source.removeprefix("timm:")).state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_args, **_kwargs: state)
    model = edge_sk.create_model(name, num_classes=7, init_from=source)
    assert (images(model)["mean"], images(model)["std"]) == ((mean,) * 3, (std,) * 3)
    theirs = timm.get_pretrained_cfg(source.removeprefix("timm:"))
    assert theirs is not None
    assert images(model) == {key: getattr(theirs, key) for key in GIVEN}
    assert model.default_cfg["num_classes"] == 7


@pytest.mark.parametrize(
    ("weights", "crop"), [("IMAGENET1K_V1", 224 / 256), ("IMAGENET1K_V2", 224 / 232), ("", 224 / 232)]
)
def test_from_torchvision(weights: str, crop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.mobilenet_v2().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_args, **_kwargs: state)
    name = "torchvision:mobilenet_v2"
    model = edge_sk.create_model(name, num_classes=7, init_from=f"{name}.{weights}".rstrip("."))
    assert images(model) == {**ZOO, "crop_pct": crop}
    model = edge_sk.create_model(name, weights=weights or "DEFAULT")
    assert images(model) == {**ZOO, "crop_pct": crop}


def test_what_weights_do_not_say_stays_and_is_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "config.json").write_text("{}")
    torch.save(edge_sk.create_model(ARCH, num_classes=5).state_dict(), folder / "weights.pt")
    for source in (folder, folder / "weights.pt"):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="edge_sk"):
            assert images(edge_sk.create_model(ARCH, num_classes=5, init_from=source)) == ZOO
        assert f"{source} does not say how its images were normalised" in caplog.text
    (folder / "config.json").unlink()
    assert images(edge_sk.create_model(ARCH, num_classes=5, init_from=folder)) == ZOO


@pytest.mark.parametrize("text", ["[1]", "{", '{"mean": 0.5}', '{"mean": ["red", 0.5, 0.5]}', '{"crop_pct": [1]}'])
def test_a_damaged_config_beside_the_weights(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is damaged .*; copy it again"):
        edge_sk.create_model(ARCH, num_classes=5, init_from=folder)


def test_unknown_weights_of_torchvision_are_refused() -> None:
    with pytest.raises(InputError, match=r"has no weights 'NOPE'; it has IMAGENET1K_V1"):
        edge_sk.create_model("torchvision:mobilenet_v2", weights="NOPE")
    with pytest.raises(InputError, match=r"num_classes.*expected value 1000"):
        edge_sk.create_model("torchvision:mobilenet_v2", weights="DEFAULT", num_classes=3)
