r"""The selective-kernel unit: convolutions of several sizes, mixed per channel by weights computed from the input.

Li et al., *Selective Kernel Networks*, CVPR 2019, https://arxiv.org/abs/1903.06586, Sec. 3.1.

Letters are the paper's: ``M`` branches, ``G`` groups, ``r`` reduction, ``L`` minimum width of the gate.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edge_sk.dilated import run_branch
from edge_sk.errors import InputError, shown, whole_number
from edge_sk.tracing import is_activation


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The convolution of one branch.

    Args:
        size: Taps per side, odd; of a kernel that is not square, its rows.
        dilation: Distance between taps; a 3x3 of dilation 2 sees 5x5 (the paper's cheap 5x5).
        groups: Groups of this branch; ``None`` takes the unit's.
        columns: Of a kernel that is not square; ``None``: as many as rows.

    Raises:
        InputError: An even size, a value below 1, or a size or dilation above 63.
    """

    size: int = 3
    dilation: int = 1
    groups: int | None = None
    columns: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("size", 63), ("dilation", 63), ("groups", 2**20), ("columns", 63)):
            if name in ("size", "dilation") or getattr(self, name) is not None:
                object.__setattr__(self, name, whole_number(f"kernel {name}", getattr(self, name), most=most))
        if self.columns == self.size:
            object.__setattr__(self, "columns", None)
        for size in self.taps:
            if size % 2 == 0:
                raise InputError(f"kernel size {size} is even: branches must align, use 1, 3, 5, 7, ...")

    @property
    def taps(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.size, self.columns or self.size

    @property
    def extents(self) -> tuple[int, int]:
        """Height and width in pixels that the kernel spans."""
        rows, columns = self.taps
        return self.dilation * (rows - 1) + 1, self.dilation * (columns - 1) + 1

    @property
    def extent(self) -> int:
        """Pixels that the kernel spans along its longer side."""
        return max(self.extents)

    def __str__(self) -> str:
        """Write the kernel as :meth:`parse` reads it, for instance ``3d2g64``."""
        dilation = f"d{self.dilation}" if self.dilation > 1 else ""
        columns = f"x{self.columns}" if self.columns else ""
        return f"{self.size}{columns}{dilation}{f'g{self.groups}' if self.groups else ''}"

    @classmethod
    def parse(cls, kernel: Kernel | int | str) -> Kernel:
        """Read a size, or ``SIZE[xCOLUMNS][dDILATION][gGROUPS]``.

        ``3d2`` is a 3x3 of dilation 2, ``5g64`` a 5x5 of 64 groups, ``1x11`` a row of 11 taps.
        """
        if isinstance(kernel, Kernel):
            return kernel
        if not isinstance(kernel, str):
            return cls(kernel)
        match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?(?:d(\d{1,9}))?(?:g(\d{1,9}))?", kernel.strip())
        if match is None:
            raise InputError(
                f"kernel {shown(kernel)} is not SIZE[xCOLUMNS][dDILATION][gGROUPS], for instance 3, 3d2, 5g64"
            )
        numbers: list[Any] = [part and int(part) for part in match.groups()]
        size, columns, dilation, groups = numbers
        return cls(size, 1 if dilation is None else dilation, groups, columns)


# An activation: a class, or timm's name of one.
Activation = str | Callable[..., nn.Module]
# What parse_kernels reads.
Kernels = Kernel | int | str | Iterable[Kernel | int | str]


def parse_kernels(kernels: Kernels) -> tuple[Kernel, ...]:
    """Read the branches of a unit: ``"3+3d2"``, or one or several of what :meth:`Kernel.parse` reads.

    Raises:
        InputError: Something else, an impossible kernel, or more than 16.
    """
    try:
        several = kernels.split("+") if isinstance(kernels, str) else kernels
        given = list(itertools.islice(several, 17))  # type: ignore[arg-type]
    except TypeError:  # one kernel
        given = [kernels]
    if len(given) > 16:
        raise InputError(f"kernels={shown(kernels)} are more than 16 branches; the paper has 2 or 3")
    return tuple(map(Kernel.parse, given))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitSpec:
    """A selective kernel, apart from the place where it stands.

    Args:
        kernels: The branches, see :func:`parse_kernels`, or a function from a :class:`~edge_sk.grafting.Site` to them;
            ``None``: the convolution's own kernel and a dilated 3x3 that sees two pixels more.
        reduction: ``r``.
        min_width: ``L``.
        select: ``False``: sum the branches instead of selecting.
        act: Activation in every branch; ``None`` or ``"none"``: linear branches.
    """

    kernels: Kernels | Callable[[Any], Kernels | None] | None = None
    reduction: int = 16
    min_width: int = 32
    select: bool = True
    act: Activation | None = None

    def __post_init__(self) -> None:
        if self.kernels is not None and not callable(self.kernels):
            object.__setattr__(self, "kernels", parse_kernels(self.kernels))
        if isinstance(self.act, str) and self.act == "none":
            object.__setattr__(self, "act", None)


@torch.fx.wrap
def _mean(u: Tensor) -> Tensor:
    """The mean of every map, ``(N, C, 1, 1)``.

    An fx leaf. Where a backward pass follows, the sums are divided: the mean's divides a full-size map.
    """
    if not u.requires_grad or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return u.mean((2, 3), keepdim=True)
    return (u.sum((2, 3), keepdim=True) / (u.shape[2] * u.shape[3])).type_as(u)


@torch.fx.wrap
def _norm_of_vector(norm: nn.BatchNorm2d, z: Tensor) -> Tensor:
    """Batch-normalise ``(N, d, 1, 1)``; a batch of one uses the running statistics, since one value has no variance.

    An fx leaf, so that the choice is made when the graph runs.
    """
    if norm.training and z.shape[0] == 1 and not isinstance(norm, nn.SyncBatchNorm):
        return nn.functional.batch_norm(
            z, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
        )
    return norm(z)


class Gate(nn.Module):
    r"""Fuse and Select: from the pooled sum of the branches to one weight per branch and channel.

    :math:`z = \delta(B(W s))` (Eq. 3), :math:`a_{m,c} = \mathrm{softmax}_m(A_{m,c} z)` (Eq. 5). Neither linear map has
    a bias (the author's released network). ``channels`` is ``C``, ``branches`` is ``M``, ``width`` is ``d``.

    Shape:
        - Input: ``s``, ``(N, C, 1, 1)``
        - Output: attention, ``(N, M, C, 1, 1)``, summing to 1 over ``M``
    """

    is_gate = True  # counted apart by edge_sk.profiling

    def __init__(self, channels: int, branches: int, width: int, act_layer: Activation = nn.ReLU) -> None:
        super().__init__()
        self.channels = channels
        self.num_branches = branches
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.act = make_activation(act_layer)
        self.expand = nn.Conv2d(width, branches * channels, 1, bias=False)
        for linear in (self.reduce, self.expand):
            # The author's released prototxt: nearly equal attention at the start.
            nn.init.normal_(linear.weight, std=0.01)

    def forward(self, s: Tensor) -> Tensor:
        """Attention from the pooled features."""
        z = self.reduce(s)
        # TorchScript cannot take a module as an argument; there a batch of one fails in training, with torch's message.
        z = self.bn(z) if torch.jit.is_scripting() else _norm_of_vector(self.bn, z)
        z = self.act(z)
        logits = self.expand(z).view(-1, self.num_branches, self.channels, 1, 1)
        # Autocast computes softmax in float32; the maps it weights keep their own dtype.
        return torch.softmax(logits, dim=1).type_as(s)


class SelectiveKernel(nn.Module):
    r"""Convolution whose receptive field is chosen per channel from the input (Sec. 3.1).

    - Split: :math:`U_m = \delta(B(F_m(X)))`, one convolution, batch norm and activation per branch; linear branches
      leave :math:`\delta` out
    - Fuse: :math:`s = \mathrm{GAP}(\sum_m U_m)` (Eq. 1, 2), :math:`z = \delta(B(W s))`, of width ``d`` (Eq. 3, 4)
    - Select: :math:`V_c = \sum_m a_{m,c} U_{m,c}` with :math:`a` the softmax over branches (Eq. 5, 6)

    No normalisation or activation follows the selection. There is no ``norm_layer``: the unit's deploy form
    (:func:`edge_sk.reparameterize`) folds every normalisation into a convolution, which only batch norm allows.

    Args:
        in_channels: Channels of the input.
        out_channels: ``C``, channels of every branch and of the output.
        kernels: The branches, see :func:`parse_kernels`, for instance ``"3+3d2"``. At least two; one is allowed with
            ``select=False``.
        stride: Stride of every branch.
        groups: ``G`` of the branches that name none themselves; ``in_channels`` makes them depthwise.
        reduction: ``r``.
        min_width: ``L``; 1 for no floor.
        select: ``False`` gives the plain sum of the branches, without a gate (rows without "SK" in Table 7).
        act_layer: Activation of the branches and of the gate: a class, or timm's name of one (``"relu"``). ``None``:
            linear branches, and ReLU in the gate.
        norm: ``False``: branches have a bias instead of a batch norm.

    Raises:
        InputError: Too few branches, channels that the groups do not divide, or a value that makes no sense.

    Shape:
        - Input: ``(N, in_channels, H, W)``
        - Output: ``(N, C, ceil(H / stride), ceil(W / stride))``

    Cost:
        ``M C H W k^2 in_channels / G`` MACs in the branches at stride 1 and ``(M + 1) C d`` in the gate.

    Example:
        >>> SelectiveKernel(64, 64, stride=2)(torch.zeros(2, 64, 29, 29)).shape
        torch.Size([2, 64, 15, 15])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernels: Kernels = (Kernel(3), Kernel(3, dilation=2)),
        stride: int = 1,
        groups: int = 32,
        reduction: int = 16,
        min_width: int = 32,
        select: bool = True,
        act_layer: Activation | None = nn.ReLU,
        norm: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("select", select), ("norm", norm)):
            if not isinstance(value, bool):
                raise InputError(f"{name}={shown(value)} is neither true nor false")
        self.in_channels = whole_number("in_channels", in_channels)
        self.out_channels = whole_number("out_channels", out_channels)
        self.stride = whole_number("stride", stride)
        groups = whole_number("groups", groups)
        narrowest = whole_number("min_width", min_width, most=8192)
        width = max(self.out_channels // whole_number("reduction", reduction), narrowest)
        self.kernels = parse_kernels(kernels)
        if len(self.kernels) < (2 if select else 1):
            raise InputError(
                f"SelectiveKernel selects between branches and needs at least 2 kernels, got {len(self.kernels)}; "
                "one kernel is a plain convolution: pass select=False"
            )
        fan_in = sum(math.prod(kernel.taps) * self.in_channels // (kernel.groups or groups) for kernel in self.kernels)
        if self.out_channels * (fan_in + (len(self.kernels) + 1) * width) > 2**28:
            raise InputError(
                "the unit has more than 2**28 weights: give smaller kernels, fewer channels or more groups"
            )
        self.linear = act_layer is None
        self.branches = nn.ModuleList(self._branch(kernel, groups, act_layer, norm) for kernel in self.kernels)
        self.gate = Gate(self.out_channels, len(self.kernels), width, act_layer or nn.ReLU) if select else None

    def _branch(self, kernel: Kernel, groups: int, act_layer: Activation | None, norm: bool) -> nn.Sequential:
        """Convolution, batch norm if there is one, and the activation if there is one."""
        inputs, outputs, groups = self.in_channels, self.out_channels, kernel.groups or groups
        if inputs % groups or outputs % groups:
            raise InputError(
                f"groups={groups} does not divide in_channels={inputs} and out_channels={outputs}; "
                f"pass a common divisor, or groups={inputs} for depthwise branches"
            )
        height, width = kernel.extents
        padding = height // 2, width // 2
        conv = nn.Conv2d(inputs, outputs, kernel.taps, self.stride, padding, kernel.dilation, groups, bias=not norm)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers = OrderedDict[str, nn.Module](conv=conv)
        if conv.bias is None:
            layers["bn"] = nn.BatchNorm2d(outputs)
        else:
            nn.init.zeros_(conv.bias)
        if act_layer is not None:
            layers["act"] = make_activation(act_layer)
        return nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the branches' outputs."""
        if torch.jit.is_scripting():
            maps = [branch(x) for branch in self.branches]
        else:
            maps = [run_branch(branch, x) for branch in self.branches]
        if self.gate is None:
            return _sum(maps)
        # Pooling is linear: the sum of the pooled maps is the pooled sum, without a full-size addition.
        s = _sum([u.mean((2, 3), keepdim=True) if torch.jit.is_scripting() else _mean(u) for u in maps])
        attention = self.gate(s)  # (N, M, C, 1, 1)
        if not self.linear:
            return _sum([attention[:, m] * u for m, u in enumerate(maps)])
        # The weights add up to 1. So autograd keeps M - 1 differences, not the M maps (which a ReLU keeps anyway).
        last = maps[-1]
        return _sum([last] + [attention[:, m] * (u - last) for m, u in enumerate(maps[:-1])])

    def fuse(self) -> nn.Module:
        """The trained unit in its deploy form, a new module: what ``timm.utils.reparameterize_model`` asks for."""
        return DeploySelectiveKernel(self)

    def extra_repr(self) -> str:
        """Show the branches in short."""
        return f"kernels={'+'.join(map(str, self.kernels))}, stride={self.stride}, select={self.gate is not None}"


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A new convolution that computes ``norm(conv(x))``; rounded once, from float64."""
    exact_conv, exact_norm = copy.deepcopy(conv), copy.deepcopy(norm)
    for module in (exact_conv, exact_norm):
        module.to("cpu", torch.float64)
    return fuse_conv_bn_eval(exact_conv, exact_norm).to(conv.weight.device, conv.weight.dtype)


def as_convolution(branch: nn.Module) -> tuple[nn.Conv2d, list[nn.Module]]:
    """A branch's convolution with its batch norm folded in, a new one, and what follows them.

    Raises:
        InputError: The branch is made of something else.
    """
    conv, *rest = branch.children()
    if type(conv) is nn.Conv2d and rest and type(rest[0]) is nn.BatchNorm2d:
        return folded(conv, rest[0]), rest[1:]
    if type(conv) is nn.Conv2d and not isinstance(next(iter(rest), None), nn.modules.batchnorm._BatchNorm):
        return copy.deepcopy(conv), rest
    raise InputError(
        f"a branch is made of {', '.join(type(part).__name__ for part in (conv, *rest))}: only Conv2d and BatchNorm2d "
        "can be folded"
    )


class DeploySelectiveKernel(nn.Module):
    r"""What a trained :class:`~edge_sk.SelectiveKernel` computes, as few operators that every backend takes.

    - batch norm is folded into the branches and the gate
    - two branches: the softmax of two logits is a sigmoid of their difference, and the difference of two linear maps
      is one linear map: :math:`g = \sigma((A_1 - A_2) z)`, :math:`V = U_2 + g (U_1 - U_2)`
    - more branches: softmax over the last axis, the only one that XNNPACK has

    The trained unit is not changed.
    """

    fx_leaf = True

    def __init__(self, unit: SelectiveKernel) -> None:
        super().__init__()
        self.in_channels = unit.in_channels
        self.out_channels = unit.out_channels
        self.convs, self.acts = nn.ModuleList(), nn.ModuleList()
        for branch in unit.branches:
            conv, rest = as_convolution(branch)
            self.convs.append(conv)
            self.acts.append(nn.Sequential(*map(_out_of_place, rest)))
        gate = unit.gate
        self.select = gate is not None
        if gate is None:
            return
        branches, channels = gate.num_branches, gate.channels
        self.reduce = folded(gate.reduce, gate.bn)
        self.act = _out_of_place(gate.act)
        weight = gate.expand.weight.detach().view(branches, channels, -1, 1, 1)
        # Two branches: the difference. More: rows in (channel, branch) order, so that the softmax's axis is the last.
        rows = weight[0] - weight[1] if branches == 2 else weight.transpose(0, 1).flatten(0, 1)
        self.expand = nn.Conv2d(rows.shape[1], rows.shape[0], 1, bias=False)
        self.expand.weight = nn.Parameter(rows.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the branches' outputs."""
        maps = [act(conv(x)) for conv, act in zip(self.convs, self.acts, strict=True)]
        if not self.select:
            return _sum(maps)
        logits = self.expand(self.act(self.reduce(_pool(maps))))
        if len(maps) == 2:
            first, second = maps
            return second + (first - second) * torch.sigmoid(logits)
        attention = torch.softmax(logits.view(-1, self.out_channels, len(maps)), dim=-1)
        weights = [attention[:, :, m : m + 1].reshape(-1, self.out_channels, 1, 1) for m in range(len(maps))]
        return _sum([a * u for a, u in zip(weights, maps, strict=True)])

    @property
    def permutable(self) -> bool:
        """Whether every branch treats every channel by itself, and alike but for the convolution's weights."""
        depthwise = all(conv.groups == self.in_channels == self.out_channels for conv in self.convs)
        acts = [act for branch in self.acts for act in branch.children()]
        alike = all(isinstance(act, nn.Identity) or is_activation(act) for act in acts)
        return depthwise and alike and all(parameter.numel() == 1 for parameter in self.acts.parameters())

    def permute_channels(self, order: list[int]) -> None:
        """Take and give the channels in another order, ``new[i] = old[order[i]]``; for permutable units only."""
        index = torch.tensor(order)
        for conv in self.convs:
            for parameter in conv.parameters():
                parameter.data = parameter.data[index]
        if not self.select:
            return
        self.reduce.weight.data = self.reduce.weight.data[:, index]
        rows = self.expand.weight.data.view(self.out_channels, -1, *self.expand.weight.shape[1:])
        self.expand.weight.data = rows[index].flatten(0, 1)


# Values of one branch's map, above which adding maps costs more than pooling each (ShuffleNetV2 1.0x below, 2 % faster
# so; MobileNetV2's first units above, 3 %; measured once, without a record).
LARGE_MAP = 2**17


def _pool(maps: list[Tensor]) -> Tensor:
    """Pooled sum of the branches: one operator less for small maps, less memory traffic for large ones."""
    if maps[0][0].numel() > LARGE_MAP:
        return _sum([u.mean((2, 3), keepdim=True) for u in maps])
    return _sum(maps).mean((2, 3), keepdim=True)


def _out_of_place(act: nn.Module) -> nn.Module:
    act = copy.deepcopy(act)
    if hasattr(act, "inplace"):
        act.inplace = False  # type: ignore[assignment]
    return act


def make_activation(act_layer: Activation) -> nn.Module:
    """Build an activation from its class or from timm's name of it, in place where the layer has the choice.

    Raises:
        InputError: An unknown name, or something else.
    """
    layer: Any = act_layer
    activation = None
    with contextlib.suppress(Exception):  # an unknown name; a function, or a class that needs arguments
        if isinstance(act_layer, str):
            from timm.layers import get_act_layer

            layer = get_act_layer(act_layer)
        try:
            activation = layer(inplace=True)
        except TypeError:
            activation = layer()
    if not isinstance(activation, nn.Module):
        raise InputError(
            f"act_layer={shown(act_layer)} is neither the class of an activation that needs no arguments nor timm's "
            "name of one, for instance nn.ReLU, 'relu' or 'hard_swish'"
        )
    return activation


def _sum(tensors: list[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
