"""``Network``: what is exported, where its weights come from, and how its images are prepared."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edge_sk import running
from edge_sk.errors import InputError, short
from edge_sk.export import parity
from edge_sk.export.record import InputContract
from edge_sk.models import _folders, _libraries, create_model
from edge_sk.models._registry import FOLDERS, parse_name
from edge_sk.models._weights import digest
from edge_sk.quantization import FakeQuantized
from edge_sk.training import run as run_folder
from edge_sk.training.data import eval_batches, open_split
from edge_sk.training.recipe import DataRecipe
from edge_sk.training.sources import is_embedded

UNTRAINED = "untrained"
# Images for parity and accuracy where nobody said how many and the test set is not an embedded one.
MOST_IMAGES = 1000
# Images that set an untrained network's batch-norm statistics.
STATISTICS_IMAGES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network ready to be exported.

    Args:
        arch: Name of the zoo, ``timm:NAME`` or ``torchvision:NAME``, with its options.
        model: In eval mode, on the CPU. It may return a tensor, or tuples, lists and dictionaries of tensors.
        weights: The run folder or pretrained tag they come from, or ``"untrained"``, which no run or tag is called.
        input_size: ``(C, H, W)``.
        mean: Per channel, of values in [0, 1].
        std: Per channel.
        interpolation: Resampling for evaluation.
        crop_pct: Share of the resized image that the centre crop keeps.
        labels: Names of the classes, where known.
        data: What :func:`edge_sk.training.data.eval_batches` reads for parity, calibration and accuracy. ``None`` means
            the digits for untrained weights; trained ones need their own images, which decide int8 ranges and parity.
        data_options: Fields of the recipe's ``data`` section that say how to read it.
        knows_data: Whether the network was trained on the classes of ``data``, so that accuracy on it means something.
        training: Set where the training was not finished, or nobody knows whether it was; the record says it.
        name: First part of the names of files; ``None``: the arch.
        notes: What the record says besides.
    """

    arch: str
    model: nn.Module
    weights: str
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    labels: list[str] | None = None
    data: str | None = None
    data_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    knows_data: bool = False
    training: str | None = None
    name: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether the weights come from somewhere."""
        return self.weights != UNTRAINED

    @property
    def quantized(self) -> bool:
        """Whether int8's rounding was trained (``quantization.qat``)."""
        return isinstance(self.model, FakeQuantized)

    def check_file(self, kind: str) -> None:
        """Refuse to make other files than ``xnnpack int8`` of a network that was trained for it: an ``InputError``."""
        if self.quantized and kind != "xnnpack int8":
            raise InputError(
                f"{self.weights} was trained with quantization.qat=true, for an int8 .pte, and makes no {kind} file: "
                "give --formats pte --precisions int8 (precision='int8'), or export the run that it started from"
            )

    @property
    def stem(self) -> str:
        """The first part of the names of files."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name or self.arch)

    def weights_digest(self) -> str:
        """SHA-256 of the weights: two runs may have folders of one name."""
        return digest(self.model.state_dict())

    @functools.cached_property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Names of the outputs, in the order of a file's, and their shapes for one image.

        Raises:
            InputError: The model returns no tensors, or others than of floating-point numbers.
        """
        with torch.no_grad():
            found = running.named_tensors(self.model(self.example()))
        if not found or not all(tensor.is_floating_point() for tensor in found.values()):
            kinds = {name: str(tensor.dtype) for name, tensor in found.items()}
            raise InputError(f"{self.arch} returns {kinds}: a file's outputs are floating-point tensors")
        if [*found] == [""]:
            (tensor,) = found.values()
            return {"logits" if tensor.ndim == 2 else "output": tuple(tensor.shape)}
        names = [re.sub(r"\W", "_", name if name[0].isalpha() else f"output_{name}") for name in found]
        return dict(zip(names, (tuple(tensor.shape) for tensor in found.values()), strict=True))

    @property
    def is_classifier(self) -> bool:
        """Whether the only output is one value per class."""
        return [len(shape) for shape in self.outputs.values()] == [2]

    def decides(self, shape: tuple[int, ...]) -> bool:
        """Whether an output of this shape chooses a class, for the image or for every pixel of it."""
        return self.is_classifier or (len(shape) == 4 and shape[1] > 1 and shape[2:] == self.input_size[1:])

    @property
    def num_classes(self) -> int | None:
        """Classes of the image or of its pixels; ``None`` where no output chooses one."""
        return next((shape[1] for shape in self.outputs.values() if self.decides(shape)), None)

    @property
    def contract(self) -> InputContract:
        """What an application must feed."""
        return InputContract(
            shape=[1, *self.input_size],
            mean=list(self.mean),
            std=list(self.std),
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
        )

    def data_set(self) -> str:
        """The data set of parity, calibration and accuracy.

        Raises:
            InputError: The weights are trained, and ``data`` is not given.
        """
        if not self.data and self.trained:
            raise InputError(
                f"{self.arch} has trained weights ({self.weights}) and no images for calibration and parity; "
                "name images of the kind that it was trained on with --data (data=)"
            )
        return self.data or "digits"

    def example(self) -> Tensor:
        """One image of zeros, ``(1, C, H, W)``."""
        return torch.zeros(1, *self.input_size)

    def images(self, *, split: Literal["train", "test"], limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Real images in [0, 1] and their labels, in batches."""
        config = {"input_size": self.input_size, "crop_pct": self.crop_pct, "interpolation": self.interpolation}
        options = DataRecipe(**self.data_options)
        return eval_batches(config, data=self.data_set(), split=split, limit=limit, options=options)

    def check_images(self, images: int | None, *, calibration: bool = False) -> None:
        """Read as many test images as a proof needs, and a training image for ``calibration``, before minutes of work.

        An ``InputError`` where they are missing, too few or unreadable, or ``images`` is too small a number.
        """
        parity.check_count(images)
        found = sum(len(labels) for _, labels in self.images(split="test", limit=parity.MIN_IMAGES))
        if found < parity.MIN_IMAGES:
            raise InputError(
                f"{self.data_set()} has {found} test images; a proof needs at least {parity.MIN_IMAGES} (--data, data=)"
            )
        if calibration:
            next(self.images(split="train", limit=1))

    def test_images(self, images: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images that an exported file is proven on, and their labels.

        Args:
            images: How many, spread over the test set. ``None``: where accuracy means something, all of an embedded
                data set and at most 1,000 of another; elsewhere 64.
        """
        if images is None and not self.knows_data:
            images = parity.MIN_IMAGES
        elif images is None and not is_embedded(self.data_set()):
            images = MOST_IMAGES
        return self.images(split="test", limit=images)


def from_run(folder: str | Path, *, data: str | None = None, unfinished: bool = False) -> Network:
    """The trained network of a run folder.

    Args:
        folder: What ``edge-sk train`` wrote.
        data: Images for parity and calibration; ``None`` takes those of the training.
        unfinished: Take a run whose training is not finished, too; the record then says how far it had come. A folder
            without ``recipe.yaml``, which says when a training is finished, is always taken, and the record says so.

    Raises:
        InputError: No run folder, its weights are another architecture's, or its training is not finished.
    """
    run = run_folder.load_run(folder)
    config = run.config
    data = data or config.data
    training = f"not known to be finished: the run folder has no {run_folder.RECIPE}"
    if (Path(folder) / run_folder.RECIPE).is_file():
        epochs = run_folder.unfinished(folder)
        if epochs and not unfinished:
            raise InputError(
                f"the training of {folder} is not finished ({epochs}); continue it with edge-sk train --resume, or "
                "take it as it is with --unfinished (unfinished=True)"
            )
        training = epochs and f"not finished: {epochs}"
    options = "" if "@" in config.arch else ",".join(f"{key}={value}" for key, value in sorted(config.options.items()))
    return Network(
        arch=f"{config.arch}@{options}" if options else config.arch,
        model=run.model,
        weights=_weights_name(Path(folder).resolve().name),
        input_size=config.input_size,
        mean=config.mean,
        std=config.std,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        labels=config.classes,
        data=data,
        data_options=run_folder.data_options(folder, data).model_dump(exclude_defaults=True),
        knows_data=data == config.data,
        training=training,
        notes=("int8's ranges are those of the training (quantization.qat): no calibration",) if config.qat else (),
    )


def from_arch(name: str, *, data: str | None = None, init_from: str | None = None) -> Network:
    """A network of the zoo, of timm, of torchvision or of a folder: published weights, or none to measure latency with.

    Args:
        name: As :func:`edge_sk.create_model` takes it.
        data: Images for parity and calibration; untrained networks can do without: ``None`` takes the digits. Trained
            networks have their accuracy counted on them where their classes are the network's.
        init_from: Weights, as :func:`edge_sk.create_model` takes them; how many classes there are, their names, and
            size and preprocessing of the images are the weights' own. Without them, and unless ``name`` is a folder's,
            the network is untrained, the record says so, and its batch norms get statistics (:func:`with_statistics`).

    Raises:
        InputError: An unknown name, or weights that do not fit.
    """
    source, arch = init_from, name
    options: dict[str, Any] = {}
    if name.startswith(FOLDERS):
        if init_from is not None:
            raise InputError(
                f"{name} brings its weights; give the name of an architecture with --init-from (init_from=)"
            )
        source, init_from = name, _folders.local(name)
        arch, options = _folders.saved_network(init_from)
    if {"pretrained", "weights"} & parse_name(arch)[1].keys():
        raise InputError(f"{name} has trained weights as an option; name them with --init-from (init_from=)")
    notes: tuple[str, ...] = ()
    # Untrained weights are random: two exports of one name must still be the same file.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(arch, **options, init_from=None)
        cfg: dict[str, Any] = model.default_cfg  # type: ignore[assignment]
        if init_from is not None:
            weights = _libraries.weights(init_from)
            classes = weights.num_classes(model)
            options["num_classes"] = classes
            model = create_model(arch, **options, init_from=init_from)
            cfg = model.default_cfg | {"input_size": weights.input_size or cfg["input_size"]}  # type: ignore[operator]
            if "mean" not in weights.images:
                notes = ("the weights do not say how their images were prepared: mean, std and crop are the network's",)
    network = Network(
        arch=arch,
        model=model.eval(),
        weights=_weights_name(source) if source else UNTRAINED,
        input_size=tuple(cfg["input_size"]),  # type: ignore[arg-type]
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg.get("interpolation") or "bilinear",
        crop_pct=cfg.get("crop_pct") or 0.875,
        labels=list(cfg["label_names"]) if source and cfg.get("label_names") else None,
        notes=notes,
    )
    # With digits, so that the weights do not depend on the data that the file is proven on.
    network = dataclasses.replace(with_statistics(network), data=data)
    if data is None or not network.trained or not network.is_classifier:
        return network
    knows, note = _knows(network, data)
    return dataclasses.replace(network, knows_data=knows, notes=(*notes, *note))


def _knows(network: Network, data: str) -> tuple[bool, tuple[str, ...]]:
    """Whether the labels of a data set are the network's classes, and a note where names do not tell."""
    theirs, ours = open_split(data, "test", DataRecipe()).classes, network.labels
    if theirs is None or len(theirs) != network.num_classes:
        return False, (f"accuracy was not counted: {data} does not have the network's {network.num_classes} classes",)
    if ours is None:
        return True, (f"the weights do not name their classes: accuracy takes them in the order of {data}",)
    # Folders of ImageNet are named by WordNet's numbers, whose order is that of the classes.
    if theirs == ours or (len(theirs) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in theirs)):
        return True, ()
    return False, (f"accuracy was not counted: {data} calls its classes {short(', '.join(theirs))}",)


