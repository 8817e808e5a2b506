"""Measure what the library and each extra install: ``python recipes/install_sizes.py --cpu-wheel FILE``; needs uv.

Each is installed into an environment of its own; the sizes of its files are added up by package.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sk.errors import script
from edge_sk.files import write_text
from edge_sk.manifest import manifest
from recipes.markdown_tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "recipes" / "results" / "install_sizes.json"
PAGE = ROOT / "docs" / "install.md"
MARKS = "<!-- sizes -->\n", "\n<!-- end of sizes -->"
EXTRAS = ("", "train", "search", "tensorboard", "hfds", "executorch", "coreml", "deploy", "docs", "test", "all")
CUDA = ("nvidia-", "cuda-", "triton")


def measure(extra: str, folder: Path) -> dict[str, int]:
    """The bytes of each package's files, where edge_sk is installed with an extra."""
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, folder], check=True)
    wanted = [f"{ROOT}[{extra}]" if extra else str(ROOT), "--constraints", ROOT / "constraints.txt"]
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", folder, *wanted], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    return {
        package.name.lower(): sum(
            file.stat().st_size for part in package.files or () if (file := site / part).is_file()
        )
        for package in importlib.metadata.distributions(path=[str(site)])
    }


def markdown(record: dict[str, Any]) -> str:
    """The table of the page: in megabytes, what each extra adds to the library."""
    library, rows = record["library"], []
    for extra, added in {"": library, **record["extras"]}.items():
        largest = sorted(added, key=lambda name: -added[name])[:4]
        cuda = sum(size for name, size in added.items() if name.startswith(CUDA))
        rows.append(
            [
                f"`edge-sk[{extra}]` adds" if extra else "`edge-sk`, the library",
                *(f"{size / 1e6:,.0f}" for size in (sum(added.values()), cuda)),
                ", ".join(f"{name} {added[name] / 1e6:,.0f}" for name in largest if not name.startswith(CUDA)),
            ]
        )
    table = markdown_table(["", "MB", "of it CUDA", "largest packages"], rows, "lrrl")
    version, cpu = record["cpu_build"]["wheel"].split("-")[1], record["cpu_build"]["bytes"]
    torch = library["torch"] + sum(size for name, size in library.items() if name.startswith(CUDA))
    return (
        f"{table}\n\nPyTorch {version} unpacked takes {cpu / 1e6:,.0f} MB, the default build of "
        f"{record['versions']['torch']} with CUDA {torch / 1e6:,.0f} MB: without it, the library is about "
        f"{(sum(library.values()) - torch + cpu) / 1e6:,.0f} MB."
    )


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Install, add up, and print the table; with ``--write`` renew the record and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":", 1)[0])
    parser.add_argument("--cpu-wheel", required=True, type=Path, metavar="FILE", help="PyTorch's build without CUDA")
    parser.add_argument("--write", action="store_true", help="renew docs/install.md and its record")
    args = parser.parse_args(argv)
    with zipfile.ZipFile(args.cpu_wheel) as wheel:
        cpu = {"wheel": args.cpu_wheel.name, "bytes": sum(part.file_size for part in wheel.infolist())}
    sizes = {}
    for extra in EXTRAS:
        with tempfile.TemporaryDirectory() as folder:
            sizes[extra] = dict(sorted(measure(extra, Path(folder) / "venv").items()))
        print(f"{extra or 'library'}: {sum(sizes[extra].values()) / 1e6:,.0f} MB", file=sys.stderr, flush=True)
    command = manifest(["recipes/install_sizes.py", "--cpu-wheel", args.cpu_wheel.name, "--write"])
    library = sizes.pop("")
    extras = {extra: {k: v for k, v in packages.items() if k not in library} for extra, packages in sizes.items()}
    record = {"cpu_build": cpu, "library": library, "extras": extras} | command
    if args.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
        write_text(PAGE, before + MARKS[0] + markdown(record) + MARKS[1] + rest.partition(MARKS[1])[2])
        write_text(RECORD, json.dumps(record, indent=1) + "\n")
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
