"""What the README tells a reader to do works."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

import edge_sk
from edge_sk.export.coreml.mil import MilProgram
from edge_sk.export.executorch.pte import run_pte
from edge_sk.export.network import from_run
from edge_sk.export.parity import THRESHOLDS
from edge_sk.export.record import record_of
from recipes.paper.tables import TABLES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
NETWORKS = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
RUN = "runs/sk_shufflenetv2_1.0-digits-seed0"


CODE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
ON_FILES = [code for code in CODE if '"exports/' in code]


@pytest.mark.parametrize("code", [code for code in CODE if code not in ON_FILES])
def test_python_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(code, {})
    assert capsys.readouterr().out


def documents() -> list[str]:
    """Every Markdown file that git tracks."""
    listing = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listing.stdout.split()


def dead_links(document: Path) -> list[str]:
    """Relative links to files that do not exist; code is not searched."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(<?([^)>\s]+)", text) + re.findall(r"^\[[^]]+\]:\s*(\S+)", text, re.MULTILINE)
    targets += re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    paths = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    return [path for path in paths if path and not (document.parent / unquote(path)).exists()]


def test_links_lead_somewhere(tmp_path: Path) -> None:
    assert "README.md" in documents()
    assert {name: dead for name in documents() if (dead := dead_links(ROOT / name))} == {}
    page = tmp_path / "page.md"
    page.write_text(
        "[a](page.md#part) [b](gone.md) `[c](code.md)` [d](https://x.org/y)\n[e]: lost/\n", encoding="utf-8"
    )
    assert dead_links(page) == ["gone.md", "lost/"]


def test_the_table_of_networks_is_what_the_records_say() -> None:
    rows = re.findall(r"^\| (\S+) \|(.*)\|$", TEXT.split("## Networks")[1].split("\nParameters")[0], re.MULTILINE)[1:]
    assert len(rows) == 4
    results = ROOT / "deploy" / "results"
    latency, merging = (json.loads((results / f"{name}.json").read_text("utf-8")) for name in ("latency", "merging"))
    ratios = {(one["file"], one["against"], one["threads"]): one["ratio"] for one in latency["claims"]}
    errors = {row.arch: row.errors[0] for table in TABLES for row in table.rows[::-1] if row.arch and row.errors}
    for name, cells in rows:
        cost, plain = edge_sk.profile(edge_sk.create_model(name)), name.removeprefix("sk_")
        seeds = merging["studies"][f"sk_{plain}"]["seeds"].values()
        digits = statistics.fmean(row["plain" if name == plain else "sk"] for row in seeds)
        both = [ratios.get((f"{name}_xnnpack_fp32", f"{plain}_xnnpack_fp32", threads)) for threads in (1, 2)]
        against = "1" if name == plain else " and ".join(f"{ratio:.2f}" for ratio in both)
        paper = errors.get(name if name == plain else f"{name}@act=relu")
        shown = [cell.strip() for cell in cells.split("|")]
        assert shown[:4] == [f"{cost.params / 1e6:.2f}", f"{cost.macs / 1e6:.1f}", against, f"{digits:.2f}"], name
        assert shown[4].partition(",")[0] == (f"{100 - float(paper):.2f}" if paper else "none")
        assert len(seeds) == 3


# Heading of a column, its place in a profile, decimals.
COSTS = (
    ("params M", "params", 3),
    ("MACs M", "macs", 2),
    ("in gates M", "gate_macs", 3),
    ("elementwise M", "elementwise", 2),
    ("activations M", "activations", 2),
)


