"""What a run starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import edge_sk
from edge_sk import InputError
from edge_sk.export.network import from_arch, from_run
from edge_sk.training.data import hold_out
from edge_sk.training.distributed import join_world
from edge_sk.training.plan import build_model, start
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.run import PREVIOUS, RunConfig, load_config, load_run, save_config, save_weights
from edge_sk.training.sources import open_images
from edge_sk.training.streaming import Tars
from recipes.planning import make_plan, run_name

ARCH = "sk_shufflenetv2_0.5"
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def test_a_run_stopped_before_its_first_checkpoint_starts_from_the_given_weights_again(tmp_path: Path) -> None:
    given = edge_sk.create_model(ARCH, num_classes=10).state_dict()
    weights, folder = tmp_path / "given.safetensors", tmp_path / "run"
    save_file({name: tensor.contiguous() for name, tensor in given.items()}, weights)
    folder.mkdir()
    plan = make_plan(ARCH, output=str(folder), overrides=[f"checkpoint.init_from={weights}"], resume=True)
    model, _ = build_model(plan, 10)
    assert torch.equal(model.state_dict()["fc.weight"], given["fc.weight"])
    # From a checkpoint, the weights are its own and the file need not be there any more.
    (folder / PREVIOUS).touch()
    weights.unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        build_model(plan, 10)


def test_weights_bring_their_normalisation_into_the_run_and_the_exported_file(tmp_path: Path) -> None:
    """Through training, a resumption without the weights, the run folder, and the export's contract."""
    given = edge_sk.create_model(ARCH, num_classes=10).state_dict()
    source, folder = tmp_path / "given", tmp_path / "run"
    source.mkdir()
    save_file(given, source / "model.safetensors")
    fields = {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.75, "interpolation": "bicubic"}
    (source / "config.json").write_text(json.dumps(fields))
    settings = [f"checkpoint.init_from={source}", "data.interpolation=bilinear", "data.batch_size=512"]
    settings += ["data.crop_pct=null", "schedule.epochs=1", "schedule.warmup_epochs=0"]
    for resume in (False, True):
        plan = make_plan(ARCH, output=str(folder), overrides=[] if resume else settings, resume=resume)
        with join_world("cpu") as world:
            trainer = start(plan, world)
            # Black and white become -2 and 2.
            extremes = trainer.normalizer(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1))
            assert extremes.flatten(1).tolist() == [[-2.0] * 3, [2.0] * 3]
            if not resume:
                trainer.run()
                (source / "model.safetensors").unlink()
        config = load_config(folder)
        assert (config.mean, config.std) == ((0.5,) * 3, (0.25,) * 3)
        assert (config.crop_pct, config.interpolation) == (0.75, "bilinear")  # the recipe's wins
        model = load_run(folder).model
        assert model.default_cfg["mean"] == model.pretrained_cfg["mean"] == (0.5,) * 3  # type: ignore[index]
        contract = from_run(folder).contract
        assert (contract.mean, contract.std, contract.interpolation) == ([0.5] * 3, [0.25] * 3, "bilinear")
        contract = from_arch(ARCH, init_from=str(folder)).contract
        assert (contract.mean, contract.std, contract.crop_pct) == ([0.5] * 3, [0.25] * 3, 0.75)


def test_a_runs_name_tells_data_sets_apart() -> None:
    assert run_name("sknet29", "cifar", "torch/cifar10", 0) == "sknet29-cifar-cifar10-seed0"
    assert run_name("sknet29", "cifar", "torch/cifar100", 0) == "sknet29-cifar-cifar100-seed0"
    assert run_name("timm:dpn92", "large", "/data/imagenet/", 3) == "timm-dpn92-large-imagenet-seed3"
    assert run_name("sknet29", "digits", "digits", 0) == "sknet29-digits-seed0"
    assert run_name("sknet29", "mine/digits.yaml", "digits", 0) == "sknet29-digits-seed0"
    assert (
        run_name("sknet29", "scaled_digits", "scaled_digits@0.5", 0) == "sknet29-scaled_digits-scaled_digits@0.5-seed0"
    )


def test_weights_of_version_0_1_say_what_they_were(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run of 0.1 is read under today's name; its weights in another network are named."""
    save_weights(tmp_path, edge_sk.create_model(f"{ARCH}@act=relu", num_classes=10).state_dict())
    config = RunConfig(
        arch=ARCH, num_classes=10, classes=None, in_chans=3, input_size=(3, 40, 40), mean=(0.5,) * 3,
        std=(0.5,) * 3, interpolation="bilinear", crop_pct=1.0, recipe="digits", data="digits", edge_sk_version="0.1.0",
    )  # fmt: skip
    save_config(tmp_path, config)
    run = load_run(tmp_path)
    assert run.config.arch == "sk_shufflenetv2_0.5@act=relu"
    assert any(hasattr(module, "act") for name, module in run.model.named_modules() if name.endswith("branches.0"))
    caplog.clear()
    edge_sk.create_model(ARCH, num_classes=10, init_from=tmp_path)
    assert f"version 0.1 trained these weights as {ARCH}, today {ARCH}@act=relu" in caplog.text


@pytest.mark.parametrize("name", ["digits", "scaled_glyphs"])
def test_the_held_out_images_are_training_images_that_are_not_trained_on(name: str) -> None:
    whole = open_images(name, "train", DataRecipe())
    trained, held = hold_out(whole, 0.2)
    assert len(held) == round(0.2 * len(whole))
    assert sorted([*trained.chosen, *held.chosen]) == list(range(len(whole)))
    assert hold_out(whole, 0.2)[1].chosen == held.chosen
    for part in (trained, held):
        image, label = part.load(7, seed=3, epoch=2)
        expected, same = whole.load(part.chosen[7], seed=3, epoch=2)
        assert (image.tobytes(), label) == (expected.tobytes(), same)


def test_a_run_that_holds_out_never_opens_the_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_sk.training import data

    monkeypatch.setattr(
        data, "open_images", lambda name, split, *rest: {"train": open_images}[split](name, split, *rest)
    )
    settings = ["data.holdout=0.25", "schedule.epochs=1", "data.batch_size=512", "data.input_size=32"]
    plan = make_plan(ARCH, output=str(tmp_path / "run"), overrides=[*settings, "schedule.warmup_epochs=0"])
    with join_world("cpu") as world:
        trainer = start(plan, world)
        trainer.run()
    assert (trainer.identity["train images"], trainer.state.history[0]["val_images"]) == (1078, 359)


def test_images_that_cannot_be_held_out_are_refused() -> None:
    with pytest.raises(InputError, match=r"data\.holdout=0.0001 of 1437 training images leaves 0 to validate on"):
        hold_out(open_images("digits", "train", DataRecipe()), 0.0001)
    with pytest.raises(InputError, match=r"data\.holdout=0.1 needs images that are read by index; wds/x is tar files"):
        hold_out(Tars("wds/x", [], 10, ["png"], None), 0.1)