def _weights_name(name: str) -> str:
    """What to call weights; records, too, must be able to tell a run called ``untrained`` from no run at all."""
    return f"./{name}" if name == UNTRAINED else name


def with_statistics(network: Network, *, vary: bool = False) -> Network:
    """Set an untrained network's batch-norm statistics, so that each norm's output has mean square one.

    With fresh statistics, random weights can shrink an image layer by layer, until the logits hardly depend on it and
    rounding to half precision is larger than they differ; or values grow beyond half precision. Each batch norm gets
    one variance for all channels, the mean square of what enters it on training images: one per channel would divide
    dead channels by next to nothing and make rounding errors the largest values.

    Args:
        network: It is not changed; a trained one is returned.
        vary: Draw means and affine parts, too, and let variances differ. Freshly built, batch norms are identities and
            many residual branches end in a zero, where an error would not show.
    """
    if network.trained:
        return network
    model = copy.deepcopy(network.model).eval()
    generator = torch.Generator().manual_seed(0)

    def set_statistics(norm: Any, inputs: tuple[Tensor]) -> None:
        if norm.running_var is not None:
            power = inputs[0].square().mean()
            if vary:
                norm.running_mean.uniform_(-0.3, 0.3, generator=generator).mul_(power.sqrt())
                norm.running_var.uniform_(0.5, 1.5, generator=generator).mul_(power)
            else:
                norm.running_var.fill_(power)
        if vary and norm.weight is not None:
            norm.weight.uniform_(0.7, 1.3, generator=generator)
            norm.bias.uniform_(-0.2, 0.2, generator=generator)

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(set_statistics) for norm in norms]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))
    with torch.no_grad():
        images, _ = next(network.images(split="train", limit=STATISTICS_IMAGES))
        model((images - mean) / std)
    for hook in hooks:
        hook.remove()
    return dataclasses.replace(network, model=model)
