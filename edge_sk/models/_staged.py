"""The base of our own networks, a stem, stages and a linear head: what timm expects of a classifier."""

# No postponed annotations here: TorchScript reads those of the class below.
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edge_sk.errors import InputError, whole_number


def conv_bn(inp: int, oup: int, size: int, stride: int = 1, groups: int = 1, *, relu: bool = True) -> list[nn.Module]:
    """A convolution with "same" padding, batch norm, and ReLU behind them."""
    conv = nn.Conv2d(inp, oup, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(oup), *([nn.ReLU(inplace=True)] if relu else [])]


class StagedClassifier(nn.Module):
    """Base of our own networks.

    A subclass registers the modules named in ``stage_names``, in that order, sets ``num_features``,
    ``head_hidden_size`` and ``feature_info`` (timm's terms), and builds the classifier, ``fc``, with
    :meth:`reset_classifier`.

    Args:
        stage_names: The modules, in the order in which they run; the first is the stem.
        global_pool: ``"avg"``, or ``""`` for the feature map.
        drop_rate: Dropout before the classifier.

    The output is ``(N, num_classes)``, without classifier ``(N, num_features)``.
    """

    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]
    default_cfg: dict[str, Any]

    def __init__(self, stage_names: list[str], *, global_pool: str = "avg", drop_rate: float = 0.0) -> None:
        super().__init__()
        self.stage_names = stage_names
        self.global_pool = global_pool
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.fc: nn.Module  # not above: TorchScript cannot read a module's type there

    def get_classifier(self) -> nn.Module:
        """The linear layer, or an identity without classes."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; the new one is on the device and of the dtype of the network's parameters.

        0 classes: none. ``global_pool``: ``None`` leaves the pooling as it is.

        Raises:
            InputError: A negative number, another pooling, or classes without pooling; the network stays as it was.
        """
        num_classes = whole_number("num_classes", num_classes, least=0)
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in ("avg", ""):
            raise InputError(f"global_pool={pool!r} is not known here; use 'avg' or ''")
        if num_classes and not pool:
            raise InputError(f"global_pool='' leaves a map, which {num_classes} classes cannot be read from")
        self.global_pool = pool
        self.num_classes = num_classes
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.fc = head.to(next(self.parameters()))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the stages in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from stem to head, for timm's layer-wise learning rates."""
        blocks = r"^stage(\d+)" if coarse else r"^stage(\d+)\.(\d+)"
        return {"stem": f"^{self.stage_names[0]}", "blocks": blocks}

    def _run(self, name: str, x: Tensor) -> Tensor:
        stage = getattr(self, name)
        if not self.grad_checkpointing or not name.startswith("stage"):
            return stage(x)
        for block in stage:
            x = checkpoint(block, x, use_reentrant=False)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the chosen levels of ``feature_info``; arguments are timm's.

        ``norm`` has no effect (every level is already normalised), ``output_fmt`` is ``"NCHW"``, and ``stop_early``
        needs ``intermediates_only``. Without that, the output of :meth:`forward_features` comes first.
        """
        from timm.models._features import feature_take_indices

        if output_fmt != "NCHW":
            raise InputError(f"output_fmt={output_fmt!r} is not offered; use 'NCHW'")
        if stop_early and not intermediates_only:
            raise InputError("stop_early leaves no last features: pass intermediates_only=True with it")
        levels = [info["module"] for info in self.feature_info]
        take, last = feature_take_indices(len(levels), indices)
        wanted = [levels[index] for index in take]
        intermediates: list[Tensor] = []
        for name in self.stage_names:
            x = self._run(name, x)
            if name in wanted:
                intermediates.append(x)
            if stop_early and name == levels[last]:
                break
        return intermediates if intermediates_only else (x, intermediates)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, ``(N, num_features, H', W')``."""
        # TorchScript can only go through children.
        for name, stage in self.named_children():
            if name in self.stage_names:
                x = stage(x) if torch.jit.is_scripting() else self._run(name, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the last feature map; with ``pre_logits`` the input of the classifier."""
        if self.global_pool == "avg":
            x = x.mean((2, 3))
        if self.drop_rate > 0.0:
            x = nn.functional.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.forward_head(self.forward_features(x))
