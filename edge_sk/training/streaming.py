"""WebDataset's tar files, in an order that can be repeated, so that a run resumes at any step."""

from __future__ import annotations

import io
import itertools
import json
import logging
import random
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from edge_sk.errors import InputError, require
from edge_sk.training.image_files import DECODE_ERRORS, read_image
from edge_sk.training.randomness import derive_seed, seed_sample
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.sources import MAX_DAMAGED, Sample, Shard, Split, unreadable
from edge_sk.training.transforms import Transform

# Path up to the first dot of the file's name: the files of a sample share it.
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")


@dataclass(frozen=True)
class Tars:
    """One split of ``wds/FOLDER``; it does not name its classes."""

    name: str
    paths: list[str]
    images: int  # 0: not known
    extensions: list[str]  # of the image
    label_key: str | None  # field of the json file; None: the .cls file
    classes: list[str] | None = None

    def __len__(self) -> int:
        """Images of the split; an ``InputError`` where its description does not say."""
        if not self.images:
            raise InputError(f"{self.name} has no count: write it as SHARDS.tar|IMAGES")
        return self.images


def open_tars(data: str, split: Split, options: DataRecipe) -> Tars:
    """Find the tar files of a split; an ``InputError`` says whether the folder, the split or a tar file is missing."""
    _webdataset(data)
    from timm.data.readers.reader_wds import ReaderWds

    root, name = Path(data.removeprefix("wds/")), options.split_name(split)
    if not root.is_dir():
        raise InputError(f"--data {data}: {root} is not a folder with WebDataset shards")
    logger = logging.getLogger("timm.data.readers.reader_wds")
    logger.disabled = True  # it warns about a missing _info.json, which a split that names its files does not need
    try:
        reader = ReaderWds(str(root), split=name)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"--data {data} has no split {name!r} ({error}); describe it in {root}/_info.json "
            'or set data.train_split and data.val_split, for example "train-{0000..0009}.tar|10000"'
        ) from None
    finally:
        logger.disabled = False
    paths = [str(root / tar) for tar in reader.split_info.filenames]
    if missing := [path for path in paths if not Path(path).exists()]:
        raise InputError(f"--data {data}: {len(missing)} of {len(paths)} shards are missing, the first is {missing[0]}")
    return Tars(
        f"{name!r} of --data {data}",
        paths,
        reader.num_samples,
        (options.image_key or "jpg;png;webp").split(";"),
        options.label_key or reader.split_info.alt_label or None,
    )


@dataclass(frozen=True)
class Stream(IterableDataset[Sample]):
    """This process's part of a split, transformed; with a seed in random order, from a batch on and without end.

    Every process and loader worker reads its own tar files. An epoch of several shows every image once only if their
    files hold equally many images; a shorter part starts again. A run that is resumed within an epoch reads past the
    images it has seen.
    """

    tars: Tars
    transform: Transform
    shard: Shard
    batch_size: int = 1
    seed: int | None = None
    position: Tensor | None = None  # epoch, and batches to skip; in shared memory: the workers outlive an epoch

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        epoch, skip_batches = (0, 0) if self.position is None else self.position.tolist()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # The loader takes batches from its workers in turn, and begins with the first: after a resume a worker reads
        # the part of the worker whose turn it is.
        worker = (worker + skip_batches) % workers
        skipped = len(range(worker, skip_batches, workers)) * self.batch_size
        problems, position = list[str](), 0
        part, parts = self.shard.rank * workers + worker, self.shard.size * workers
        for name, files in self._samples(epoch, part, parts, problems):
            if self.seed is not None and len(problems) > MAX_DAMAGED:
                break
            try:
                image, label = self._decode(files)
            except (*DECODE_ERRORS, KeyError, TypeError) as error:
                problems.append(unreadable(name, error))
                continue
            position += label >= 0  # a negative label marks an image without one
            if label < 0 or position <= skipped:
                continue
            if self.seed is not None:
                seed_sample(self.seed, "augment", epoch, self.shard.rank, worker, position)
            yield Sample(self.transform(image), label, tuple(problems))
            problems.clear()
        if problems:
            yield Sample(None, -1, tuple(problems))

    def _samples(
        self, epoch: int, part: int, parts: int, problems: list[str]
    ) -> Iterable[tuple[str, dict[str, bytes]]]:
        from timm.data.readers.reader_wds import SAMPLE_INITIAL_SIZE, SAMPLE_SHUFFLE_SIZE

        paths = list(self.tars.paths)
        if self.seed is None:
            return _read(paths[part::parts], problems)
        random.Random(derive_seed(self.seed, "shards", epoch)).shuffle(paths)
        order = random.Random(derive_seed(self.seed, "shuffle", epoch, part))
        wds = _webdataset(self.tars.name)
        shuffled = wds.shuffle(SAMPLE_SHUFFLE_SIZE, initial=SAMPLE_INITIAL_SIZE, rng=order)
        return wds.DataPipeline(lambda: _read(paths[part::parts], problems), shuffled).repeat()

    def _decode(self, files: dict[str, bytes]) -> tuple[Image.Image, int]:
        key, extensions = self.tars.label_key, self.tars.extensions
        label = int(json.loads(files["json"])[key] if key else files["cls"])
        extension = next((extension for extension in extensions if extension in files), extensions[0])
        return read_image(io.BytesIO(files[extension])), label


def _read(paths: list[str], problems: list[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each sample's name, and its files by extension; adds damaged tar files to ``problems``."""
    for path in paths:
        try:
            with tarfile.open(path) as tar:
                files = ((name, file) for file in tar if file.isfile() and (name := _NAME.fullmatch(file.name)))
                for key, group in itertools.groupby(files, key=lambda pair: pair[0][1]):
                    opened = {name[2].lower(): tar.extractfile(file) for name, file in group}
                    yield f"{path}:{key}", {extension: file.read() for extension, file in opened.items() if file}
        except (*DECODE_ERRORS, tarfile.TarError, zlib.error) as error:
            problems.append(unreadable(path, error))


def _webdataset(data: str) -> Any:
    return require("webdataset", extra="train", needed_for=f"--data {data}")
