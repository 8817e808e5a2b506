"""Put a trained network into a folder, or onto the Hugging Face Hub, as edge_sk and timm load it.

python recipes/publish.py runs/sk_shufflenetv2_1.0 --to published --files exports
python recipes/publish.py runs/sk_shufflenetv2_1.0 --to hf-hub:USER/NAME --files exports

The folder holds the weights (safetensors), config.json in timm's form beside ours, a model card, and of --files those
that hold these weights, with their records, which name the command and the host. Then
edge_sk.create_model("local-dir:published") is the network; after edge_sk.register_with_timm(), so is
timm.create_model("local-dir:published", pretrained=True), for networks that timm can build.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_sk.errors import InputError, script
from edge_sk.export import network as networks
from edge_sk.export.record import Record, record_of
from edge_sk.files import atomic_folder, write_text
from edge_sk.markdown import code, escape
from edge_sk.models import _folders
from edge_sk.profiling import profile
from edge_sk.running import first_line
from edge_sk.training import run as run_folder
from recipes.markdown_tables import markdown_table

HUB = "hf-hub:"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="folder that train.py wrote")
    parser.add_argument("--to", required=True, metavar="DIR_OR_REPO", help="a new folder, or hf-hub:USER/NAME")
    parser.add_argument("--files", nargs="+", default=[], metavar="DIR", help="folders that edge-sk export wrote")
    parser.add_argument("--private", action="store_true", help="make a new repository on the Hub a private one")
    parser.add_argument("--unfinished", action="store_true", help="publish a run whose training is not finished")
    return parser.parse_args(argv)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Publish; returns the exit code."""
    args = parse(argv)
    target = Path(args.to.removeprefix("local-dir:"))
    if not args.to.startswith(HUB) and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--to {args.to} exists and is not empty: give a new folder, or {HUB}USER/NAME")
    network = networks.from_run(args.run, unfinished=args.unfinished)
    exported = list(find_files(network, args.files))
    if not args.to.startswith(HUB):
        with atomic_folder(target) as folder:
            fill(folder, Path(args.run), network, exported, f"local-dir:{target}")
        print(f"{target}: {network.arch}, exported files: {len(exported)}")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        fill(folder, Path(args.run), network, exported, args.to)
        print(push(folder, args.to.removeprefix(HUB), private=args.private))
    return 0


def find_files(network: networks.Network, folders: Sequence[str]) -> Iterator[tuple[Path, Record]]:
    """Exported files that hold the network's weights, with their records; others are named on stderr."""
    digest = network.weights_digest()
    for folder in map(Path, folders):
        found = [*sorted(folder.glob("*.pte.json")), *sorted(folder.glob("*.mlpackage.json"))]
        if not found:
            raise InputError(f"--files {folder} has no file with a record; edge-sk export writes them")
        for path in found:
            artifact = path.with_suffix("")
            if not artifact.exists():
                print(f"left out: {artifact} is missing", file=sys.stderr)
            elif (record := record_of(artifact)).weights_sha256 == digest:
                yield artifact, record
            else:
                print(f"left out: {artifact} holds other weights", file=sys.stderr)


def fill(
    folder: Path, run: Path, network: networks.Network, exported: Sequence[tuple[Path, Record]], name: str
) -> None:
    """Write everything into a new folder; ``name`` is what the network is loaded by."""
    folder.mkdir()
    for file in (run_folder.WEIGHTS, run_folder.RECIPE, run_folder.CSV):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(run / file, folder / file)
    config = run_folder.load_config(run)
    # Nobody else has the folder that the run was trained on.
    run_folder.save_config(folder, config.model_copy(update={"data": Path(config.data).name}))
    for path, _ in exported:
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, folder / path.name)
        shutil.copyfile(f"{path}.json", folder / f"{path.name}.json")
    of_timm = _folders.read_config(folder).architecture is not None
    write_text(folder / "README.md", card(run, network, [record for _, record in exported], name, of_timm=of_timm))


def card(run: Path, network: networks.Network, records: Sequence[Record], name: str, *, of_timm: bool) -> str:
    """The model card: what the network is, what it costs, how good it is, how to load it, and its files."""
    cost = profile(network.model, (1, *network.input_size))
    measured = [row for row in run_folder.read_csv(run) if "val_top1" in row]
    facts = {
        "parameters": f"{cost.params / 1e6:.2f} M",
        "multiply-accumulates": f"{cost.macs / 1e6:.1f} M",
        "image": " x ".join(map(str, network.input_size)),
        "classes": network.num_classes,
        "validation top-1": f"{measured[-1]['val_top1']:.2f} %, after {measured[-1]['epoch']:.0f} epochs"
        if measured
        else "not known",
        "trained on": escape(Path(network.data or "").name),
    }
    training = f"\n**The training is {network.training}.**\n" if network.training else ""
    load = [f'model = edge_sk.create_model("{name}")']
    if of_timm:
        load += [
            "",
            "import timm",
            "edge_sk.register_with_timm()",
            f'model = timm.create_model("{name}", pretrained=True)',
        ]
    files = markdown_table(
        ("file", "MB", "top-1 agreement", "SQNR, dB", "test top-1"),
        [
            (
                code(record.file),
                f"{record.size_bytes / 1e6:.2f}",
                _optional(record.parity and record.parity.top1_agreement, ".1%"),
                _optional(record.parity and record.parity.sqnr_db, ".1f"),
                _optional(record.accuracy and record.accuracy.top1, ".2%"),
            )
            for record in records
        ],
        "lrrrr",
    )
    exported = f"""
## Files for phones

Each was run on test images and compared with the network; the record beside it, `FILE.json`, has the details.

{files}
"""
    code_lines = "\n".join(["import edge_sk", *load])
    return f"""---
library_name: {"timm" if of_timm else "edge_sk"}
pipeline_tag: image-classification
tags: [image-classification, edge-sk{", timm" if of_timm else ""}]
---

# {escape(network.arch)}
{training}
{markdown_table(("", ""), [*facts.items()])}

```python
{code_lines}
```

Images are RGB in [0, 1], minus {[*network.mean]}, divided by {[*network.std]}; `config.json` says how they are resized.
{exported if records else ""}"""


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder to the Hub, with the token of ``hf auth login``; returns where it is.

    Raises:
        InputError: The Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Add the network"))
    except Exception as error:  # of the Hub's and of the connection's many types
        remedy = "hf auth login gives a token"
        raise InputError(f"{HUB}{repository} cannot be written: {first_line(error)}; {remedy}") from error


if __name__ == "__main__":
    sys.exit(main())
