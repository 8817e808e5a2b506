"""What others rely on: light import, the public names, file names that shadow nothing, what the wheel holds."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import edge_sk
from edge_sk.manifest import manifest
from edge_sk_scripts import COMMANDS, main

ROOT = Path(__file__).parent.parent
HEAVY = ("timm", "torchvision", "executorch", "coremltools", "fvcore", "sklearn", "matplotlib", "plotly", "pydantic")


def test_import_is_light() -> None:
    code = f"import sys, edge_sk; edge_sk.list_models(); print([m for m in {HEAVY} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_the_command_names_its_subcommands_without_torch() -> None:
    code = (
        "import sys\nfrom edge_sk_scripts import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )
    for argument, status in (("--help", 0), ("--version", 0), ("nothing", 2)):
        done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (status, "False")
        assert "Traceback" not in done.stderr
        if status:
            assert "no command 'nothing'; there are train, evaluate" in done.stderr
        if argument == "--help":
            for name, (_, does) in COMMANDS.items():
                assert re.search(rf"^  {name} +{re.escape(does)}$", done.stdout, re.MULTILINE)


def test_a_subcommand_is_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--arch", "nothing", "--dry-run"]) == 2
    assert "error: unknown model 'nothing'" in capsys.readouterr().err
    for name, (module, _) in COMMANDS.items():
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: edge-sk {name} ")
        if not module.startswith("edge_sk."):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_public_names() -> None:
    names = [
        "InputError",
        "Kernel",
        "SelectiveKernel",
        "UnitSpec",
        "create_model",
        "graft",
        "grafting",
        "list_models",
        "merge",
        "profile",
        "register_with_timm",
        "reparameterize",
    ]
    assert edge_sk.__all__ == names
    assert {*names, "__version__"} <= set(dir(edge_sk))
    for name in names:
        assert getattr(edge_sk, name) is not None
    assert edge_sk.__version__ == manifest()["versions"]["edge_sk"] == importlib.metadata.version("edge-sk")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        edge_sk.nothing  # noqa: B018


def test_no_script_shadows_a_package() -> None:
    taken = set(sys.stdlib_module_names) | {*HEAVY, "torch", "torchao", "numpy", "rich", "yaml", "safetensors"}
    # A script's own folder comes first in the search for modules and packages.
    folders = [ROOT / "recipes", ROOT / "deploy", ROOT / "deploy" / "mac"]
    beside = [path for folder in folders for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"]
    assert ROOT / "recipes" / "paper" in beside
    assert [path for path in beside if path.stem in taken] == []


def test_scripts_find_what_they_share_from_any_folder(tmp_path: Path) -> None:
    for script in ("recipes/paper_tables.py", "recipes/evidence.py", "deploy/sweep.py"):
        command = [sys.executable, ROOT / script, "--help"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_library_never_imports_the_scripts() -> None:
    for source in (ROOT / "edge_sk").rglob("*.py"):
        for line in source.read_text().splitlines():
            assert not line.startswith(("from recipes", "import recipes", "from deploy", "import deploy")), source


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, which is built from the files that git knows, as from a clean clone."""
    clone, dist = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for name in tracked("."):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    subprocess.run([sys.executable, "-m", "build", "--outdir", dist, clone], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()], check=True)
    (wheel,) = dist.glob("*.whl")
    return wheel


def tracked(folder: str) -> list[str]:
    listing = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return listing.stdout.split()


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_its_command(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    scripts = {name for name in held if name.startswith(("edge_sk_scripts/recipes/", "edge_sk_scripts/deploy/"))}
    assert held - scripts == {*tracked("edge_sk"), *tracked("edge_sk_scripts")}
    assert {name.removeprefix("edge_sk_scripts/") for name in scripts} <= {*tracked("recipes"), *tracked("deploy")}
    assert {f"edge_sk_scripts/recipes/{file.name}" for file in (ROOT / "recipes").glob("*.yaml")} <= scripts


# Every module, then what reads files of the package: the zoo's costs and a report's page.
USE = """
import importlib, pkgutil, sys
from pathlib import Path
import edge_sk
for module in pkgutil.walk_packages(edge_sk.__path__, "edge_sk."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from edge_sk.export.report import read_report, render_html
assert "sk_shufflenetv2_0.5" in edge_sk.list_models("sk_*")
print(edge_sk.__file__, edge_sk.__version__, len(render_html(read_report(Path(sys.argv[1])))))
"""

# Every subcommand, in one process: what the scripts import is there.
HELP = """
import contextlib
from edge_sk_scripts import COMMANDS, main
for name in COMMANDS:
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
"""


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_of_the_repository_is(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, symlinks=True, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-I", "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    # The dependencies, behind the wheel; a path file in there, such as this repository's editable install, is not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def output(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    file, version, page = output(python, "-I", "-c", USE, ROOT / "docs" / "report" / "report.json").split()
    assert Path(file).is_relative_to(site)
    assert version == edge_sk.__version__
    assert int(page) > 10_000
    edge = home / "bin" / "edge-sk"
    assert output(edge, "--version") == f"{version}\n"
    dry = output(edge, "train", "--arch", "sk_shufflenetv2_0.5", "--dry-run")
    assert "parameters  " in dry
    tiny = ["--set", "schedule.epochs=1", "schedule.warmup_epochs=0", "data.input_size=32"]
    trained = output(edge, "train", "--arch", "timm:test_efficientnet", "--device", "cpu", "--output", "run", *tiny)
    assert "edge-sk evaluate --checkpoint run" in trained
    assert "test_efficientnet on digits" in output(edge, "evaluate", "--checkpoint", "run")
    helped = output(python, "-I", "-c", HELP)
    assert all(f"usage: edge-sk {name} " in helped for name in COMMANDS)
