"""From a photograph to names: the file's answer is the network's, whichever way up the camera was held."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, features
from sklearn.datasets import load_sample_image

from deploy.classify import main, open_package, open_pte, read_photo
from edge_sk.errors import InputError
from edge_sk.export import to_mlpackage, to_pte
from edge_sk.export.network import Network
from edge_sk.export.prepare import reference
from edge_sk.export.record import record_path
from edge_sk.training.transforms import evaluation_transform

# How the picture on the sensor lies, for each EXIF orientation: what turns it upright, undone.
LYING = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg"))


@pytest.fixture(scope="module")
def files(small_network: Network, small_pte: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("classify")
    made = {"package": to_mlpackage(small_network, folder, precision="fp32")}
    made["softmax"] = to_pte(small_network, folder, softmax=True)
    made["logits"] = to_mlpackage(small_network, folder, precision="fp16", softmax=False)
    return {"pte": small_pte} | {name: folder / record.file for name, record in made.items()}


def expected(network: Network, photo: Image.Image) -> torch.Tensor:
    transform: Any = evaluation_transform(network.input_size, network.crop_pct, network.interpolation)
    with torch.no_grad():
        return reference(network, softmax=True)(transform(photo)[None].float() / 255)[0]


@pytest.mark.parametrize("kind", ["pte", "softmax", "package", "logits"])
def test_scores_are_the_networks(
    kind: str, files: dict[str, Path], small_network: Network, photo: Image.Image, tmp_path: Path
) -> None:
    photo.save(tmp_path / "photo.png")
    path = str(files[kind])
    classifier = open_pte(path) if path.endswith(".pte") else open_package(path)
    shares = classifier.run(classifier.transform(read_photo(str(tmp_path / "photo.png"))))
    torch.testing.assert_close(shares, expected(small_network, photo), rtol=0, atol=1e-3 if kind == "logits" else 1e-5)
    assert classifier.labels == ([] if kind == "logits" else small_network.labels)


@pytest.mark.parametrize("kind", ["pte", "package"])
def test_five_names_whichever_way_up(
    kind: str, files: dict[str, Path], small_network: Network, photo: Image.Image, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    paths = []
    for orientation, lying in LYING.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        paths.append(str(tmp_path / f"{orientation}.{'png' if orientation % 2 else 'tif'}"))
        (photo if lying is None else photo.transpose(lying)).save(paths[-1], exif=exif)
        np.testing.assert_array_equal(np.asarray(read_photo(paths[-1])), np.asarray(photo))
    assert main([str(files[kind]), *paths]) == 0
    out = capsys.readouterr().out
    answers = re.split(r".*\.(?:png|tif)\n", out)[1:]
    assert len(answers) == len(LYING)
    assert len(set(answers)) == 1
    shares = expected(small_network, photo)
    assert small_network.labels is not None
    best = [(small_network.labels[i], shares[i].item()) for i in shares.argsort(descending=True)[:5]]
    lines = answers[0].splitlines()
    assert [line.split("%  ")[1] for line in lines] == [label for label, _ in best]
    assert [float(line.split("%")[0]) / 100 for line in lines] == pytest.approx([share for _, share in best], abs=6e-4)


def test_one_bad_photograph_does_not_stop_the_others(
    files: dict[str, Path], photo: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    contents = {
        "iphone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "new.webp": b"RIFF\x10\0\0\0WEBPVP9 ",
        "text.jpg": b"not a picture",
        "torn.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    photo.save(tmp_path / "good.jpg")
    monkeypatch.chdir(tmp_path)
    assert main([str(files["pte"]), *contents, "missing.jpg", ".", "good.jpg"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("good.jpg\n")
    errors = captured.err.splitlines()
    expected = (
        "iphone.heic is HEIC, which takes pip install pillow-heif; or convert it to JPEG",
        "new.webp is WebP, for which this Pillow has no decoder: convert it to JPEG or PNG",
        "text.jpg is no picture of a known format: convert it to JPEG or PNG",
        "torn.png cannot be read: .*",
        "missing.jpg cannot be read: No such file or directory",
        r"\. cannot be read: Is a directory",
    )
    assert len(errors) == len(expected)
    for error, line in zip(errors, expected, strict=True):
        assert re.fullmatch(f"error: {line}", error)


def test_heic_is_read_where_its_decoder_is_installed(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for pillow-heif, which is no dependency: it registers a format, as that does."""
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic")

    def register() -> None:
        Image.register_open("HEIF", lambda file, name: photo)  # type: ignore[arg-type]

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    np.testing.assert_array_equal(np.asarray(read_photo(str(path))), np.asarray(photo))
    monkeypatch.delitem(Image.OPEN, "HEIF")
    Image.ID.remove("HEIF")


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow has no WebP")
def test_webp_and_pictures_of_other_modes(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "photo.webp", lossless=True)
    np.testing.assert_array_equal(np.asarray(read_photo(str(tmp_path / "photo.webp"))), np.asarray(photo))


def test_files_of_other_networks_are_refused(small_network: Network, tmp_path: Path) -> None:
    features = torch.nn.Sequential(*list(small_network.model.children())[:4]).eval()  # type: ignore[arg-type]
    network = dataclasses.replace(small_network, model=features, labels=None)
    records = [to_pte(network, tmp_path), to_mlpackage(network, tmp_path, precision="fp32")]
    for record, opened in zip(records, (open_pte, open_package), strict=True):
        with pytest.raises(InputError, match="is no classifier: it returns output; take"):
            opened(str(tmp_path / record.file))


def test_files_that_are_not_ours(
    small_network: Network, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_sk.export.coreml import coremltools

    with pytest.raises(InputError, match=r"nowhere\.pte is not a file"):
        open_pte("nowhere.pte")
    (tmp_path / "torn.pte").write_bytes(files["pte"].read_bytes()[:1000])
    with pytest.raises(InputError, match=r"ExecuTorch cannot read .*torn\.pte"):
        open_pte(str(tmp_path / "torn.pte"))
    with pytest.raises(InputError, match="no package at nowhere"):
        open_package("nowhere")
    photo = tmp_path / "photo.jpg"
    photo.touch()
    assert main([str(photo), str(files["pte"])]) == 2
    assert (
        f"{photo} is not a .pte or .mlpackage: name the exported file first, the photographs" in capsys.readouterr().err
    )
    assert main([str(files["pte"].parent), str(photo)]) == 2
    assert f"name the exported file first; it holds {files['pte'].name}" in capsys.readouterr().err
    model = coremltools().models.MLModel(str(files["package"]), skip_model_load=True)
    del model.user_defined_metadata["edge_sk.crop_pct"]
    model.save(str(tmp_path / "foreign.mlpackage"))
    with pytest.raises(InputError, match="does not say how its images are prepared"):
        open_package(str(tmp_path / "foreign.mlpackage"))


def test_a_damaged_file_beside_its_record_is_refused(
    files: dict[str, Path], photo: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.save(tmp_path / "flower.png")
    whole, damaged = files["softmax"], tmp_path / files["softmax"].name
    content = bytearray(whole.read_bytes())
    content[len(content) // 2] ^= 255
    damaged.write_bytes(content)
    shutil.copyfile(record_path(whole), record_path(damaged))
    assert main([str(damaged), str(tmp_path / "flower.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not the file that" in line
