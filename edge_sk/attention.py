"""Record the attention of selective-kernel units, and measure how it depends on the scale of the object.

Li et al., *Selective Kernel Networks*, CVPR 2019, Sec. 4.5: their Figure 3 enlarges the object in the image and plots
the attention for the larger kernel; their Figure 4 does so per class.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edge_sk.errors import InputError
from edge_sk.running import evaluating
from edge_sk.selective_kernel import SelectiveKernel

T = TypeVar("T")


def gated_units(model: nn.Module) -> dict[str, SelectiveKernel]:
    """Return the units of ``model`` that have a gate by name, in the order of ``named_modules`` (in the zoo, by depth).

    Raises:
        InputError: There is none.
    """
    units = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SelectiveKernel) and module.gate is not None
    }
    if not units:
        raise InputError(
            "the network has no selective kernels that select: take an sk_ or sknet name, or a grafted network, "
            "before reparameterize()"
        )
    return units


@contextlib.contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While entered, every forward pass of ``model`` puts its attention into the dictionary.

    Yields:
        Name of the unit to the attention of the latest forward pass, ``(N, M, C)``, summing to 1 over the ``M``
        branches.

    Raises:
        InputError: The network has no unit that selects.

    Example:
        >>> import edge_sk
        >>> model = edge_sk.create_model("sk_shufflenetv2_0.5").eval()
        >>> with record_attention(model) as attention:
        ...     _ = model(torch.zeros(2, 3, 64, 64))
        >>> attention["stage2.1.branch2.3"].shape
        torch.Size([2, 2, 24])
    """
    gates = {name: unit.gate for name, unit in gated_units(model).items() if unit.gate is not None}
    with _recording(gates, lambda attention: attention.detach().flatten(2)) as recorded:
        yield recorded


@contextlib.contextmanager
def _recording(modules: Mapping[str, nn.Module], read: Callable[[Tensor], T]) -> Iterator[dict[str, T]]:
    """While entered, every forward pass puts ``read(output)`` of each module into the dictionary."""
    recorded: dict[str, T] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: recorded.update({name: read(output)})

    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        yield recorded


def kernel_pair(unit: SelectiveKernel) -> tuple[int, int]:
    """Return the positions of the branches of smallest and largest extent; the first and the last if all are equal."""
    order = sorted(range(len(unit.kernels)), key=lambda branch: unit.kernels[branch].extent)
    return order[0], order[-1]


@dataclass(frozen=True)
class ScaleAttention:
    """Attention for the largest kernel minus that for the smallest, over images of several scales.

    Axes: ``S`` scales, ``N`` images, ``U`` units, ``K`` classes, ``C`` channels of a unit.
    """

    scales: tuple[float, ...]
    units: tuple[str, ...]
    kernels: tuple[tuple[str, str], ...]
    """Smallest and largest kernel of each unit."""
    branches: tuple[int, ...]
    """``M`` of each unit."""
    maps: tuple[tuple[int, int], ...]
    """``(H, W)`` of each unit's output. On a small map most taps of a large kernel fall outside."""
    by_image: Tensor
    """``(S, N, U)``, mean over channels."""
    by_class: Tensor
    """``(S, K, U)``, mean over channels and images; NaN for a class without images."""
    by_channel: tuple[Tensor, ...]
    """For each unit ``(S, C)``, mean over images."""
    larger_by_channel: tuple[Tensor, ...]
    """For each unit ``(S, C)``: the attention for the largest kernel alone, mean over images."""


def attention_against_scale(
    model: nn.Module,
    batches: Mapping[float, Iterable[tuple[Tensor, Tensor]]],
    normalize: Callable[[Tensor], Tensor],
    *,
    num_classes: int,
) -> ScaleAttention:
    """Record the attention on the same images at several scales.

    Args:
        model: Any network with selective kernels. It runs in evaluation mode; afterwards its mode is restored.
        batches: Images and labels by scale: the same images in the same order at every scale.
        normalize: Turns images of ``batches`` into the network's input.
        num_classes: ``K``.

    Raises:
        InputError: No unit selects, there are no images, a label is not a class, or the labels differ between scales.
    """
    units = gated_units(model)
    pairs = {name: kernel_pair(unit) for name, unit in units.items()}
    if not batches:
        raise InputError("there is no scale to record attention at")
    first_labels, by_image, by_class = None, [], []
    channels: dict[str, list[Tensor]] = {name: [] for name in units}  # of each scale, (M, C)
    with (
        evaluating(model),
        record_attention(model) as attention,
        _recording(units, lambda output: (output.shape[2], output.shape[3])) as maps,
    ):
        for scale, scale_batches in batches.items():
            labels, parts = list[Tensor](), list[Tensor]()
            sums: dict[str, Tensor] = {}
            for images, batch_labels in scale_batches:
                labels.append(_checked(batch_labels.cpu(), num_classes))
                model(normalize(images))
                weights = {name: attention[name].cpu().double() for name in units}  # mps has no float64
                gaps = [
                    (weights[name][:, large] - weights[name][:, small]).mean(1)
                    for name, (small, large) in pairs.items()
                ]
                parts.append(torch.stack(gaps, 1))
                sums = {name: sums.get(name, 0) + weights[name].sum(0) for name in units}
            if not labels:
                raise InputError("there are no images to record attention on")
            targets, values = torch.cat(labels), torch.cat(parts)
            if first_labels is not None and not torch.equal(targets, first_labels):
                raise InputError(
                    f"scale {scale} holds other images than the first scale: the shift would not be paired"
                )
            first_labels = targets
            by_image.append(values)
            by_class.append(_mean_by_class(values, targets, num_classes))
            for name in units:
                channels[name].append(sums[name] / len(targets))
    means = {name: torch.stack(rows) for name, rows in channels.items()}  # (S, M, C)
    return ScaleAttention(
        scales=tuple(batches),
        units=tuple(units),
        kernels=tuple(
            (str(units[name].kernels[small]), str(units[name].kernels[large])) for name, (small, large) in pairs.items()
        ),
        branches=tuple(len(unit.kernels) for unit in units.values()),
        maps=tuple(maps[name] for name in units),
        by_image=torch.stack(by_image),
        by_class=torch.stack(by_class),
        by_channel=tuple(means[name][:, large] - means[name][:, small] for name, (small, large) in pairs.items()),
        larger_by_channel=tuple(means[name][:, large] for name, (_, large) in pairs.items()),
    )


def _checked(labels: Tensor, num_classes: int) -> Tensor:
    for extreme in (int(labels.min()), int(labels.max())):
        if not 0 <= extreme < num_classes:
            raise InputError(
                f"an image is of class {extreme}, the network knows {num_classes} classes (0 and up): "
                "give the data that it was trained on"
            )
    return labels


def _mean_by_class(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    sums = torch.zeros(num_classes, values.shape[1], dtype=values.dtype).index_add_(0, labels, values)
    counts = torch.bincount(labels, minlength=num_classes)
    return sums / counts[:, None]
