"""Files for ExecuTorch: one delegate, the same function, refusals that help."""

from __future__ import annotations

import builtins
import copy
import dataclasses
import errno
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edge_sk
from edge_sk.errors import InputError
from edge_sk.export import parity, to_pte
from edge_sk.export.executorch import delegation, pte
from edge_sk.export.network import UNTRAINED, Network, from_arch
from edge_sk.export.prove import prove
from edge_sk.export.record import Delegation, Leftover, ParityEvidence, Precision, Record, read_record, record_path

pytest.importorskip("executorch")

Exported = dict[str, tuple[Path, Any]]


def _tiny(model: nn.Module, **fields: Any) -> Network:
    defaults: dict[str, Any] = {
        "arch": "tiny", "weights": "random", "input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3,
        "data": "digits",
    }  # fmt: skip
    return Network(model=model.eval(), **(defaults | fields))


def _small(lived_in: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return lived_in(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            edge_sk.SelectiveKernel(8, 8, groups=8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
        )
    )


def test_one_delegate_and_the_same_answers(exported: Exported) -> None:
    path, record = exported["fp32"]
    assert path.name == "sk_shufflenetv2_0.5-sk_units-early_xnnpack_fp32.pte"
    assert (record.delegation.delegates, record.delegation.left) == (1, [])
    assert record.parity.images == 360
    assert record.parity.relative < 1e-4
    assert record.parity.top1_agreement == 1.0
    assert record.accuracy.top1 == record.accuracy.eager_top1
    assert record.accuracy.top1 > 0.7
    assert "absorb_shuffles x16" in record.rewrites
    assert read_record(record_path(path)) == record
    assert record.size_bytes == path.stat().st_size


def test_int8_keeps_the_accuracy(exported: Exported) -> None:
    path, record = exported["int8"]
    assert (record.delegation.delegates, record.delegation.left) == (1, [])
    assert record.delegation.in_float == ["sigmoid x3"]
    assert record.parity.arithmetic == "int8, in part fp32"
    assert record.accuracy.top1 > record.accuracy.eager_top1 - 0.05  # of a network that is unsure
    # What the network learns depends on the processor: 86 to 89 % by its vector instructions. Chance is 10 %.
    assert record.parity.top1_agreement > 0.75
    assert path.stat().st_size < 0.4 * exported["fp32"][0].stat().st_size


def test_the_file_tells_how_to_use_it(exported: Exported) -> None:
    from edge_sk.export.executorch import executorch
    from edge_sk.stderr import capture_stderr

    with capture_stderr():
        program = executorch("runtime").Runtime.get().load_program(str(exported["fp32"][0]))
        told = {name: program.load_method(name).execute([]) for name in program.method_names if name != "forward"}
    assert told["labels"] == ["\n".join("0123456789")]
    assert told["input_size"] == [3, 40, 40]
    assert told["mean"] == pytest.approx([0.5, 0.45, 0.4])
    assert told["std"] == pytest.approx([0.3, 0.25, 0.2])
    assert told["num_classes"] == [10]
    assert told["softmax"] == [False]
    assert told["arch"] == ["sk_shufflenetv2_0.5@sk_units=early"]


def test_bundle_verifies(exported: Exported) -> None:
    from executorch.extension.pybindings import portable_lib

    path = exported["fp32"][0].with_suffix(".bpte")
    bundled: Any = portable_lib._load_bundled_program_from_buffer(path.read_bytes())
    for case in range(4):
        bundled.verify_result_with_bundled_expected_output("forward", case, 1e-4, 1e-4)


def test_truncated(exported: Exported) -> None:
    content = exported["fp32"][0].read_bytes()
    for length in (0, 100, len(content) // 2):
        with pytest.raises(InputError, match="ExecuTorch cannot run the program"):
            pte.run_pte(content[:length], torch.zeros(1, 3, 40, 40))


def test_what_executorch_says_of_a_file_that_it_cannot_run_is_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Runtime:
        @classmethod
        def get(cls) -> Any:
            os.write(2, b"the program is damaged\n")
            raise RuntimeError("error 0x23")

    monkeypatch.setattr(pte, "executorch", lambda module: SimpleNamespace(Runtime=Runtime))
    with pytest.raises(InputError, match="ExecuTorch cannot run the program: error 0x23"):
        pte.run_pte(b"", torch.zeros(1, 3, 8, 8))
    assert capfd.readouterr().err == "the program is damaged\n"


def test_softmax_and_fp16(lived_in: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    network = _tiny(_small(lived_in), weights=UNTRAINED)  # probabilities of random weights hardly vary
    record = to_pte(network, tmp_path, precision="fp16", softmax=True)
    assert record.softmax
    assert record.delegation is not None
    assert record.delegation.whole
    assert record.parity is not None
    assert record.parity.arithmetic == pte.half_arithmetic() is not None
    got = pte.run_pte((tmp_path / record.file).read_bytes(), torch.rand(3, 3, 16, 16))
    torch.testing.assert_close(got.sum(1), torch.ones(3), atol=5e-3, rtol=0)
    # The model that was given is as it was.
    assert next(network.model.parameters()).dtype is torch.float32


@pytest.mark.parametrize("weights", ["random", UNTRAINED])
def test_a_damaged_fp16_file_is_refused(weights: str, lived_in: Callable[[nn.Module], nn.Module]) -> None:
    """By the thresholds that the intact file passes, whether the processor adds up in fp16 or in fp32."""
    network = _tiny(_small(lived_in), weights=weights)

    def evidence(damage: Callable[[Any], object]) -> ParityEvidence:
        damaged = copy.deepcopy(network.model).requires_grad_(False)
        damage(damaged)
        program = pte.lower(dataclasses.replace(network, model=damaged), precision="fp16").program
        return prove(
            network, partial(pte.run_outputs, bytes(program.buffer)), file="small.pte", file_format="pte",
            precision="fp16", images=64, softmax=False, runtime=pte.RUNTIME, arithmetic=None,
        )[0]  # fmt: skip

    evidence(lambda model: None)
    for damage in (lambda model: model[0].weight.zero_(), lambda model: model[1].reset_parameters()):
        with pytest.raises(InputError, match=r"SQNR .* dB is below"):
            evidence(damage)


def test_the_arithmetic_of_fp16_is_what_the_processor_has() -> None:
    flags = Path("/proc/cpuinfo").read_text().split() if sys.platform == "linux" else []
    expected = {"x86_64": "avx512_fp16", "aarch64": "asimdhp"}.get(platform.machine())
    if not flags or expected is None:
        pytest.skip("flags of Linux on x86-64 and Arm are known here")
    assert (pte.half_arithmetic() == "fp16") == (expected in flags)


def test_the_arithmetic_is_unknown_where_the_probe_fails(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> Any:
        raise AssertionError("no such kernel")

    monkeypatch.setattr(pte, "_partitioner", failing)
    assert pte.half_arithmetic.__wrapped__() is None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("precision", "in_float", "expected"),
    [("int8", [], "int8"), ("int8", ["sigmoid x13"], "int8, in part fp32"), ("fp32", [], "fp32")],
)
def test_the_arithmetic_names_what_computes_in_float(precision: Precision, in_float: list[str], expected: str) -> None:
    delegated = Delegation(delegates=1, operators_delegated=1, left=[], in_float=in_float)
    assert pte._arithmetic(precision, delegated) == expected


class _Cumulative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).cumsum(1).amax((2, 3))


def test_leftovers_are_named_and_can_be_accepted(tmp_path: Path) -> None:
    network = _tiny(_Cumulative())
    with pytest.raises(
        InputError, match=r"tiny lowers to . xnnpack delegates.*amax: .*remedy: use max pooling.*--allow-fallback"
    ):
        to_pte(network, tmp_path)
    assert list(tmp_path.iterdir()) == []
    record = to_pte(network, tmp_path, allow_fallback=True)
    assert record.delegation is not None
    assert {item.operator for item in record.delegation.left} == {"cumsum", "amax"}
    assert record.parity is not None


class _Means(nn.Module):
    """A maximum of which the partitioner says nothing, and a softmax and means of which it does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.mean(3).mean(2) + x.softmax(1).amax((2, 3)) + x.argmax(1).float().amax((1, 2))[:, None]


def test_each_operator_is_left_for_its_own_reason() -> None:
    why = {item.operator: item.why for item in pte.lower(_tiny(_Means())).delegation.left}
    assert why["mean"].startswith("mean.dim only supports")
    assert "dim must be the last dim" in why["_softmax"]
    assert why["amax"] == delegation.REMEDIES["amax"][0]
    assert why["argmax"] == "the backend does not take it"


def test_two_delegates_are_not_one() -> None:
    cut = Delegation(delegates=2, operators_delegated=5, left=[])
    with pytest.raises(InputError, match="in pieces"):
        delegation.check_whole(cut, arch="net", backend="xnnpack")
    one = Delegation(delegates=1, operators_delegated=5, left=[Leftover(operator="x", count=1, why="w", remedy="r")])
    with pytest.raises(InputError, match="1x x: w; remedy: r"):
        delegation.check_whole(one, arch="net", backend="xnnpack")


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        return x if x.sum() > 0 else -x


def test_a_model_that_branches_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"tiny cannot be exported at .*test_pte.py:\d+ \(forward\): .*branches on its data"
    ):
        to_pte(_tiny(_Branches()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_rewrite_is_refused(
    monkeypatch: pytest.MonkeyPatch, lived_in: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    original = pte.prepare

    def wrong(network: Network, **options: Any) -> Any:
        model, rewrites = original(network, **options)
        next(model.parameters()).data[0] += 0.05
        return model, rewrites

    monkeypatch.setattr(pte, "prepare", wrong)
    with pytest.raises(InputError, match=r"tiny_xnnpack_fp32.pte does not compute what the model computes"):
        to_pte(_tiny(_small(lived_in)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("images", [-1, 0, 8])
def test_too_few_images(lived_in: Callable[[nn.Module], nn.Module], tmp_path: Path, images: int) -> None:
    with pytest.raises(InputError, match=f"{images} images; at least 64"):
        to_pte(_tiny(_small(lived_in)), tmp_path / "out", images=images)
    assert list(tmp_path.iterdir()) == []


class _Largest(nn.Module):
    """What XNNPACK's partitioner takes and its serializer refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).max(2)[0].mean(2)


def test_what_the_delegate_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^tiny cannot be lowered to xnnpack fp32: ExecuTorch says .*keep_dim.*$"):
        to_pte(_tiny(_Largest()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_new_file_replaces_bundle_and_record(
    monkeypatch: pytest.MonkeyPatch, lived_in: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    labels = [*"0123456789"]
    network = _tiny(_small(lived_in), labels=labels)
    to_pte(network, tmp_path, bundle=True)
    before = _contents(tmp_path)
    assert before.keys() == {f"tiny_xnnpack_fp32.{ending}" for ending in ("pte", "bpte", "pte.json")}

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    labels[0] = "zero"
    for owner, name in ((pte, "_bundle"), (Record, "to_json")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(OSError, match="No space"):
                to_pte(network, tmp_path, bundle=True)
        assert _contents(tmp_path) == before
    with monkeypatch.context() as patch:
        # The rename of the program, the bundle's being first and the record's last.
        replace = Path.replace
        patch.setattr(Path, "replace", lambda self, to: fail() if to.name.endswith(".pte") else replace(self, to))
        with pytest.raises(OSError, match="No space"):
            to_pte(network, tmp_path)
    assert _contents(tmp_path).keys() == {"tiny_xnnpack_fp32.pte"}
    with pytest.raises(InputError, match=r"tiny_xnnpack_fp32\.pte has no readable record"):
        to_pte(network, tmp_path)
    record = to_pte(network, tmp_path, replace=True)
    after = _contents(tmp_path)
    assert after.keys() == {"tiny_xnnpack_fp32.pte", "tiny_xnnpack_fp32.pte.json"}
    assert after["tiny_xnnpack_fp32.pte"] != before["tiny_xnnpack_fp32.pte"]
    assert record.sha256 == hashlib.sha256(after["tiny_xnnpack_fp32.pte"]).hexdigest()


def test_full_disk_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, lived_in: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        to_pte(_tiny(_small(lived_in)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_output_is_a_file(lived_in: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"cannot write into .*taken"):
        to_pte(_tiny(_small(lived_in)), tmp_path / "taken")


def test_backend_without_the_precision(lived_in: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vulkan has no int8 here; xnnpack has fp32, fp16, int8; "):
        to_pte(_tiny(_small(lived_in)), tmp_path, backend="vulkan", precision="int8")


@pytest.mark.parametrize("backend", ["coreml", "vulkan"])
def test_other_delegates_are_lowered_and_not_run(
    backend: Any, lived_in: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    record = to_pte(_tiny(_small(lived_in)), tmp_path, backend=backend)
    assert record.file == f"tiny_{backend}_fp32.pte"
    assert record.delegation is not None
    assert record.delegation.whole
    assert record.parity is None
    assert any("lowered, not run" in note for note in record.notes)


def test_without_executorch(
    monkeypatch: pytest.MonkeyPatch, lived_in: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "executorch":
            raise ImportError("No module named 'executorch'")
        return original(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.split(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(InputError, match=r'ExecuTorch export needs .*pip install "edge-sk\[executorch\]"'):
        to_pte(_tiny(_small(lived_in)), tmp_path)


def test_untrained_networks_are_reproducible_and_say_so() -> None:
    first, second = from_arch("sk_shufflenetv2_0.5"), from_arch("sk_shufflenetv2_0.5")
    assert first.weights == UNTRAINED
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arch", "stem"),
    [
        ("sk_shufflenetv2_1.0", "sk_shufflenetv2_1.0"),
        ("timm:mobilenetv2_100.ra_in1k", "timm-mobilenetv2_100.ra_in1k"),
        ("sknet29@kernels=3+3d2,select=false", "sknet29-kernels-3-3d2-select-false"),
    ],
)
def test_file_names(arch: str, stem: str) -> None:
    assert _tiny(nn.Identity(), arch=arch).stem == stem


def test_library_import_stays_light() -> None:
    code = (
        "import sys, edge_sk.export; print([m for m in ('executorch', 'coremltools', 'torchao') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_thresholds_are_frozen() -> None:
    """Whoever loosens one changes this line too, and says why."""
    assert {
        key: (t.relative, t.sqnr_db, t.top1_agreement, t.accuracy_loss)
        for key, t in parity.THRESHOLDS.items()
        if key[0] == "pte"
    } == {
        ("pte", "fp32"): (1e-4, 80.0, 1.0, None),
        ("pte", "fp16"): (3e-2, 30.0, 0.98, None),
        ("pte", "int8"): (None, 6.0, None, 0.02),
    }