def test_cost_table_is_what_the_profile_says() -> None:
    header, _, *rows = re.findall(r"^\|(.*)\|$", NETWORKS.split("## Parameters")[1].split("\nFor 224")[0], re.MULTILINE)
    assert [cell.strip() for cell in header.split("|")] == ["network", *(column for column, _, _ in COSTS)]
    (command,) = re.findall(r"^python -m edge_sk.profiling (.*)$", NETWORKS, re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    assert [name for name, *_ in cells] == command.split()
    for name, *written in cells:
        cost = edge_sk.profile(edge_sk.create_model(name))
        assert written == [f"{getattr(cost, value) / 1e6:.{decimals}f}" for _, value, decimals in COSTS], name


def test_the_demands_are_those_that_are_made() -> None:
    words = " ".join((ROOT / "deploy" / "README.md").read_text(encoding="utf-8").split())
    exact, rounded = THRESHOLDS["pte", "fp32"], THRESHOLDS["pte", "int8"]
    assert exact.top1_agreement == 1.0
    assert f"`fp32` within {exact.relative:.0e} of the largest output and in every class".replace("e-0", "e-") in words
    assert rounded.accuracy_loss is not None
    assert f"`int8` with at most {100 * rounded.accuracy_loss:.0f} points of accuracy less" in words
    assert f"{rounded.sqnr_db:.0f} dB of SQNR" in words


def test_number_of_digits_is_the_data_sets() -> None:
    from sklearn.datasets import load_digits

    assert f"the {len(load_digits().images):,} real handwritten digits" in TEXT


def test_the_dry_run_shows_recipe_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    from recipes.train import main

    (command,) = re.findall(r"^python recipes/train.py (.* --dry-run)$", TEXT, re.MULTILINE)
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    for expected in ("weight_decay", "27,813,450", "4,180,928,512", "steps"):
        assert expected in printed


def commands() -> list[str]:
    """The commands of the README and of docs/networks.md in order, without the installation and the tests."""
    text = TEXT + NETWORKS
    found = [command.split("&&")[-1].strip() for command in re.findall(r"^(pip .*|python .*)$", text, re.MULTILINE)]
    found += re.findall(
        r"`(python (?:recipes|deploy)/[^`]+ [^`]+|python recipes/paper_tables.py)`", text.replace("\n", " ")
    )
    # Half an hour on a quiet machine: test_claims.py runs it with small files.
    measured_apart = "python deploy/claims.py --work DIR"
    assert measured_apart in found
    return [one for one in found if one.startswith("python ") and one != measured_apart]


def test_ci_runs_what_the_readme_promises() -> None:
    """Its test command, its other commands, the same answers from both files, and a wheel that holds the library."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("\\\n", " ")
    (tests,) = re.findall(r"^pip .+ && (.*pytest.*)$", TEXT, re.MULTILINE)
    assert tests in script.splitlines()
    (paths,) = re.findall(r"^OMP_NUM_THREADS=1 pytest .+ -m slow (.+)$", script, re.MULTILINE)
    promised = "tests/test_readme.py tests/test_readme_report.py tests/recipes tests/test_public_api.py"
    promised += " tests/deploy/test_claims.py"
    assert {*promised.split()} <= set(paths.split())


def run_as_written(chosen: list[str], folder: Path) -> dict[str, str]:
    """Run commands in a copy of the repository, which ``folder`` becomes; returns their environment."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listing.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for command in chosen:
        places = {"RUN": RUN, "DIR": "exports"}
        words = [places.get(word, word) for word in shlex.split(command)]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return environment


@pytest.fixture(scope="module")
def as_written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which the commands were run: train, export, evaluate, measure; not the report's."""
    folder = tmp_path_factory.mktemp("repository")
    assert len(commands()) == 8
    chosen = [command for command in commands() if "deploy/report.py" not in command]
    ran = {shlex.split(command)[1] for command in chosen}
    assert {"recipes/train.py", "recipes/evaluate.py", "deploy/export.py"} <= ran
    environment = run_as_written(chosen, folder)
    (code,) = ON_FILES
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdigit()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_both_files_that_the_commands_make_answer_alike_on_all_test_digits(as_written: Path) -> None:
    """The promise to phones: one trained network, two files, the same answer to every test image."""
    pte, package = (
        as_written / "exports" / f"sk_shufflenetv2_1.0{rest}"
        for rest in ("_xnnpack_fp32.pte", "_coreml_fp16.mlpackage")
    )
    images = torch.cat([batch for batch, _ in from_run(as_written / RUN).images(split="test", limit=None)])
    assert len(images) == 360
    from_pte = run_pte(pte.read_bytes(), images).argmax(1)
    program = MilProgram.load(package)
    assert program.labels is not None
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    answers = [program.predict(picture).label or "" for picture in pixels]
    assert from_pte.tolist() == [program.labels.index(answer) for answer in answers]
    of_pte, of_package = (record_of(file).accuracy for file in (pte, package))
    assert of_pte is not None
    assert of_package is not None
    assert of_pte.top1 == of_package.top1 > 0.95
