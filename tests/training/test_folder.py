"""A folder of images: every file is read, or said not to be."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils.misc import natural_key

from edge_sk.errors import InputError
from edge_sk.training import folder
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


@given(st.lists(st.text("aB/._ 0129٣", min_size=1), max_size=8))
def test_names_sort_as_timms_do(names: list[str]) -> None:
    expected = sorted(names, key=lambda name: (natural_key(name), name))
    assert sorted(names, key=lambda name: (folder._natural(name), name)) == expected


def settle(root: Path, seconds: int = 10**9) -> None:
    """Give all folders an old time of change: what was changed just now is not trusted to stay."""
    for place, _, _ in os.walk(root):
        os.utime(place, (seconds, seconds))


def test_an_index_is_read_until_a_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, index = tmp_path / "images", tmp_path / "kept" / "index.safetensors"
    for name in ("b/2.png", "b/10.png", "a/é.png", "c/deep/d/1.png"):
        draw(root / name)
    (root / "a" / "notes.txt").touch()
    walks, walk = list[Path](), folder.find_images
    monkeypatch.setattr(folder, "find_images", lambda root: walks.append(root) or walk(root))

    def found(root: Path = root) -> tuple[list[str], list[int], list[str]]:
        files, classes = label_files(root, indexes=[tmp_path / "none", index])
        names = [files.filename(number, absolute=False) for number in range(len(files))]
        return names, files.labels.tolist(), classes

    first = found()
    # Changed just now: a file that comes within the same tick of the clock would not be noticed.
    assert found() == first
    assert len(walks) == 2
    settle(root)
    assert [found(), found(), found()] == [first] * 3
    assert len(walks) == caplog.text.count("not read: 1 .txt") == 3
    # The paths of an index are relative, but another folder may hold other images.
    (tmp_path / "twin").symlink_to(root)
    assert found(tmp_path / "twin") == first
    assert len(walks) == 3
    draw(root / "c" / "deep" / "d" / "0.png")
    assert found() == ([*first[0][:3], "c/deep/d/0.png", "c/deep/d/1.png"], [0, 1, 1, 2, 2], first[2])
    # Moved, and the folders' times are old too.
    (root / "b" / "2.png").rename(root / "a" / "2.png")
    settle(root, 10**8)
    assert found()[0][:2] == ["a/2.png", "a/é.png"]
    assert len(walks) == 5


def test_an_index_that_is_damaged_or_of_another_folder_is_not_read(tmp_path: Path) -> None:
    index = tmp_path / "index.safetensors"
    for root, name in (("one", "a/1.png"), ("two", "a/2.png")):
        draw(tmp_path / root / name)
        settle(tmp_path / root)
    for root, name in (("one", "a/1.png"), ("two", "a/2.png"), ("one", "a/1.png")):
        assert label_files(tmp_path / root, indexes=[index])[0].filename(0, absolute=False) == name
    whole = index.read_bytes()
    for content in (b"", whole[:40], whole[:-1], whole.replace(b"folders", b"folderz")):
        index.write_bytes(content)
        assert label_files(tmp_path / "one", indexes=[index])[0].filename(0, absolute=False) == "a/1.png"
        assert index.read_bytes() == whole


def test_an_index_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a" / "1.png")
    (tmp_path / "file").touch()
    assert len(label_files(tmp_path / "images", indexes=[tmp_path / "file" / "index.safetensors"])[0]) == 1


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
    (tmp_path / "class" / "itself.png").symlink_to("itself.png")
    (tmp_path / "class" / "nowhere.png").symlink_to("missing.png")
    assert len(label_files(tmp_path)[0]) == 1


def test_a_link_to_another_class_is_read_and_a_hidden_folder_is_not(tmp_path: Path) -> None:
    draw(tmp_path / "class" / "1.png")
    draw(tmp_path / ".ipynb_checkpoints" / "1.png")
    (tmp_path / "twin").symlink_to(tmp_path / "class")
    files, classes = label_files(tmp_path)
    assert classes == ["class", "twin"]
    assert files.labels.tolist() == [0, 1]


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
