"""Classify photographs with an exported file: the five likeliest classes of each, with their scores.

edge-sk classify exports/sk_shufflenetv2_1.0_xnnpack_fp32.pte photo.jpg
edge-sk classify exports/sk_shufflenetv2_1.0_coreml_fp16.mlpackage *.jpg

The file says how images are prepared and what its classes are called. A package is run by edge_sk's interpreter, which
needs no Mac. Exit codes: 0 done, 2 for a file or photograph that cannot be used; the others are still classified.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from edge_sk.errors import InputError, script, short  # isort: skip (before torch: Ctrl-C)
from PIL import Image, ImageOps
from torch import Tensor

from edge_sk.export.coreml.mil import MilProgram
from edge_sk.export.executorch import executorch
from edge_sk.export.executorch.pte import run_pte
from edge_sk.export.record import record_of, record_path
from edge_sk.running import first_line
from edge_sk.stderr import capture_stderr
from edge_sk.training.image_files import DECODE_ERRORS, read_image
from edge_sk.training.transforms import Transform, evaluation_transform

SHOWN = 5


class Classifier(NamedTuple):
    """An exported file, ready to run."""

    transform: Transform  # from an upright picture to uint8, (C, H, W)
    labels: list[str]  # empty: unknown
    run: Callable[[Tensor], Tensor]  # from uint8, (C, H, W), to probabilities, (classes,)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="edge-sk classify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("file", metavar="FILE", help="a .pte or .mlpackage of edge-sk export")
    p.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="JPEG, PNG, WebP, ...; HEIC where pillow-heif is installed"
    )
    return p


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Print the likeliest classes of each photograph."""
    args = parser().parse_args(argv)
    _check_kind(args.file)
    if record_path(args.file).is_file() and Path(args.file).exists():
        record_of(args.file)  # refuses a file that is not the one described
    classifier = open_pte(args.file) if Path(args.file).suffix == ".pte" else open_package(args.file)
    failures = 0
    for photo in args.photos:
        try:
            shares = classifier.run(classifier.transform(read_photo(photo)))
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            failures += 1
            continue
        print(photo)
        best = shares.topk(min(SHOWN, len(shares)))
        for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"  {share:6.1%}  {short(classifier.labels[index]) if classifier.labels else f'class {index}'}")
    return 2 if failures else 0


def _check_kind(path: str) -> None:
    """Refuse what is no exported file by its name: a folder of files, or a photograph."""
    folder = Path(path)
    if folder.suffix not in (".pte", ".mlpackage"):
        inside = sorted(one.name for one in (*folder.glob("*.pte"), *folder.glob("*.mlpackage")))
        hint = f"; it holds {', '.join(inside)}" if inside else ", the photographs after it"
        raise InputError(f"{path} is not a .pte or .mlpackage: name the exported file first{hint}")


def open_pte(path: str) -> Classifier:
    """Open a ``.pte``, whose methods say how to use it.

    Raises:
        InputError: It is missing, damaged, no classifier, for a backend that does not run here, or not one of
            edge-sk export's.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} is not a file; edge-sk export writes .pte files")
    program = Path(path).read_bytes()
    names = ("input_size", "crop_pct", "interpolation", "labels", "softmax")
    try:
        with capture_stderr():
            loaded = executorch("runtime").Runtime.get().load_program(program)
            asked = [name for name in (*names, "outputs") if name in loaded.method_names]
            said = {name: loaded.load_method(name).execute([]) for name in asked}
    except RuntimeError as error:
        raise InputError(f"ExecuTorch cannot read {path}: {first_line(error)}; export it again") from error
    if missing := [name for name in names if name not in said]:
        raise InputError(f"{path} does not say its {', '.join(missing)}: it is not a file of edge-sk export")
    _check_classifier(path, "".join(said.get("outputs", ["logits"])).splitlines())
    (crop_pct,), (interpolation,), (labels,), (softmax,) = (said[name] for name in names[1:])

    def run(image: Tensor) -> Tensor:
        (output,) = run_pte(program, image[None].float() / 255)
        return output if softmax else output.softmax(0)

    transform = evaluation_transform(tuple(map(int, said["input_size"])), crop_pct, interpolation)  # type: ignore[arg-type]
    return Classifier(transform, labels.splitlines(), run)


def open_package(path: str) -> Classifier:
    """Open an ``.mlpackage``, whose metadata say how to use it.

    Raises:
        InputError: It is missing, damaged, no classifier, or not one of edge-sk export's.
    """
    program = MilProgram.load(path)
    said, image = program.description.metadata.userDefined, program.image
    if not {"edge_sk.crop_pct", "edge_sk.interpolation"} <= set(said):
        raise InputError(f"{path} does not say how its images are prepared: it is not a package of edge-sk export")
    if program.labels is None:
        _check_classifier(path, [output.name for output in program.description.output])

    def run(pixels: Tensor) -> Tensor:
        return program.predict(pixels.permute(1, 2, 0).squeeze(-1).numpy()).logits.softmax(0)

    size = (image.channels, image.height, image.width)
    transform = evaluation_transform(size, float(said["edge_sk.crop_pct"]), said["edge_sk.interpolation"])
    return Classifier(transform, program.labels or [], run)


def _check_classifier(path: str, outputs: list[str]) -> None:
    if outputs != ["logits"]:
        raise InputError(f"{path} is no classifier: it returns {', '.join(outputs)}; take a file of a classifier")


def read_photo(path: str) -> Image.Image:
    """Decode a photograph and turn it upright, as its EXIF orientation says.

    Raises:
        InputError: No picture, a damaged one, or no decoder for its format is installed.
    """
    kind = None
    try:
        with open(path, "rb") as file:
            kind = _kind(file.read(12))
            file.seek(0)
            if kind == "HEIC":
                importlib.import_module("pillow_heif").register_heif_opener()
            image = Image.open(file, formats=("HEIF",)) if kind == "HEIC" else read_image(file)
            return ImageOps.exif_transpose(image)
    except ImportError:
        raise InputError(f"{path} is HEIC, which takes pip install pillow-heif; or convert it to JPEG") from None
    except Image.UnidentifiedImageError:
        what = f"{kind}, for which this Pillow has no decoder" if kind else "no picture of a known format"
        raise InputError(f"{path} is {what}: convert it to JPEG or PNG") from None
    except DECODE_ERRORS as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or first_line(error)}") from error


def _kind(start: bytes) -> str | None:
    """The format of a file that Pillow may have no decoder for, by its first twelve bytes."""
    if start[4:8] == b"ftyp":
        return "AVIF" if start[8:11] == b"avi" else "HEIC"
    return "WebP" if (start[:4], start[8:]) == (b"RIFF", b"WEBP") else None


if __name__ == "__main__":
    sys.exit(main())
