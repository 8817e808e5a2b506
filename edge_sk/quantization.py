"""int8 for XNNPACK, by PT2E: its quantizer, and a network that is trained with the rounding of its int8 file."""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from edge_sk import running
from edge_sk.errors import InputError, require
from edge_sk.rewriting import Rewrites, reparameterize
from edge_sk.rewriting.normalize import Normalize
from edge_sk.stderr import capture_stderr

# XNNPACK's own quantizer bounds the step of an activation that hardly varies by the same value.
SMALLEST_STEP = 2**-12
# Share of a new range in the moving average, as of a batch norm. With torchao's 0.01 a short training clips what grows.
MOMENTUM = 0.1


def pt2e(module: str = "") -> Any:
    """Import ``torchao.quantization.pt2e`` or a module of it.

    Raises:
        InputError: It is not installed.
    """
    with capture_stderr():
        return require(f"torchao.quantization.pt2e{module}", extra="executorch", needed_for="int8")


def xnnpack_quantizer(activation: Any, weight: Any = None) -> Any:
    """XNNPACK's quantizer: static int8, weights symmetric and per channel.

    ``activation`` and ``weight`` make what observes or rounds them; ``None`` stands for the quantizer's own.
    """
    with capture_stderr():
        quantizer = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
        xnnpack = require(quantizer, extra="executorch", needed_for="int8")
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    observed = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=activation)
    config = dataclasses.replace(config, input_activation=observed, output_activation=observed)
    if weight is not None:
        weights = dataclasses.replace(config.weight, observer_or_fake_quant_ctr=weight)
        config = dataclasses.replace(config, weight=weights)
    return xnnpack.XNNPACKQuantizer().set_global(config)


class FakeQuantized(nn.Module):
    """A network in the form that its int8 file has, trained and evaluated with that file's rounding.

    Batch norms are folded, dropout is gone. The ranges of weights and activations, from which scales and zero points
    follow, are buffers. In training mode they follow what they see: a weight's at once, an activation's as a moving
    average.

    Args:
        model: A trained network; it is not changed.
        input_size: ``(C, H, W)``.
        mean: Per channel, of images in [0, 1].
        std: Per channel.

    Shape:
        - Input: ``(N, C, H, W)``, in [0, 1]: mean and standard deviation are inside

    Raises:
        InputError: The network cannot be exported for batches of any size, or ExecuTorch is not installed.
    """

    def __init__(
        self, model: nn.Module, input_size: tuple[int, int, int], *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        observers = pt2e()
        # torchao's fused class would round in training by another formula than convert_pt2e.
        average = observers.MovingAverageMinMaxObserver.with_args(averaging_constant=MOMENTUM)
        activation = observers.FakeQuantize.with_args(observer=average, eps=SMALLEST_STEP)
        per_channel = observers.MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1.0)
        weight = observers.FakeQuantize.with_args(observer=per_channel, eps=SMALLEST_STEP)
        quantizer = xnnpack_quantizer(activation, weight)
        whole = nn.Sequential(collections.OrderedDict(normalize=Normalize(mean, std), network=model)).eval()
        images = running.random_images(whole, (2, *input_size))
        rewritten = reparameterize(whole, images)
        self.rewrites: Rewrites = rewritten.reparameterized  # type: ignore[assignment]
        inside = {"mean": (0.0,) * input_size[0], "std": (1.0,) * input_size[0], "input_size": input_size}
        self.default_cfg = self.pretrained_cfg = running.default_cfg(model) | inside
        try:
            with capture_stderr():
                exported = torch.export.export(rewritten, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
                self.graph: Any = pt2e(".quantize_pt2e").prepare_qat_pt2e(
                    exported.module(check_guards=False), quantizer
                )
        except Exception as error:  # torch.export's own, and those of the model's code
            raise InputError(
                f"{type(model).__name__} cannot be trained with quantization.qat=true: torch.export says "
                f"{running.first_line(error)}; rewrite the module that branches on its data"
            ) from error
        # torchao's refuse. No operator in the graph has a mode.
        del self.graph.train, self.graph.eval
        # Values of one range share its module, under several names: keep the first.
        names: dict[nn.Module, str] = {module: name for name, module in self.graph.named_modules()}
        for node in self.graph.graph.find_nodes(op="call_module"):
            node.target = names[self.graph.get_submodule(node.target)]
        for name, module in [*self.graph.named_modules(remove_duplicate=False)]:
            if name != names[module]:
                self.graph.delete_submodule(name)
        self.graph.recompile()
        self.train().requires_grad_(True)
        with torch.no_grad():
            self(images)  # gives the weights their ranges, and these their shapes
        for part in self.graph.modules():
            if isinstance(part, observers.MovingAverageMinMaxObserver):
                part.reset_min_max_vals()

    def forward(self, images: Tensor) -> Any:
        """What the network returns."""
        for name, buffer in self.graph.named_buffers():
            if name.endswith(".observer_enabled"):
                buffer.fill_(self.training)
        return self.graph(images)

    def converted(self) -> fx.GraphModule:
        """The graph with quantize and dequantize operators in place of the rounding, ready for ``torch.export``."""
        with capture_stderr():
            graph = pt2e(".quantize_pt2e").convert_pt2e(copy.deepcopy(self.graph))
        del graph.train, graph.eval  # as above
        return graph
