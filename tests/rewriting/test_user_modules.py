"""Code that anyone could write, rewritten: the same outputs, or the module is left alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import edge_sk
from edge_sk import running
from tests.rewriting.user_modules import MODULES

# Of what a module computes in half precision, its own rounding is more than a hundredth.
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.1}
NOT_IN_HALF = {
    "complex values": "torch has no complex type of bfloat16's width",
    "a network that only chooses": "rounding decides between values that are nearly equal",
}


def _outcome(model: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """What a call returns and does to its arguments."""
    arguments = copy.deepcopy(arguments)
    with torch.no_grad():
        torch.manual_seed(1)
        return model(*arguments), arguments


@pytest.mark.parametrize("dtype", CLOSE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", MODULES)
def test_a_users_module(name: str, dtype: torch.dtype, lived_in: Callable[[nn.Module], nn.Module]) -> None:
    if dtype is torch.bfloat16 and name in NOT_IN_HALF:
        pytest.skip(NOT_IN_HALF[name])
    build, arguments = MODULES[name]

    def example() -> tuple[Any, ...]:
        return _pytree.tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, arguments())

    model = lived_in(build()).to(dtype)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first, second, third = [example() for _ in range(3)]
    large = _pytree.tree_map_only(Tensor, lambda x: 20 * x if x.is_floating_point() else x, third)
    form = edge_sk.reparameterize(model, first)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), f"{key} of the model changed"
    for values in (first, second, large, first):
        # Copies, because some keep features between calls.
        expected = _outcome(copy.deepcopy(model), values)
        assert running.compare(expected, _outcome(copy.deepcopy(form), values)) <= CLOSE[dtype]
    expected = [_outcome(model, values) for values in (first, second, first)]
    assert running.compare(expected, [_outcome(form, values) for values in (first, second, first)]) <= CLOSE[dtype]
    assert not form.training


def test_there_are_enough() -> None:
    assert len(MODULES) >= 60


def test_what_is_rewritten_and_what_not(lived_in: Callable[[nn.Module], nn.Module]) -> None:
    """Leaving everything alone would keep every output: here is what must not be left."""

    def rewrites(name: str) -> Any:
        build, arguments = MODULES[name]
        return edge_sk.reparameterize(lived_in(build()), arguments()).reparameterized

    for name in ("norm with activation", "norm without weights", "an optional mask, not given", "a named tuple"):
        assert rewrites(name)["fold_batch_norm"] == 1, name
    assert rewrites("unpacked split by size")["use_slices"] == 1
    assert rewrites("chunk by names")["use_slices"] == 1
    assert rewrites("shuffle between depthwise convolutions")["absorb_shuffles"] == 1
    assert rewrites("a selective kernel behind a shuffle") == {"fuse_units": 1, "absorb_shuffles": 1}
    assert rewrites("control flow by values")["fold_batch_norm"] == 1
    assert "absorb_shuffles" not in rewrites("two convolutions share a weight around a shuffle")
    wrong = rewrites("an own fuse: wrong")
    assert "fuse_modules" in wrong.undone
    assert wrong == {"fold_batch_norm": 1}
    assert rewrites("two inputs to a unit and an own fuse") == {
        "fuse_units": 1, "fuse_modules": 1, "remove_identities": 1
    }  # fmt: skip
    one = rewrites("a branch called by itself")
    assert one["fuse_units"] == 1
    assert list(one.undone) == ["fuse_units: a"]
    assert "more of it than its call" in rewrites("attributes of children").left["body"]
    assert rewrites("data parallel") == {"fold_batch_norm": 1}
    assert "control flow" in rewrites("control flow by shape").untraced[""]
    assert rewrites("a counter").untraced[""] == "it writes into its buffers"


def test_arguments_that_were_not_there_are_refused() -> None:
    build, arguments = MODULES["an optional mask, not given"]
    model = build().eval()
    form = edge_sk.reparameterize(model, arguments())
    (x,) = arguments()
    torch.testing.assert_close(form(x, mask=None, flat=False), model(x))
    for wrong in ({"mask": x}, {"scale": 3.0}, {"flat": True}):
        with pytest.raises(AssertionError, match="specialized"):
            form(x, **wrong)


def test_a_network_that_ran_with_gradients() -> None:
    """What it caches then is part of the graph of gradients, which cannot be copied."""
    model = timm.create_model("tiny_vit_5m_224", num_classes=10).eval()
    image = torch.randn(1, 3, 224, 224)
    expected = model(image)
    form = edge_sk.reparameterize(model, image)
    assert running.compare(expected, form(image)) < 1e-5
    assert form.reparameterized["fuse_modules"] > 10


def test_nothing_to_verify_with() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    form = edge_sk.reparameterize(model)
    assert "give an example" in form.reparameterized.left[""]
    assert form.reparameterized.difference is None
    assert isinstance(form[1], nn.BatchNorm2d)
    for wrong in (torch.zeros(2, 3, 8, 8), "224", ()):
        with pytest.raises(edge_sk.InputError, match="does not run on the example"):
            edge_sk.reparameterize(model, wrong)


def test_what_is_no_python_module() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Conv2d(8, 8, 1))
    for wrong in (scripted, "sk_shufflenetv2_1.0", None):
        with pytest.raises(edge_sk.InputError, match="takes a Python module"):
            edge_sk.reparameterize(wrong)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), scripted).eval()
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(edge_sk.reparameterize(model, x)(x), model(x))


def test_hooks_run_as_before() -> None:
    """A hook that only looks changes no output; it must still be called."""
    seen: list[str] = []
    model = nn.Sequential(nn.Conv2d(8, 8, 1), edge_sk.SelectiveKernel(8, 8, groups=8), nn.BatchNorm2d(8)).eval()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.append(name or "root"))
    x = torch.randn(2, 8, 5, 5)
    model(x)
    expected = list(seen)
    form = edge_sk.reparameterize(model, x)
    seen.clear()
    form(x)
    assert seen == expected


def test_an_input_that_is_no_image_is_taken_from_the_default_cfg() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    model.default_cfg, model.num_classes = {"input_size": (8, 6, 6)}, 8  # type: ignore[assignment]
    form = copy.deepcopy(edge_sk.reparameterize(model))
    assert form.reparameterized == {"fold_batch_norm": 1}
    assert form.default_cfg == model.default_cfg
    assert form.num_classes == 8
    assert edge_sk.profile(form).input_size == (1, 8, 6, 6)


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_that_breaks_the_network_is_undone_and_named(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_sk.rewriting import _reparameterize

    def broken(graph: torch.fx.GraphModule) -> int:
        graph.get_submodule("0").weight.data.mul_(1.001)
        if fails:
            raise IndexError("no such node")
        return 1

    monkeypatch.setattr(_reparameterize, "STEPS", (broken, *_reparameterize.STEPS))
    model, x = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)).eval(), torch.randn(2, 8, 5, 5)
    form = edge_sk.reparameterize(model, x)
    assert form.reparameterized == {"fold_batch_norm": 1}
    assert ("no such node" if fails else "the output changes by") in form.reparameterized.undone["broken"]
    torch.testing.assert_close(form(x), model(x))
