"""The commands of the experiments can be run, and their networks are the controls that they are called."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import edge_sk
from edge_sk.attention import gated_units
from edge_sk.training.glyphs import SCALES as DRAWN
from recipes.attention import parse as parse_attention
from recipes.compare import main as run_compare
from recipes.compare import parse as parse_compare
from recipes.experiments.plan import ATTENTION, COMPARISONS, SEEDS, Comparison, commands, read_ratios


@pytest.mark.parametrize("item", COMPARISONS.values(), ids=lambda item: item.key)
def test_the_commands_of_the_comparisons_resolve(
    item: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = parse_compare(item.command[1:])
    assert args.arch == list(item.archs)
    assert args.seeds == list(SEEDS)
    assert Path(args.record).name == f"{item.key}.json"
    assert run_compare([*item.command[1:], "--output", str(tmp_path), "--dry-run"]) == 0
    output = capsys.readouterr()
    assert "warning" not in output.err
    assert output.out.count("to train") == (len(SEEDS) + len(args.rates)) * len(item.archs)


def test_other_commands_read_what_those_before_them_wrote() -> None:
    trained: set[str] = set()
    exported = set()
    for script, *arguments in commands():
        if script == "recipes/compare.py":
            args = parse_compare(arguments)
            trained |= {
                f"{args.output}/runs/{arch.replace(':', '-')}-seed{seed}" for arch in args.arch for seed in args.seeds
            }
        elif script == "recipes/attention.py":
            args = parse_attention(arguments)
            assert {*args.checkpoint} <= trained
            assert len(args.checkpoint) == len(SEEDS)
            assert all(DRAWN[0] <= scale <= DRAWN[1] for scale in args.scales)
        elif script == "deploy/export.py":
            assert arguments[1] in trained
            exported.add(arguments[3])
        else:
            assert {arguments[0]} == exported
    for item in COMPARISONS.values():
        given = [setting.removeprefix("checkpoint.init_from=") for setting in item.set if "init_from" in setting]
        assert {*given} <= trained


def test_attention_is_recorded_where_there_is_some() -> None:
    for arch, (_, label) in ATTENTION.items():
        units = gated_units(edge_sk.create_model(arch)).values()
        assert (label == "equal kernels") == all(len({str(kernel) for kernel in unit.kernels}) == 1 for unit in units)


def test_the_controls_are_what_they_are_called() -> None:
    def units(label: str) -> list[edge_sk.SelectiveKernel]:
        arch = next(arch for item in COMPARISONS.values() for arch, name in item.archs.items() if name == label)
        return [
            module for module in edge_sk.create_model(arch).modules() if isinstance(module, edge_sk.SelectiveKernel)
        ]

    sk, summed, equal, one = map(units, ("SK", "sum of the branches", "equal kernels", "one 5x5, as a merged unit"))
    assert len(sk) == len(summed) == len(equal) == len(one) == 13
    assert [unit.kernels for unit in summed] == [unit.kernels for unit in sk]
    assert all(unit.gate is None for unit in (*summed, *one))
    assert all(unit.gate is not None for unit in (*sk, *equal))
    assert {tuple(map(str, unit.kernels)) for unit in equal} == {("3", "3")}
    assert {tuple(map(str, unit.kernels)) for unit in one} == {("5",)}
    # Where SK is merged, 3x3 and dilated 3x3 become one 5x5.
    assert {max(kernel.extent for kernel in unit.kernels) for unit in sk} == {5}


def test_the_wider_plain_networks_are_as_large_as_sk() -> None:
    for item in COMPARISONS.values():
        sizes = {
            label: sum(parameter.numel() for parameter in edge_sk.create_model(arch, num_classes=49).parameters())
            for arch, label in item.archs.items()
            if label == "SK" or label.startswith("plain, as large")
        }
        if len(sizes) == 2:
            assert max(sizes.values()) < 1.01 * min(sizes.values()), item.key


def test_ratios_are_medians_of_rounds(tmp_path: Path) -> None:
    assert read_ratios(tmp_path) == {}
    key = "glyphs_shufflenetv2_0.5"
    plain, sk, wide = COMPARISONS[key].archs
    # The machine is twice as slow in the last round, for all files alike.
    times = {plain: [1.0, 1.0, 2.0], sk: [1.1, 1.2, 2.4], wide: [1.1, 1.1, 2.2]}
    files = {arch: re.sub("[@=]", "-", arch) for arch in times}
    rows = [{"file": f"{files[arch]}_xnnpack_fp32.pte", "round_p50_ms": times[arch]} for arch in times]
    (tmp_path / "glyphs_latency.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_ratios(tmp_path)[key] == pytest.approx({plain: 1.0, sk: 1.2, wide: 1.1})
