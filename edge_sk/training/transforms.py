"""Transform images, from PIL to uint8 ``(C, H, W)``; whole batches are normalised on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import methodcaller
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from edge_sk.errors import InputError
from edge_sk.training.recipe import AugmentRecipe, CropPct, DataRecipe

Transform = Callable[[Image.Image], Tensor]
Side = Annotated[int, Field(ge=8, le=8192)]


class Preprocessing(BaseModel):
    """How a network wants its images; the fields are named as in ``default_cfg`` and ``config.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    input_size: tuple[Literal[1, 3], Side, Side]  # (C, H, W)
    mean: tuple[float, ...]  # per channel, of inputs in [0, 1]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    crop_pct: CropPct

    @model_validator(mode="after")
    def _channels(self) -> Preprocessing:
        for name in ("mean", "std"):
            if len(values := getattr(self, name)) != self.input_size[0]:
                raise ValueError(f"{name} has {len(values)} values for {self.input_size[0]} channels")
        return self

    @classmethod
    def of(cls, cfg: Mapping[str, Any], data: DataRecipe) -> Preprocessing:
        """Read a ``default_cfg`` or ``config.json``; what the recipe sets takes precedence."""
        channels, height, width = cfg["input_size"]
        size = (channels, data.input_size or height, data.input_size or width)
        interpolation, crop_pct = data.interpolation or cfg["interpolation"], data.crop_pct or cfg["crop_pct"]
        return Preprocessing(
            input_size=size, mean=cfg["mean"], std=cfg["std"], interpolation=interpolation, crop_pct=crop_pct
        )


class Normalizer:
    """Turns uint8 images into the network's input, ``(x / 255 - mean) / std``, on the device."""

    def __init__(self, images: Preprocessing, device: torch.device, *, channels_last: bool = False) -> None:
        self._mean, self._std = (
            255 * torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (images.mean, images.std)
        )
        self._layout = torch.channels_last if channels_last else torch.preserve_format

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise a batch ``(N, C, H, W)``."""
        images = images.to(self._mean.device, non_blocking=True).to(memory_format=self._layout)
        return (images.float() - self._mean) / self._std


def evaluation_transform(input_size: tuple[int, int, int], crop_pct: float, interpolation: str) -> Transform:
    """Resize in proportion to cover ``H / crop_pct`` by ``W / crop_pct``, rounded down, and cut the centre (timm's)."""
    from timm.data import create_transform

    resize_and_crop = create_transform(input_size, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
    return transforms.Compose([_convert(input_size[0]), resize_and_crop])


def training_transform(augment: AugmentRecipe, input_size: tuple[int, int, int], interpolation: str) -> Transform:
    """The recipe's random transform; draws from the global generators, which the caller seeds per sample."""
    channels, *size = input_size
    mode = InterpolationMode(interpolation)
    steps: list[Callable] = [_convert(channels)]
    if augment.crop == "resized":
        steps.append(transforms.RandomResizedCrop(size, augment.scale, augment.ratio, interpolation=mode))
    else:
        steps.append(transforms.Resize(size, interpolation=mode))
    if augment.crop == "padded":
        steps.append(transforms.RandomCrop(size, padding=augment.padding))
    if augment.rotation or augment.translate or augment.zoom != (1.0, 1.0):
        shift = (augment.translate, augment.translate)
        steps.append(
            transforms.RandomAffine(augment.rotation, shift, augment.zoom, interpolation=InterpolationMode.BILINEAR)
        )
    if augment.hflip:
        steps.append(transforms.RandomHorizontalFlip(augment.hflip))
    if augment.auto_augment:
        steps.append(_auto_augment(augment.auto_augment, min(size)))
    if augment.color_jitter:
        steps.append(transforms.ColorJitter(*[augment.color_jitter] * 3))
    return transforms.Compose([*steps, transforms.PILToTensor()])


def _convert(channels: int) -> Callable[[Image.Image], Image.Image]:
    """Bring any image (grey, palette, RGBA, CMYK, 16 bit) to the network's channels."""
    if channels not in (1, 3):
        raise InputError(f"images have 1 or 3 channels, the network wants {channels}")
    return methodcaller("convert", "RGB" if channels == 3 else "L")


def _auto_augment(name: str, size: int) -> Callable:
    from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

    build = rand_augment_transform if name.startswith("rand") else auto_augment_transform
    try:
        return build(name, {"translate_const": int(size * 0.45)})
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(f"augment.auto_augment={name!r} is not one of timm's ({error}); try rand-m9-mstd0.5") from None
