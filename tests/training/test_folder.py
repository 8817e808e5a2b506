"""A folder of images: every file is read, or said not to be."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder

from edge_sk.errors import InputError
from edge_sk.training.folder import label_files
from edge_sk.training.image_files import EXTENSIONS, read_image
from edge_sk.training.sources import Images


def draw(path: Path, shade: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path)


def test_labels_and_order_are_timms(tmp_path: Path) -> None:
    for name in ("b10/2.png", "b10/10.jpg", "b9/x.png", "B9x/1.png", "a/deep/d/7.png", "a/8.jpeg"):
        draw(tmp_path / name)
    (files, classes), reader = label_files(tmp_path), ReaderImageFolder(str(tmp_path))
    images = Images(files, classes)
    assert [images.name(index) for index in range(len(images))] == [path for path, _ in reader.samples]
    assert [images.load(index)[1] for index in range(len(images))] == [label for _, label in reader.samples]
    assert {name: label for label, name in enumerate(classes)} == reader.class_to_idx


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_every_extension_is_decoded(extension: str, tmp_path: Path) -> None:
    draw(tmp_path / "class" / f"image{extension}", 100)
    image, _ = Images(*label_files(tmp_path)).load(0)
    assert image.size == (8, 8)
    assert abs(int(np.asarray(image.convert("L"))[4, 4]) - 100) < 4


def test_files_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "class" / "1.png")
    for name in ("1.heic", "2.heic", "notes.txt", ".DS_Store"):
        (tmp_path / "class" / name).touch()
    with caplog.at_level(logging.WARNING):
        assert len(label_files(tmp_path)[0]) == 1
    assert "not read: 2 .heic, 1 .txt; images are .avif" in caplog.text
    (tmp_path / "class" / "1.png").unlink()
    with pytest.raises(InputError, match=r"has no images in class folders: .*; it holds 2 \.heic, 1 \.txt"):
        label_files(tmp_path)


def test_a_pipe_is_no_image_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    draw(tmp_path / "class" / "1.png")
    os.mkfifo(tmp_path / "class" / "2.png")
    (tmp_path / "class" / "again").symlink_to(tmp_path)
    assert len(label_files(tmp_path)[0]) == 1


def test_a_link_to_another_class_is_read_and_a_hidden_folder_is_not(tmp_path: Path) -> None:
    draw(tmp_path / "class" / "1.png")
    draw(tmp_path / ".ipynb_checkpoints" / "1.png")
    (tmp_path / "twin").symlink_to(tmp_path / "class")
    files, classes = label_files(tmp_path)
    assert classes == ["class", "twin"]
    assert [label for _, label in files.samples] == [0, 1]


def test_names_are_utf_8(tmp_path: Path) -> None:
    draw(tmp_path / "class" / "²1.png")
    assert len(label_files(tmp_path)[0]) == 1
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    Path(os.fsdecode(folder + b"/1.png")).write_bytes((tmp_path / "class" / "²1.png").read_bytes())
    with pytest.raises(InputError, match="not UTF-8") as error:
        label_files(tmp_path)
    assert str(error.value).isprintable()


def test_sixteen_bits_keep_their_shades(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    for extension in ("png", "tiff", "pgm"):
        path = tmp_path / f"ramp.{extension}"
        Image.fromarray(ramp).save(path)
        image = read_image(path)
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), ramp >> 8)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_unreadable(dtype: type, tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), dtype)).save(tmp_path / "image.tiff")
    with pytest.raises(ValueError, match="have no known range"):
        read_image(tmp_path / "image.tiff")


def test_postscript_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with pytest.raises(OSError, match="cannot identify"):
        read_image(tmp_path / "image.png")
