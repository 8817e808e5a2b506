from __future__ import annotations

import json
from pathlib import Path

import pytest

import edge_sk
from edge_sk.attention import gated_units
from edge_sk.errors import InputError
from edge_sk.training.digits import scaled_digits
from recipes.attention import OBJECT_SCALES
from recipes.attention import parse as parse_attention
from recipes.compare import main as run_compare
from recipes.compare import parse as parse_compare
from recipes.experiments.plan import (
    ATTENTION,
    COMPARISONS,
    DATA,
    EXPERIMENTS,
    IMAGES,
    SCALES,
    Attention,
    Comparison,
    read_records,
)
from recipes.planning import load_recipe

SMALL, SMALL_FIRST, KERNELS = (
    COMPARISONS[f"compare_{name}"] for name in ("shufflenetv2_0.5", "shufflenetv2_0.5_before", "kernels")
)


@pytest.mark.parametrize("item", COMPARISONS.values(), ids=lambda item: item.key)
def test_the_commands_of_the_comparisons_resolve(
    item: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = parse_compare(item.command[1:])
    assert args.arch == list(item.archs)
    assert args.seeds == list(item.seeds)
    assert Path(args.record).name == f"{item.key}.json"
    assert run_compare([*item.command[1:], "--output", str(tmp_path), "--dry-run"]) == 0
    output = capsys.readouterr()
    assert "warning" not in output.err
    assert output.out.count("to train") == len(item.seeds) * len(item.archs)
    assert load_recipe(DATA, args.set).schedule.epochs == item.epochs


def test_the_attention_commands_name_runs_of_the_comparisons() -> None:
    for item in ATTENTION:
        args = parse_attention(item.command[1:])
        assert item.arch in item.comparison.archs
        assert {str(Path(folder).parents[1]) for folder in args.checkpoint} == {item.comparison.output}
        names = [f"{item.arch}-seed{seed}" for seed in item.comparison.seeds]
        assert [Path(folder).name for folder in args.checkpoint] == names
        units = gated_units(edge_sk.create_model(item.arch)).values()
        assert item.is_control == all(len({str(kernel) for kernel in unit.kernels}) == 1 for unit in units)


def test_the_record_expected_of_attention_is_the_one_that_the_command_makes_by_default() -> None:
    assert list(SCALES) == OBJECT_SCALES
    assert len(scaled_digits("test").labels) == IMAGES


def test_verdicts_on_sk_rest_on_five_seeds() -> None:
    on_sk = [item for item in COMPARISONS.values() if item.arch("SK")]
    assert len(on_sk) == 5
    assert all(len(item.seeds) >= 5 for item in on_sk)


def test_keys_are_unique() -> None:
    assert len({item.key for item in EXPERIMENTS}) == len(EXPERIMENTS)


def test_the_controls_differ_from_sk_in_what_they_control() -> None:
    def units(arch: str) -> list[edge_sk.SelectiveKernel]:
        return [m for m in edge_sk.create_model(arch).modules() if isinstance(m, edge_sk.SelectiveKernel)]

    one, summed, equal, sk = (units(arch) for arch in list(SMALL.archs)[2:])
    assert len(one) == len(summed) == len(equal) == len(sk) == 13
    assert {(str(unit.kernels[0]), len(unit.kernels), unit.gate) for unit in one} == {("3", 1, None)}
    assert [unit.kernels for unit in summed] == [unit.kernels for unit in sk]
    assert all(unit.gate is None for unit in summed)
    assert {tuple(map(str, unit.kernels)) for unit in equal} == {("3", "3")}
    assert all(unit.gate is not None for unit in (*equal, *sk))


def taken_and_refused(item: Comparison | Attention, record: dict, change: dict, message: str, folder: Path) -> None:
    """The record is taken as it is, and refused with the change."""
    path = folder / f"{item.key}.json"
    path.write_text(json.dumps(record))
    assert read_records(folder) == {item.key: record}
    path.write_text(json.dumps(record | change))
    with pytest.raises(InputError, match=message):
        read_records(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0, 1]}, r"has seeds \[0, 1\], not \[0, 1, 2\]; make it again: python recipes/compare.py"),
        ({"set": ["schedule.epochs=15"]}, r"has set \['schedule.epochs=15'\], not \[\]"),
        ({"data": "digits"}, "has data digits, not scaled_digits"),
        ({"input_differences": {"mean": ["a", "b"]}}, "has input_differences"),
        ({"networks": [{"arch": "shufflenetv2_0.5"}]}, r"has networks \['shufflenetv2_0.5'\], not"),
        ({"epochs": 15}, "has epochs 15, not 5"),
        ({"networks": [{}]}, r"is damaged \(KeyError: 'arch'\)"),
    ],
)
def test_a_record_of_something_else_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    networks = [{"arch": arch} for arch in KERNELS.archs]
    record = {"networks": networks, "seeds": [0, 1, 2], "data": "scaled_digits", "recipe": "scaled_digits"}
    record |= {"set": [], "input_differences": {}, "epochs": 5, "commit": "abc"}
    taken_and_refused(KERNELS, record, change, message, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"arch": "sknet50"},
            "has arch sknet50, not sk_shufflenetv2_0.5@act=relu; make it again: python recipes/attention.py",
        ),
        ({"epochs": 15}, "has epochs 15, not 5"),
        ({"images": 10}, "has images 10, not 1440"),
        ({"scales": [0.25, 0.5]}, r"has scales \[0.25, 0.5\], not \[0.25, 0.5, 1.0\]"),
    ],
)
def test_a_record_of_other_attention_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    record = {
        "arch": "sk_shufflenetv2_0.5@act=relu",
        "seeds": [0, 1, 2, 3, 4],
        "data": DATA,
        "recipe": DATA,
        "epochs": 5,
    }
    record |= {"scales": [0.25, 0.5, 1.0], "images": 1440, "units": [], "by_map": [], "commit": "abc"}
    taken_and_refused(ATTENTION[0], record, change, message, tmp_path)


def test_a_record_without_its_parts_is_damaged(tmp_path: Path) -> None:
    (tmp_path / f"{ATTENTION[0].key}.json").write_text('{"units": [], "commit": "abc"}')
    with pytest.raises(InputError, match=r"is damaged \(it has no by_map\); make it again"):
        read_records(tmp_path)
    (tmp_path / f"{SMALL_FIRST.key}.json").write_text("{}")
    with pytest.raises(InputError, match="it cannot be made again: restore it with git"):
        read_records(tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / f"{SMALL.key}.json").write_text('{"networks": [')
    with pytest.raises(InputError, match=rf"{SMALL.key}.json is damaged .*; make it again: python"):
        read_records(tmp_path)
