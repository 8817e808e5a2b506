"""Damaged run folders and senseless recipes: a value that works, or one short line."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from edge_sk.errors import InputError
from edge_sk.training import run
from edge_sk.training.distributed import join_world
from edge_sk.training.optimization import make_optimizer, make_scheduler
from edge_sk.training.plan import start
from edge_sk.training.recipe import Recipe, make_recipe, recipe_to_yaml
from edge_sk.training.recipe import settings as fields
from edge_sk.training.run import RunConfig, load_checkpoint, load_config, read_csv, saved_manifest, saved_recipe
from edge_sk.training.transforms import evaluation_transform, training_transform
from recipes.planning import make_plan
from tests.mutations import extremes, mutated, outcome, values

RECIPE = Recipe().model_dump(mode="json")
CONFIG: dict[str, Any] = {
    "input_size": [3, 40, 40],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "arch": "sk_shufflenetv2_0.5",
    "options": {},
    "num_classes": 2,
    "classes": ["a", "b"],
    "in_chans": 3,
    "recipe": "digits",
    "data": "digits",
    "edge_sk_version": "0.2.0",
}
MANIFEST = {"command": "python", "commit": "c0ffee", "seed": 0, "host": {"cores": 2}, "resumed": [{"commit": "d0"}]}

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def use(recipe: Recipe) -> None:
    """Transform an image, and take a few steps, as a run would."""
    image = Image.new("RGB", (12, 9), (255, 0, 128))
    size = min(recipe.data.input_size or 16, 64)
    assert training_transform(recipe.augment, (3, size, size), "bilinear")(image).shape == (3, size, size)
    model = nn.Conv2d(1, 1, 1)
    optimizer = make_optimizer(model, recipe.optim)
    schedule = make_scheduler(optimizer, recipe.schedule, steps_per_epoch=3)
    for step in range(3):
        schedule.step_update(step)
        optimizer.step()


@quick
@given(mutated(RECIPE))
def test_a_recipe_works_or_is_refused(damaged: Any) -> None:
    if isinstance(damaged, dict):
        recipe, _ = outcome(make_recipe, damaged)
        if recipe is not None:
            outcome(use, recipe)


@quick
@given(
    st.sampled_from(sorted(fields(Recipe()))),
    extremes.map(str) | st.text() | st.floats().map(str) | st.integers().map(str),
)
def test_an_override_works_or_is_refused(field: str, text: str) -> None:
    recipe, _ = outcome(make_recipe, {}, [f"{field}={text}"])
    if recipe is not None:
        outcome(use, recipe)


@quick
@given(mutated(CONFIG))
def test_a_config_feeds_images_or_is_refused(tmp_path: Path, damaged: Any) -> None:
    (tmp_path / run.CONFIG).write_text(json.dumps(damaged))
    config, problem = outcome(load_config, tmp_path)
    if config is None:
        assert run.CONFIG in problem
    elif max(config.input_size) <= 1024:
        transform = evaluation_transform(config.input_size, config.crop_pct, config.interpolation)
        assert transform(Image.new("RGB", (12, 9))).shape == config.input_size


@quick
@given(mutated(MANIFEST))
def test_a_manifest_has_its_seed_or_is_refused(tmp_path: Path, damaged: Any) -> None:
    (tmp_path / run.MANIFEST).write_text(json.dumps(damaged))
    manifest, problem = outcome(saved_manifest, tmp_path)
    assert run.MANIFEST in problem if manifest is None else isinstance(manifest["seed"], int)


GIVEN = make_recipe({}, ["optim.lr=0.5", "log.tensorboard=true", "data.batch_size=7"])
WHOLE = recipe_to_yaml(GIVEN).encode()


@quick
@given(st.integers(0, len(WHOLE)), st.binary(max_size=3))
def test_an_overwritten_recipe_of_a_run_is_read_or_refused(tmp_path: Path, at: int, junk: bytes) -> None:
    (tmp_path / run.RECIPE).write_bytes(WHOLE[:at] + junk + WHOLE[at + len(junk) :])
    outcome(saved_recipe, tmp_path)


def test_a_cut_recipe_of_a_run_is_never_read_as_defaults(tmp_path: Path) -> None:
    starts = [at for at in range(len(WHOLE)) if WHOLE[at - 1 : at] == b"\n"]
    for at in {*starts, *range(starts[-4], len(WHOLE))}:
        (tmp_path / run.RECIPE).write_bytes(WHOLE[:at])
        recipe, problem = outcome(saved_recipe, tmp_path)
        assert run.RECIPE in problem if recipe is None else recipe == GIVEN


@quick
@given(st.lists(st.lists(values.map(str), max_size=12), max_size=4))
def test_a_history_is_finite_or_refused(tmp_path: Path, rows: list[list[str]]) -> None:
    text = "\n".join(",".join(row) for row in [["epoch", "test_top1", "seconds"], *rows])
    (tmp_path / run.CSV).write_bytes(text.encode("utf-8", "surrogatepass"))
    history, _ = outcome(read_csv, tmp_path)
    assert all(abs(value) < float("inf") for row in history or [] for value in row.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"std": [0.0, 1, 1]}, "std.0: Input should be greater than 0"),
        ({"std": [-0.2, 1, 1]}, "std.0"),
        ({"mean": [float("nan")] * 3}, "NaN is not a JSON number"),
        ({"mean": [0.5]}, "mean has 1 values for 3 channels"),
        ({"input_size": [3, 1, 1]}, "input_size.1"),
        ({"input_size": [3, -8, 40]}, "input_size.1"),
        ({"input_size": [3, 10**9, 40]}, "input_size.1"),
        ({"interpolation": "magic"}, "interpolation"),
        ({"crop_pct": 0.001}, "crop_pct"),
        ({"num_classes": 3}, "classes has 2 names for num_classes=3"),
        ({"options": {"num_classes": 4}}, "options must not hold num_classes"),
    ],
)
def test_a_config_that_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / run.CONFIG).write_text(json.dumps(CONFIG))
    assert load_config(tmp_path) == RunConfig(**CONFIG)
    (tmp_path / run.CONFIG).write_text(json.dumps(CONFIG | change))
    _, problem = outcome(load_config, tmp_path)
    assert said in problem


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.crop_pct=0.001", "greater than or equal to 0.1"),
        ("data.batch_size=2026-11-26", "data.batch_size"),
        ("optim.lr=[1, 2", "is not YAML"),
        ("optim.lr=" + "9" * 5000, "is not YAML"),
        ("augment.zoom=[1e-300, 1e300]", "zoom must be"),
        ("augment.mixup=1e-300", "mixup is 0 or at least 0.01"),
    ],
)
def test_an_override_that_is_refused(override: str, said: str) -> None:
    _, problem = outcome(make_recipe, {}, [override])
    assert said in problem


def test_an_optimizer_that_cannot_step_is_refused() -> None:
    recipe = make_recipe({}, ["optim.name=adahessian"])
    with pytest.raises(InputError, match=r"optim.name='adahessian' cannot be used \(.*; try sgd"):
        make_optimizer(nn.Linear(2, 2), recipe.optim)


def test_mixup_needs_pairs(tmp_path: Path) -> None:
    plan = make_plan(
        "shufflenetv2_0.5", output=str(tmp_path / "run"), overrides=["augment.mixup=1", "data.batch_size=7"]
    )
    with join_world("cpu") as world, pytest.raises(InputError, match="a part of the batch has 7: choose"):
        start(plan, world)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_a_start_that_failed_is_taken_again(tmp_path: Path) -> None:
    for name in (run.MANIFEST, run.CONFIG, run.RECIPE):
        (tmp_path / name).touch()
    run.check_new(tmp_path)
    (tmp_path / run.WEIGHTS).touch()
    with pytest.raises(InputError, match="exists already"):
        run.check_new(tmp_path)
    with pytest.raises(InputError, match="is not UTF-8"):
        run.check_new(tmp_path / "\udcff")


def test_a_checkpoint_with_a_pickle_inside_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "run",)

    buffer = io.BytesIO()
    torch.save({"payload": Payload()}, buffer, pickle_module=pickle)
    (tmp_path / run.CHECKPOINT).write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="holds more than tensors and plain values") as error:
        load_checkpoint(tmp_path)
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_fields_of_a_recipe_are_bounded() -> None:
    """No number may be without an upper limit: a slip of the keyboard must not take all memory or time."""
    for section, part in Recipe.model_fields.items():
        for field in part.annotation.model_fields:  # type: ignore[union-attr]
            value = getattr(getattr(Recipe(), section), field)
            if isinstance(value, int | float) and not isinstance(value, bool):
                _, problem = outcome(make_recipe, {section: {field: type(value)(10**30)}})
                assert f"{section}.{field}" in problem or "schedule" in problem, field
