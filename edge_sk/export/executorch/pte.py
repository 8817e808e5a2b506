"""A network as a ``.pte`` for ExecuTorch: one delegate, proven equal, with a record beside it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from edge_sk.errors import InputError
from edge_sk.export.executorch import delegation, executorch
from edge_sk.export.executorch.quantize import CALIBRATION_IMAGES, computed_in_float, quantize
from edge_sk.export.network import Network
from edge_sk.export.prepare import drop_aliases, export_errors, prepare
from edge_sk.export.prove import prove
from edge_sk.export.record import Delegation, Precision, Record
from edge_sk.export.write import make_record, new_path, new_record
from edge_sk.files import artifact_path, atomic_write
from edge_sk.manifest import __version__, manifest
from edge_sk.rewriting import Rewrites
from edge_sk.running import first_line
from edge_sk.stderr import capture_stderr

Backend = Literal["xnnpack", "coreml", "vulkan"]
BACKENDS: dict[str, tuple[Precision, ...]] = {
    "xnnpack": ("fp32", "fp16", "int8"),
    "coreml": ("fp32", "fp16"),
    "vulkan": ("fp32", "fp16"),
}
RUNTIME = "executorch Python runtime on this host"
_HALF = 5  # c10::ScalarType


def to_pte(
    network: Network,
    output: str | Path,
    *,
    precision: Precision = "fp32",
    backend: Backend = "xnnpack",
    softmax: bool = False,
    allow_fallback: bool = False,
    bundle: bool = False,
    images: int | None = None,
    replace: bool = False,
    accept: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> Record:
    """Export a network, run the file on real images against eager, and write it with its record.

    Args:
        network: What to export.
        output: Folder; the file is ``ARCH_BACKEND_PRECISION.pte`` (``network.name`` may stand for the arch), the record
            has ``.json`` behind it.
        precision: int8 is static, per channel, calibrated on training images unless it was trained.
        backend: ``coreml`` and ``vulkan`` are lowered but cannot be run here; the record says so.
        softmax: End in probabilities instead of logits.
        allow_fallback: Accept operators outside the delegate.
        bundle: Also write ``.bpte``, the program with inputs and expected outputs for a check on the device.
        images: Test images for parity and accuracy, at least 64; ``None`` as
            :meth:`edge_sk.export.network.Network.test_images` says.
        replace: Also replace a file of the same name that holds other weights.
        accept: Demands of the proof to replace: ``"accuracy_loss<=0.05"``; see
            :func:`edge_sk.export.parity.accepting`.
        argv: The command for the record.

    Returns:
        The record that was written.

    Raises:
        InputError: The backend has no such precision, a file of the same name holds other weights, no images were
            named for trained weights, something stays outside the delegate, the file's outputs are beyond the
            thresholds of :data:`edge_sk.export.parity.THRESHOLDS`, the model cannot be exported, or ExecuTorch is not
            installed. No file is left behind, and older ones stay as they were.
    """
    if precision not in BACKENDS.get(backend, ()):
        known = "; ".join(f"{name} has {', '.join(precisions)}" for name, precisions in BACKENDS.items())
        raise InputError(f"{backend} has no {precision} here; {known}")
    network.check_file(f"{backend} {precision}")
    if backend == "xnnpack" or bundle:
        network.check_images(images, calibration=precision == "int8" and not network.quantized)
    path = new_path(network, Path(output), f"{backend}_{precision}.pte", replace=replace)
    executorch("exir")
    started = time.perf_counter()
    lowered = lower(network, precision=precision, backend=backend, softmax=softmax)
    seconds = time.perf_counter() - started
    if not allow_fallback:
        delegation.check_whole(lowered.delegation, arch=network.arch, backend=backend)
    program = bytes(lowered.program.buffer)
    evidence, accuracy, notes = None, None, []
    if backend == "xnnpack":
        evidence, accuracy = prove(
            network,
            functools.partial(run_outputs, program),
            file=path.name,
            file_format="pte",
            precision=precision,
            images=images,
            softmax=softmax,
            accept=accept,
            runtime=RUNTIME,
            arithmetic=_arithmetic(precision, lowered.delegation),
        )
    else:
        notes = [f"lowered, not run: the {backend} delegate does not run on this host"]
    record = make_record(
        network,
        lowered.rewrites,
        argv=argv,
        notes=notes,
        file=path.name,
        format="pte",
        backend=backend,
        precision=precision,
        labels=network.labels,
        softmax=softmax,
        size_bytes=len(program),
        sha256=hashlib.sha256(program).hexdigest(),
        export_seconds=round(seconds, 2),
        delegation=lowered.delegation,
        parity=evidence,
        accuracy=accuracy,
    )
    bundled = _bundle(network, lowered.program, precision) if bundle else None
    bundle_path = artifact_path(path.parent, path.stem, ".bpte")
    with contextlib.ExitStack() as stack:
        # Replaced in the opposite order: bundle, program, record.
        write_record = stack.enter_context(new_record(path))
        program_file = stack.enter_context(atomic_write(path))
        if bundled is not None:
            stack.enter_context(atomic_write(bundle_path)).write_bytes(bundled)
        program_file.write_bytes(program)
        write_record(record)
        bundle_path.unlink(missing_ok=True)
    return record


class Lowered(NamedTuple):
    """ExecuTorch's program, how much of it the delegate took, and how the network was rewritten."""

    program: Any
    delegation: Delegation
    rewrites: Rewrites


