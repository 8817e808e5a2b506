"""Small modules as users write them: each does something that a careless rewrite gets wrong."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import edge_sk

MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {}
"""From a name to what builds the module and arguments for it."""


class Code(nn.Module):
    """A module whose forward is a function of itself and the arguments."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def maps(*shape: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randn(shape or (2, 8, 9, 9)),)


def add(name: str, build: Callable[[], nn.Module], arguments: Callable[[], tuple[Any, ...]] | None = None) -> None:
    assert name not in MODULES, name
    MODULES[name] = build, arguments or maps()


def code(name: str, function: Callable[..., Any], *shape: int, **parts: Callable[[], Any]) -> None:
    """A module of one line; parts are built anew each time."""
    add(name, lambda: Code(function, **{key: part() for key, part in parts.items()}), maps(*shape))


def conv(inputs: int = 8, outputs: int = 8, size: int = 1, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(inputs, outputs, size, **options)


def norm(channels: int = 8, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm2d(channels, **options)


# Shuffles and the weights around them


def _tied(self: Any, x: Tensor) -> Tensor:
    return self.b(self.shuffle(self.a(x)))


def _tied_convolutions() -> nn.Module:
    model = Code(_tied, a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 8, 1), shuffle=nn.ChannelShuffle(2))
    model.b.weight = model.a.weight
    return model


add("two convolutions share a weight around a shuffle", _tied_convolutions)
code(
    "one convolution on both sides of a shuffle",
    lambda m, x: m.a(m.s(m.a(x))),
    a=conv(),
    s=lambda: nn.ChannelShuffle(2),
)
code(
    "weight read beside a shuffle",
    lambda m, x: m.b(m.s(m.a(x))) + F.conv2d(x, m.b.weight),
    a=conv(), b=conv(), s=lambda: nn.ChannelShuffle(4),
)  # fmt: skip
code(
    "PReLU per channel behind a shuffle",
    lambda m, x: m.b(m.act(m.s(m.a(x)))),
    a=conv(), b=conv(), s=lambda: nn.ChannelShuffle(2), act=lambda: nn.PReLU(8, init=0.3),
)  # fmt: skip
code(
    "clamp by a tensor behind a shuffle",
    lambda m, x: m.b(torch.clamp(m.s(m.a(x)), m.low)),
    a=conv(), b=conv(), s=lambda: nn.ChannelShuffle(2), low=lambda: nn.Parameter(torch.rand(8, 1, 1)),
)  # fmt: skip
code("shuffle of sequences", lambda m, x: m.b(torch.channel_shuffle(m.a(x), 2)), 2, 8, 12,
     a=lambda: nn.Conv1d(8, 8, 1), b=lambda: nn.Conv1d(8, 8, 1))  # fmt: skip
code(
    "halves joined in another order",
    lambda m, x: m.c(torch.channel_shuffle(torch.cat(m.a(x).chunk(2, 1)[::-1], 1), 2)),
    a=conv(), c=conv(),
)  # fmt: skip
code(
    "shuffle, then a norm",
    lambda m, x: m.b(m.n(torch.channel_shuffle(m.a(x), 2))), a=conv(), b=conv(), n=norm(),
)  # fmt: skip
code(
    "shuffle between depthwise convolutions",
    lambda m, x: m.b(m.d(torch.relu(torch.channel_shuffle(m.a(x), groups=4)))),
    a=conv(), b=conv(), d=conv(8, 8, 3, groups=8),
)  # fmt: skip
code("cat along rows", lambda m, x: m.b(torch.channel_shuffle(torch.cat((m.a(x), m.a(x)), 2), 2)), a=conv(), b=conv())

# Splits

code("split by half the channels", lambda m, x: torch.cat(x.split(x.shape[1] // 2, 1)[::-1], 1))
code(
    "split at the channels",
    lambda m, x: torch.cat(x.split([x.shape[1] // 4, x.shape[1] - x.shape[1] // 4], 1)[::-1], 1),
)


def _split_by_size(self: Any, x: Tensor) -> Tensor:
    first, second = x.split(x.shape[1] // 2, 1)
    return first - 2 * second


def _split_by_list(self: Any, x: Tensor) -> Tensor:
    first, second = x.split([x.size(1) // 4, x.size(1) - x.size(1) // 4], dim=1)
    return torch.cat((second, first), 1)


def _named_chunk(self: Any, x: Tensor) -> Tensor:
    first, second = torch.chunk(input=x, chunks=2, dim=1)
    return first - second


def _chunks_everywhere(self: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    c, d = torch.split(x, 5, dim=-2)
    (e, *_) = x.chunk(3, 1)
    return a[..., :4].sum((1, 2)) + b.sum((1, 2)) - c.sum((1, 2))[..., :4] + d.sum((1, 2))[..., :4] * e.sum()


def _uneven(self: Any, x: Tensor) -> Tensor:
    a, b, c = torch.split(x, split_size_or_sections=3, dim=1)
    return torch.cat((c, b, a), 1)


def _batch(self: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2)
    return a - b


code("unpacked split by size", _split_by_size)
code("unpacked split by list", _split_by_list)
code("chunk by names", _named_chunk)
code("chunks along every axis", _chunks_everywhere)
code("uneven split", _uneven)
code("chunk of the batch", _batch, 4, 3, 5, 5)
code("last chunk", lambda m, x: x.chunk(4, 1)[-1])
code("slice of chunks", lambda m, x: torch.cat(x.chunk(4, 1)[1:3], 1))
code("chunks of whole numbers", lambda m, x: (x * 8).long().chunk(2, 1)[0])
code("a piece that is written into", lambda m, x: x.clone().chunk(2, 1)[0].add_(1))

# Means and maxima of other ranks and types

code("mean of groups, axes kept", lambda m, x: x - x.mean((-2, -1), keepdim=True), 2, 3, 4, 5, 5)
code("mean of groups", lambda m, x: x.mean((-2, -1)), 2, 3, 4, 5, 5)
code("mean of groups (2, 3)", lambda m, x: x.mean((2, 3)), 2, 3, 4, 5, 5)
code("mean of tokens", lambda m, x: x.mean((1, 2)) + x.mean([-1, -2]), 2, 6, 8)
code("mean of one image", lambda m, x: x.mean((-2, -1), keepdim=True) + x.mean(1, keepdim=True), 3, 9, 9)
code("mean in another type", lambda m, x: x.mean((2, 3), dtype=torch.float64))
code("mean over channels in another type", lambda m, x: torch.mean(x, 1, True, dtype=torch.float64))
code("mean by names", lambda m, x: torch.mean(input=x, dim=(2, 3), keepdim=False))
code("mean over one axis", lambda m, x: x.mean(3).mean(2) + x.mean((1, 2, 3), keepdim=True).flatten(1))
code(
    "maximum of whole numbers",
    lambda m, x: (x * 8).long().amax((2, 3), keepdim=True) + (x * 8).int().amax(1, keepdim=True),
)
code("maximum of groups", lambda m, x: x.amax((2, 3), keepdim=True) + x.amax(1, keepdim=True), 2, 3, 4, 5, 5)
code("maximum of sequences", lambda m, x: x.amax(1, keepdim=True), 2, 3, 7)
code(
    "pooling of every kind", lambda m, x: x.amax((-1, 2), keepdim=True) * x.mean(-3, keepdim=True) + x.amax(1)[:, None]
)
code("average pooling of one image", lambda m, x: m.pool(x), 3, 9, 9, pool=lambda: nn.AvgPool2d(3, 2, 1))
code("average pooling with ceiling", lambda m, x: m.pool(x), pool=lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True))
code(
    "one average pooling twice",
    lambda m, x: m.pool(m.pool(x)),
    pool=lambda: nn.AvgPool2d(3, 2, (0, 1), divisor_override=4),
)

# Whole numbers

code("argmax plus one", lambda m, x: x.argmax(1) + 1)
code("argmax as an index", lambda m, x: m.table((x.argmax(1) + 1) * 2 - 1), table=lambda: nn.Embedding(16, 4))
code("comparisons plus one", lambda m, x: ((x > 0) + 1) * 2 - (x > 1).int())
code(
    "whole numbers divided",
    lambda m, x: ((x * 8).long() / 2, (x * 8).int().div(3), (x * 8).long() // 2, (x * 8).long() * 3),
)
code("numbers on every side", lambda m, x: (1 - (x + 3) * 2).sub(1).mul(3) / 4 + torch.add(x, 2, alpha=3))
code("division with a floor", lambda m, x: torch.div(x, 2, rounding_mode="floor"))
code(
    "arithmetic with sizes",
    lambda m, x: (x * x.shape[1] / x.shape[-1]).reshape(x.shape[0], x.shape[1] // 2 * 2, -1) + x.dim(),
)
code(
    "tokens", lambda m, x: m.table(x.abs().mul(3).long().clamp(max=15)).mean(1), 2, 6, table=lambda: nn.Embedding(16, 4)
)
code("a power and a remainder", lambda m, x: x**2 + x % 2 + 2 ** x.clamp(max=2))

# Batch norm


class _Frozen(nn.Module):
    """Batch norm that counts only what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3), BatchNormAct2d(8, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


add("norm with activation, without statistics", _Frozen)
code("norm with activation", lambda m, x: m.n(m.a(x)), a=conv(), n=lambda: BatchNormAct2d(8, act_layer=nn.SiLU))
code("norm with activation, twice", lambda m, x: m.n(m.a(x)) + m.n(x), a=conv(), n=lambda: BatchNormAct2d(8))
code("norm without statistics", lambda m, x: m.n(m.a(x)), a=conv(), n=norm(track_running_stats=False))
code("norm without weights", lambda m, x: m.n(m.a(x)), a=conv(8, 8, 3, groups=4), n=norm(affine=False, eps=0.1))
code("norm of a convolution that others read", lambda m, x: m.n(y := m.a(x)) + y, a=conv(), n=norm())
code("convolution called twice", lambda m, x: m.n(m.a(x)) + m.a(x), a=conv(), n=norm())
code("norm called twice", lambda m, x: m.n(m.a(x)) + m.n(m.b(x)), a=conv(), b=conv(), n=norm())
code("norm behind reflection", lambda m, x: m.n(m.a(x)), a=conv(8, 8, 3, padding=1, padding_mode="reflect"), n=norm())
code(
    "norm behind a transposed convolution", lambda m, x: m.n(m.a(x)), a=lambda: nn.ConvTranspose2d(8, 8, 2, 2), n=norm()
)
code("norm of sequences", lambda m, x: m.n(m.a(x)), 2, 8, 9, a=lambda: nn.Conv1d(8, 8, 1), n=lambda: nn.BatchNorm1d(8))
code(
    "norm of volumes",
    lambda m, x: m.n(m.a(x)),
    2,
    8,
    3,
    4,
    4,
    a=lambda: nn.Conv3d(8, 8, 1),
    n=lambda: nn.BatchNorm3d(8),
)
code("norm by name", lambda m, x: m.n(input=m.a(input=x)), a=conv(), n=norm())
code(
    "norm of a parametrized convolution",
    lambda m, x: m.n(m.a(x)),
    a=lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
    n=norm(),
)


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Identity())
    model[0].register_forward_hook(lambda module, inputs, output: torch.mul(output, 2))
    model[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    model[2].register_forward_hook(lambda module, inputs, output: -output)
    return model


def _hooked_root() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    model.register_forward_hook(lambda module, inputs, output: torch.mul(output, 2))
    return model


add("hooks that change values", _hooked)
add("a hook on the network", _hooked_root)
add("a convolution alone", lambda: nn.Conv2d(8, 8, 1))

# Names


class _Child(nn.Module):
    """Children and arguments named like methods."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse, self.reparameterize, self.switch_to_deploy = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.mean, self.chunk, self.add = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.size = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, split: Tensor) -> Tensor:
        return self.add(self.chunk(self.mean(self.switch_to_deploy(self.reparameterize(self.fuse(split)))))) * self.size


class _Variational(nn.Module):
    """A method of a known name with another meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.spread = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def reparameterize(self, mu: Tensor, spread: Tensor) -> Tensor:
        return mu + spread.exp()

    def forward(self, mean: Tensor) -> Tensor:
        return self.reparameterize(self.mu(mean), self.spread(mean))


class _OwnFuse(nn.Module):
    """Brings a fuse: one in place, one that is wrong, one that returns something else, one that fails halfway."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def fuse(self) -> Any:
        if self.kind == "other":
            return {"conv": self.conv}
        self.conv = nn.utils.fuse_conv_bn_eval(self.conv, self.bn)
        if self.kind == "fails":
            raise ValueError("halfway")
        self.bn = nn.Identity()  # type: ignore[assignment]
        if self.kind == "wrong":
            return nn.Sequential(self.conv, nn.ReLU())
        return None

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class HardSigmoid(nn.Module):
    """Keras' hard sigmoid: another slope."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(0.2 * x + 0.5, 0, 1)


@torch.fx.wrap
def hard_sigmoid(x: Tensor) -> Tensor:
    return torch.clamp(0.2 * x + 0.5, 0, 1)


add("children named like methods", _Child)
add("a variational network's reparameterize", _Variational)
for kind in ("in place", "wrong", "other", "fails"):
    add(f"an own fuse: {kind}", lambda kind=kind: _OwnFuse(kind))
    add(f"a child's own fuse: {kind}", lambda kind=kind: nn.Sequential(_OwnFuse(kind), nn.ReLU(), _OwnFuse(kind)))
code("another hard sigmoid", lambda m, x: m.h(x) + hard_sigmoid(x), h=HardSigmoid)
code("hard sigmoids", lambda m, x: m.h(x) + F.hardsigmoid(x) * F.hardsigmoid(input=x), h=nn.Hardsigmoid)

# Writing in place and randomness


def _statements(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.add_(1)
    self.act(y)
    y[:, 0] = 0
    torch.relu_(y[:, 1:2])
    F.relu(y[:, 2:3], inplace=True)
    return y


def _reads_again(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    gate = F.hardsigmoid(y, inplace=True)
    return self.act(gate) + y


def _into_the_input(self: Any, x: Tensor) -> Tensor:
    x += 1
    return self.bn(self.conv(x.mul_(2)))


code("statements that write", _statements, conv=conv(), act=lambda: nn.ReLU6(inplace=True))
code("a gate that writes", _reads_again, conv=conv(), act=lambda: nn.Hardsigmoid(inplace=True))
code("writing into the input", _into_the_input, conv=conv(), bn=norm())
code("a child that writes into its input", lambda m, x: m.child(y := m.conv(x)) + y, conv=conv(),
     child=lambda: Code(_into_the_input, conv=nn.Conv2d(8, 8, 1), bn=nn.BatchNorm2d(8)))  # fmt: skip
code("dropout that stays on", lambda m, x: F.dropout(m.conv(x), 0.5), conv=conv())
code("dropout that is off", lambda m, x: F.dropout(m.d(m.conv(x)), 0.5, m.training), conv=conv(), d=nn.Dropout2d)
code("noise", lambda m, x: m.bn(m.conv(x)) + torch.randn_like(x), conv=conv(), bn=norm())

# Arguments


class _Mask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, *, flat: bool = False) -> Tensor:
        x = self.bn(self.conv(x)) * scale
        if mask is not None:
            x = x * mask
        return x.flatten(1) if flat else x


class _Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([self.bn(self.conv(x)) for x in inputs], 1)


class _Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, levels: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        return {"low": self.bn(self.conv(levels["maps"][0])), "high": levels["maps"][1]}


class _Caller(nn.Module):
    """Cannot be traced, and calls its child with and without an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.child = _Mask()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return self.child(x, mask=x > 0, flat=True) + self.child(x, None, 3.0).flatten(1)


add("an optional mask, not given", _Mask)
add("an optional mask, given", _Mask, lambda: (torch.randn(2, 8, 5, 5), torch.randn(1, 8, 1, 1), 3.0))
add("any number of inputs", _Several, lambda: (torch.randn(2, 8, 5, 5), torch.randn(2, 8, 5, 5)))
add("a structure of inputs", _Pyramid, lambda: ({"maps": [torch.randn(2, 8, 5, 5), torch.randn(2, 8, 3, 3)]},))
add("a child called in two ways", _Caller)

# Outputs


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclasses.dataclass
class Answer:
    logits: Tensor
    extra: Any = None


code("a named tuple", lambda m, x: Pair(m.bn(m.conv(x)), [x.mean(), None]), conv=conv(), bn=norm())
code("a data class", lambda m, x: Answer(m.bn(m.conv(x)), {"shape": tuple(x.shape)}), conv=conv(), bn=norm())
code(
    "an ordered dictionary", lambda m, x: collections.OrderedDict(out=m.bn(m.conv(x)), aux=[x]), conv=conv(), bn=norm()
)
code("a dictionary of tuples", lambda m, x: {"a": (m.bn(m.conv(x)), 3), "b": "text"}, conv=conv(), bn=norm())
code("values and indices", lambda m, x: (m.conv(x).max(1), x.flatten(1).topk(3)), conv=conv())
code("the input itself", lambda m, x: (x, x, m.conv(x)), conv=conv())
code("an empty tensor", lambda m, x: (x[:, :0], m.bn(m.conv(x))), conv=conv(), bn=norm())
code("values that are not finite", lambda m, x: (m.bn(m.conv(x)), x.log(), x / 0), conv=conv(), bn=norm())
code(
    "complex values", lambda m, x: torch.view_as_complex(torch.stack((m.bn(m.conv(x)), x), -1)), conv=conv(), bn=norm()
)
code("a network that only chooses", lambda m, x: m.bn(m.conv(x)).argmax(1), conv=conv(), bn=norm())

# Python


class _Stateful(nn.Module):
    """Keeps its last features, and asks for its own shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.register_buffer("seen", torch.zeros(()))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.bn(self.conv(x))
        return self.last.clone()


class _Counting(_Stateful):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return self.bn(self.conv(x))


class _Attributes(nn.Module):
    """Reads attributes and parameters of children that it also calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.body.factor = 3  # type: ignore[assignment]
        self.levels = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        if float(x.mean()) > 1e9:
            return x
        y = self.body(x) * self.body.factor + self.body[0].weight.sum()  # type: ignore[operator, index]
        for level in self.levels:
            y = level(y)
        return y


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else -self.inner(-x)


class _LargeMaps(nn.Module):
    """Takes a child apart on larger maps than the example's."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.unit(x)
        return y + self.unit[0](x) if x.shape[-1] > 100 else y


class _Accumulating(nn.Module):
    """Keeps features between calls, without a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).mean((0, 2, 3))
        y = y if self.kept is None else 0.5 * self.kept + 0.5 * y
        self.kept = y
        return y


class _StaysInTraining(nn.Module):
    """Monte Carlo dropout: eval mode leaves it on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5)

    def train(self, mode: bool = True) -> _StaysInTraining:
        super().train(mode)
        self.drop.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.bn(self.conv(x)))


def _through_a_view(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    v = y[:, :4]
    v -= (v - 3).clamp(min=0)
    torch.clamp(y, max=5, out=y)
    return y


def _masked(self: Any, x: Tensor) -> Tensor:
    keep = torch.ones(8)
    keep.index_fill_(0, x.mean((0, 2, 3)).topk(2).indices, 0.0)
    return self.bn(self.conv(x)) * keep.view(1, -1, 1, 1).to(x)


def _by_kind(self: Any, x: Tensor) -> Tensor:
    if isinstance(x, Tensor) and x.abs().max() > 12:
        x = x / 255
    return self.bn(self.conv(x))


def _wide_gate(self: Any, x: Tensor) -> Tensor:
    g = x.amax((2, 3), keepdim=True)
    return x + F.relu(g, inplace=True)


add("another branch takes a child apart", _LargeMaps)
add("features kept between calls", _Accumulating)
add("dropout that eval leaves on", _StaysInTraining)
code("writing through a view", _through_a_view, conv=conv())
code("writing into a tensor made on the way", _masked, conv=conv(), bn=norm())
code("large values scaled", _by_kind, conv=conv(), bn=norm())
code("sizes in a set", lambda m, x: m.bn(m.conv(x)) * (2 if x.shape[-1] in {14, 16} else 1), conv=conv(), bn=norm())
code("a maximum that is written into", _wide_gate)
code("names that a step would use", lambda m, x: m.bn_act(m.bn(m.conv(x))), conv=conv(), bn=lambda: BatchNormAct2d(8),
     bn_act=nn.ReLU6)  # fmt: skip
code(
    "control flow by shape",
    lambda m, x: m.bn(m.conv(x)) if x.shape[0] > 1 else -m.bn(m.conv(x)),
    conv=conv(),
    bn=norm(),
)
add("control flow by values", _Branches)
add("features kept", _Stateful)
add("a counter", _Counting)
add("attributes of children", _Attributes)
code("functions as attributes", lambda m, x: m.act(m.pool(m.bn(m.conv(x)))), conv=conv(), bn=norm(),
     act=lambda: F.relu, pool=lambda: functools.partial(F.avg_pool2d, kernel_size=2))  # fmt: skip
code(
    "a checkpoint",
    lambda m, x: checkpoint(m.body, x, use_reentrant=False),
    body=lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)),
)
code("modules in a dictionary", lambda m, x: sum(m.d[key](x) for key in m.d),
     d=lambda: nn.ModuleDict({k: nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)) for k in "ab"}))  # fmt: skip
code(
    "one block three times",
    lambda m, x: m.b(m.b(m.b(x))),
    b=lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
)
code(
    "a sum over positions",
    lambda m, x: torch.einsum("nchw,c->nhw", m.conv(x), torch.arange(8, dtype=x.dtype)),
    conv=conv(),
)
code(
    "constants made on the way",
    lambda m, x: m.conv(x) + torch.ones(8, 1, 1, dtype=x.dtype) + x.new_zeros(x.shape),
    conv=conv(),
)
code("recurrence", lambda m, x: m.gru(x)[0].mean(1), 2, 6, 8, gru=lambda: nn.GRU(8, 4, batch_first=True))
code("attention", lambda m, x: m.att(x, x, x)[0], 2, 6, 8, att=lambda: nn.MultiheadAttention(8, 2, batch_first=True))


class _Slots(nn.Module):
    """Returns objects that are compared by their fields, or not at all."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return Slotted(y) if self.kind == "slots" else y.shape if self.kind == "shape" else [y, ...]


@dataclasses.dataclass(slots=True)
class Slotted:
    logits: Tensor


for kind in ("slots", "shape", "ellipsis"):
    add(f"outputs of other kinds: {kind}", lambda kind=kind: _Slots(kind))
add("a list of images", lambda: _ListOfImages(), lambda: ([torch.randn(8, 5, 5), torch.randn(8, 7, 6)],))
add("data parallel", lambda: nn.DataParallel(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))))


class _ListOfImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [self.body(image[None]) for image in images]


# Selective kernels


def _unit(**options: Any) -> nn.Module:
    unit = edge_sk.SelectiveKernel(8, 8, groups=8, **options)
    nn.init.normal_(unit.gate.expand.weight)
    return unit


def _changed_unit() -> nn.Module:
    unit = _unit()
    unit.branches[0].add_module("scale", Code(lambda m, x: 2 * x))
    return unit


def _other_norm() -> nn.Module:
    unit = _unit()
    unit.branches[0].bn = nn.GroupNorm(2, 8)
    return unit


def _shuffled_units(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 1), nn.ChannelShuffle(2), _unit(**options), nn.Conv2d(8, 8, 1))


add("a selective kernel", _unit)
add("a branch of four modules", _changed_unit)
add("a branch with another norm", _other_norm)
add("a selective kernel behind a shuffle", _shuffled_units)
add("PReLU per channel in branches behind a shuffle", lambda: _shuffled_units(act_layer=nn.PReLU))


class _TwoInputs(nn.Module):
    """A unit and a module with a fuse of its own, in a network of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.unit, self.own = _unit(), _OwnFuse("in place")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.unit(x) + self.own(y)


class _ReadsABranch(nn.Module):
    """One unit is called, of the other a branch is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = _unit(), _unit()

    def forward(self, x: Tensor) -> Tensor:
        return self.a.branches[0](x) + self.b(x)


add("two inputs to a unit and an own fuse", _TwoInputs, lambda: (torch.randn(2, 8, 5, 5), torch.randn(2, 8, 5, 5)))
add("a branch called by itself", _ReadsABranch)
code("one selective kernel twice", lambda m, x: m.unit(m.unit(x)), unit=_unit)
