from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import edge_sk
from recipes.paper.tables import TABLES
from recipes.train import main as train

README = Path(__file__).parents[2] / "recipes" / "README.md"
COLUMNS = {"2": ("224", "320"), "4": ("224",), "5": ("C10", "C100")}


def section(key: str) -> list[list[str]]:
    """Cells of the rows of a table of the README."""
    _, _, text = README.read_text(encoding="utf-8").partition(f"### Table {key}: ")
    lines = text.split("\n### ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return rows[1:]


def commands() -> list[str]:
    found = [command for key in COLUMNS for row in section(key) for command in re.findall(r"`([^`]+)`", row[1])]
    return list(dict.fromkeys(found))


def train_arguments(command: str, imagenet: Path) -> list[str]:
    words = shlex.split(command.replace("$IMAGENET", str(imagenet)))
    script = words.index("recipes/train.py")
    assert words[:script] in (["python"], ["torchrun", "--nproc-per-node", "8"], ["torchrun", "--nproc-per-node", "4"])
    return words[script + 1 :]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ImageNet's shape; a dry run lists the files and opens none."""
    root = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", 2), ("val", 1)):
        for label in range(1000):
            folder = root / split / f"n{label:08}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.JPEG").touch()
    return root


@pytest.mark.parametrize("key", COLUMNS)
def test_every_row_of_the_paper_has_its_line_with_the_papers_errors(key: str) -> None:
    (table,) = [table for table in TABLES if table.key == key]
    assert tuple(table.errors) == COLUMNS[key]
    expected = []
    for row in table.rows:
        cells = [error or "-" for error in row.errors]
        if key == "5":
            names = (f"{row.name}, {data}" for data in ("CIFAR-10", "CIFAR-100"))
            expected += list(zip(names, cells, strict=True))
        else:
            expected.append((row.name, " / ".join(cells)))
    assert [(row[0], row[4]) for row in section(key)] == expected


def test_rows_train_the_networks_that_the_tables_count() -> None:
    for key in COLUMNS:
        (table,) = [table for table in TABLES if table.key == key]
        lines = section(key)
        per_row = 2 if key == "5" else 1
        for number, row in enumerate(table.rows):
            for line in lines[number * per_row : (number + 1) * per_row]:
                if row.arch is None:
                    assert line[5] == "not built"
                    continue
                # torchvision's Inception returns two outputs in training; timm's is the same without the second.
                arch = row.arch.replace("torchvision:inception_v3@init_weights=false", "timm:inception_v3")
                assert f"--arch {arch} " in line[1]
                assert float(line[3]) > 0


def test_there_are_commands() -> None:
    assert len(commands()) == 15 + 6 + 10


@pytest.mark.parametrize("command", commands())
def test_the_command_resolves(command: str, imagenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = train_arguments(command, imagenet)
    assert train([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    recipe, epochs, batch = {"8": ("large", 100, 256), "4": ("light", 240, 1024)}.get(
        command.split()[2] if command.startswith("torchrun") else "", ("cifar", 300, 128)
    )
    assert f"({epochs} epochs of " in printed
    assert f" steps of {batch} images" in printed
    arch = arguments[arguments.index("--arch") + 1]
    data = arguments[arguments.index("--data") + 1]
    # Of the data set too: CIFAR-10's and CIFAR-100's run would be one otherwise.
    assert f"run folder  runs/{arch.replace(':', '-')}-{recipe}-{Path(data).name}-seed0" in printed
    classes = {"torch/cifar10": "10", "torch/cifar100": "100"}.get(data, "1,000")
    assert f" images, {classes} classes" in printed
    if recipe != "cifar":
        assert edge_sk.models.default_recipe(arch) == recipe
        assert ("input       3 x 299 x 299" in printed) == ("inception" in arch)