def lower(
    network: Network,
    *,
    precision: Precision = "fp32",
    backend: Backend = "xnnpack",
    softmax: bool = False,
    calibration_images: int = CALIBRATION_IMAGES,
) -> Lowered:
    """Rewrite, quantize and lower a network, without proof and without writing anything.

    Raises:
        InputError: The model cannot be exported or lowered, or ExecuTorch is not installed.
    """
    model, rewrites = prepare(network, softmax=softmax)
    program, delegated = lower_module(
        model,
        network.example(),
        None if network.quantized else lambda: (b for b, _ in network.images(split="train", limit=calibration_images)),
        name=network.arch,
        precision=precision,
        backend=backend,
        constants=_constants(network, precision, softmax),
    )
    return Lowered(program, delegated, rewrites)


def lower_module(
    model: nn.Module,
    image: Tensor,
    calibration: Callable[[], Iterable[Tensor]] | None,
    *,
    name: str,
    precision: Precision = "fp32",
    backend: Backend = "xnnpack",
    constants: dict[str, Any] | None = None,
) -> tuple[Any, Delegation]:
    """Quantize and lower a rewritten module. Errors as of :func:`lower`.

    ``calibration`` gives the images of int8; ``None``: the module is quantized already.
    """
    exir, in_float = executorch("exir"), []
    with export_errors(name), capture_stderr():
        if precision == "int8":
            quantized = calibration is None
            model = (
                torch.export.export(model, (image,)).module() if quantized else quantize(model, image, calibration())
            )
            in_float = computed_in_float(model)
        elif precision == "fp16":
            model, image = model.half(), image.half()
        exported = drop_aliases(torch.export.export(model, (image,)))
    try:
        with capture_stderr(), delegation.partitioner_reasons() as reasons:
            edge = exir.to_edge_transform_and_lower(
                exported, partitioner=[_partitioner(backend)], constant_methods=constants
            )
            delegated = delegation.inspect(edge.exported_program().graph_module, reasons)
            program = edge.to_executorch()
    except (InputError, OSError):
        raise
    except Exception as error:  # The delegates' own checks: assertions and errors of every kind.
        raise InputError(
            f"{name} cannot be lowered to {backend} {precision}: ExecuTorch says {first_line(error)}; "
            "rewrite the module that has this operator, or take another backend"
        ) from error
    delegated.in_float = in_float
    return program, delegated


