"""What a run starts from."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

import edge_sk
from edge_sk.training import snapshot
from edge_sk.training.runs import build_model, make_plan, run_name

ARCH = "sk_shufflenetv2_0.5"
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def test_a_run_stopped_before_its_first_checkpoint_starts_from_the_given_weights_again(tmp_path: Path) -> None:
    given = edge_sk.create_model(ARCH, num_classes=10).state_dict()
    weights, folder = tmp_path / "given.safetensors", tmp_path / "run"
    save_file({name: tensor.contiguous() for name, tensor in given.items()}, weights)
    folder.mkdir()
    plan = make_plan(
        ARCH, output=str(folder), overrides=[f"checkpoint.init_from={weights}"], resume=True, recipes=RECIPES
    )
    model, _, _ = build_model(plan, 10)
    assert torch.equal(model.state_dict()["fc.weight"], given["fc.weight"])
    # From a checkpoint, the weights are its own and the file need not be there any more.
    (folder / snapshot.PREVIOUS).touch()
    weights.unlink()
    model, _, _ = build_model(plan, 10)
    assert not torch.equal(model.state_dict()["fc.weight"], given["fc.weight"])


def test_a_runs_name_tells_data_sets_apart() -> None:
    assert run_name("sknet29", "cifar", "torch/cifar10", 0) == "sknet29-cifar-cifar10-seed0"
    assert run_name("sknet29", "cifar", "torch/cifar100", 0) == "sknet29-cifar-cifar100-seed0"
    assert run_name("timm:dpn92", "large", "/data/imagenet/", 3) == "timm-dpn92-large-imagenet-seed3"
    assert run_name("sknet29", "digits", "digits", 0) == "sknet29-digits-seed0"
    assert run_name("sknet29", "mine/digits.yaml", "digits", 0) == "sknet29-digits-seed0"
    assert (
        run_name("sknet29", "scaled_digits", "scaled_digits@0.5", 0) == "sknet29-scaled_digits-scaled_digits@0.5-seed0"
    )
