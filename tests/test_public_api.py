"""What others rely on: light import, the public names, file names that shadow nothing, what the wheel holds."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
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
        "create_model",
        "graft",
        "grafting",
        "list_models",
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
    scripts = [
        *(ROOT / "recipes").glob("*.py"),
        *(ROOT / "deploy").glob("*.py"),
        *(ROOT / "deploy" / "mac").glob("*.py"),
    ]
    assert scripts
    assert [script for script in scripts if script.stem in taken] == []


def test_the_library_never_imports_the_scripts() -> None:
    for source in (ROOT / "edge_sk").rglob("*.py"):
        for line in source.read_text().splitlines():
            assert not line.startswith(("from recipes", "import recipes", "from deploy", "import deploy")), source


@pytest.mark.slow
def test_the_wheel_holds_only_the_library(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edge_sk"}