def _partitioner(backend: Backend) -> Any:
    if backend == "coreml":
        return executorch("backends.apple.coreml.partition").CoreMLPartitioner()
    if backend == "vulkan":
        return executorch("backends.vulkan.partitioner.vulkan_partitioner").VulkanPartitioner()
    return executorch("backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner()


def _constants(network: Network, precision: str, softmax: bool) -> dict[str, Any]:
    """Methods that an application can call to learn how to use the file."""
    return {
        "arch": network.arch,
        "precision": precision,
        "input_size": list(network.input_size),
        "crop_pct": float(network.crop_pct),  # an int would have another type on the device
        "interpolation": network.interpolation,
        "mean": list(network.mean),
        "std": list(network.std),
        "num_classes": network.num_classes or 0,
        "outputs": "\n".join(network.outputs),
        "labels": "\n".join(network.labels or []),
        "softmax": softmax,
        "edge_sk_version": __version__,
        "executorch_version": manifest()["versions"]["executorch"],
    }


def run_pte(program: bytes, images: Tensor) -> Tensor:
    """The first output of a program, as :func:`run_outputs` returns it."""
    return run_outputs(program, images)[0]


def run_outputs(program: bytes, images: Tensor) -> list[Tensor]:
    """Run a program of batch 1 on images.

    Args:
        program: Content of a ``.pte``.
        images: ``(N, C, H, W)``, in [0, 1].

    Returns:
        Its outputs, each ``(N, ...)``, float32.

    Raises:
        InputError: ExecuTorch cannot load it: truncated, or of another version.
    """
    try:
        with capture_stderr():
            loaded = executorch("runtime").Runtime.get().load_program(program)
            method = loaded.load_method("forward")
            dtype = torch.float16 if method.metadata.input_tensor_meta(0).dtype() == _HALF else torch.float32
            # The runtime reads memory in order, whatever a tensor's strides say.
            rows = [
                [output.float().clone() for output in method.execute([image[None].to(dtype).contiguous()])]
                for image in images
            ]
    except RuntimeError as error:
        raise InputError(f"ExecuTorch cannot run the program: {first_line(error)}") from error
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def _arithmetic(precision: Precision, delegated: Delegation) -> str | None:
    if precision == "int8" and delegated.in_float:
        return "int8, in part fp32"
    return half_arithmetic() if precision == "fp16" else precision


@functools.cache
def half_arithmetic() -> str | None:
    """What XNNPACK computes fp16 files in on this host: ``fp16``, ``fp32, stored as fp16``, or ``None``: unknown.

    XNNPACK chooses by the processor (its ``hardware-config.c``) and does not tell, so a convolution adds 8 ones to
    2048. Between 2048 and 4096 halves are 2 apart: ones that are added one by one in half precision are lost.
    """
    convolution = nn.Conv2d(8, 1, 1).half().eval().requires_grad_(False)
    convolution.weight.fill_(1.0)
    nn.init.constant_(convolution.bias, 2048.0)  # type: ignore[arg-type]
    ones = torch.ones(1, 8, 2, 2, dtype=torch.float16)
    with capture_stderr():
        try:
            exported = torch.export.export(convolution, (ones,))
            edge = executorch("exir").to_edge_transform_and_lower(exported, partitioner=[_partitioner("xnnpack")])
            sums = run_pte(bytes(edge.to_executorch().buffer), ones).unique().tolist()
        except Exception:  # A note about the host must not cost the user a file that can be proven.
            return None
    return "fp16" if sums == [2048.0] else "fp32, stored as fp16" if sums == [2056.0] else None


def _bundle(network: Network, program: Any, precision: str) -> bytes:
    """The program with four inputs and the outputs expected for them."""
    bundled = executorch("devtools.bundled_program.core")
    config = executorch("devtools.bundled_program.config")
    serialize = executorch("devtools.bundled_program.serialize").serialize_from_bundled_program_to_flatbuffer
    images = next(iter(network.images(split="test", limit=4)))[0]
    outputs = run_outputs(bytes(program.buffer), images)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    cases = [
        config.MethodTestCase(inputs=[image[None].to(dtype)], expected_outputs=[out[None].to(dtype) for out in row])
        for image, *row in zip(images, *outputs, strict=True)
    ]
    with capture_stderr():
        return bytes(serialize(bundled.BundledProgram(program, [config.MethodTestSuite("forward", cases)])))
