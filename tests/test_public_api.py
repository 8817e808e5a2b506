"""What others rely on: light import, the public names, file names that shadow nothing, what the wheel holds."""

from __future__ import annotations

import importlib.metadata
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

ROOT = Path(__file__).parent.parent
HEAVY = ("timm", "torchvision", "executorch", "coremltools", "fvcore", "sklearn", "matplotlib", "plotly", "pydantic")


def test_import_is_light() -> None:
    code = f"import sys, edge_sk; edge_sk.list_models(); print([m for m in {HEAVY} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


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
    """Built from the files that git knows, as from a clean clone."""
    clone, dist = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for name in tracked("."):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", dist, clone], check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    return wheel


def tracked(folder: str) -> list[str]:
    listing = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return listing.stdout.split()


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    assert held == set(tracked("edge_sk"))
    assert {
        "edge_sk/py.typed",
        *(f"edge_sk/export/report/page.{kind}" for kind in ("css", "html.jinja", "js", "md.jinja")),
    } <= held
    assert len({name.split("/")[0] for name in names} - {"edge_sk"}) == 1


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


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_of_the_repository_is(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, symlinks=True, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-I", "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    # The dependencies, behind the wheel; a path file in there, such as this repository's editable install, is not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [python, "-I", "-c", USE, ROOT / "docs" / "report" / "report.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, version, page = done.stdout.split()
    assert Path(file).is_relative_to(site)
    assert version == edge_sk.__version__
    assert int(page) > 10_000
