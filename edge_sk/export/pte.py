"""A network as a ``.pte`` for ExecuTorch: one delegate, proven equal, with a record beside it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edge_sk.errors import InputError
from edge_sk.export import delegation, parity
from edge_sk.export.aliases import drop_aliases
from edge_sk.export.deploy_form import deploy_form, with_preprocessing
from edge_sk.export.executorch_tools import executorch, shared_provenance
from edge_sk.export.network import Network
from edge_sk.export.quantize import CALIBRATION_IMAGES, computed_in_float, quantize
from edge_sk.export.quiet import quiet
from edge_sk.export.record import (
    Accuracy,
    Delegation,
    ParityEvidence,
    Precision,
    Record,
    record_path,
)
from edge_sk.files import artifact_path, atomic_write, check_output
from edge_sk.manifest import __version__, manifest
from edge_sk.profiling import profile
from edge_sk.running import first_line

Backend = Literal["xnnpack", "coreml", "vulkan"]
BACKENDS: dict[str, tuple[Precision, ...]] = {
    "xnnpack": ("fp32", "fp16", "int8"),
    "coreml": ("fp32", "fp16"),
    "vulkan": ("fp32", "fp16"),
}
RUNTIME = "executorch Python runtime on this host"


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
    argv: Sequence[str] | None = None,
) -> Record:
    """Export a network, run the file on real images against eager, and write it with its record.

    Args:
        network: What to export.
        output: Folder; the file is ``ARCH_BACKEND_PRECISION.pte``, the record has ``.json`` behind it.
        precision: int8 is static, per channel, calibrated on training images.
        backend: ``coreml`` and ``vulkan`` are lowered but cannot be run here; the record says so.
        softmax: End in probabilities instead of logits.
        allow_fallback: Accept operators outside the delegate.
        bundle: Also write ``.bpte``, the program with inputs and expected outputs for a check on the device.
        images: Test images for parity and accuracy, at least 64, spread over the test set. ``None``: where accuracy
            means something, all of an embedded data set (digits) and at most 1,000 of another; elsewhere 64.
        argv: The command for the record.

    Returns:
        The record that was written.

    Raises:
        InputError: The backend has no such precision, no images were named for trained weights, something stays
            outside the delegate, the file's outputs are beyond the thresholds of
            :data:`edge_sk.export.parity.THRESHOLDS`, the model cannot be exported, or ExecuTorch is not installed.
            No file is left behind, and older ones stay as they were.

    No moment leaves a program beside another's record or bundle: those go before the program is replaced, and the new
    record comes after.
    """
    if precision not in BACKENDS[backend]:
        raise InputError(f"{backend} has no {precision} here; it has {', '.join(BACKENDS[backend])}")
    parity.check_count(images)
    if backend == "xnnpack":
        network.data_set()
    executorch("exir")
    folder = Path(output)
    check_output(folder)
    path = artifact_path(folder, f"{network.stem}_{backend}_{precision}", ".pte")
    started = time.perf_counter()
    form, program, delegated = lower(network, precision=precision, backend=backend, softmax=softmax)
    seconds = time.perf_counter() - started
    if not allow_fallback:
        delegation.check_whole(delegated, arch=network.arch, backend=backend)
    buffer = bytes(program.buffer)
    evidence, accuracy = None, None
    notes = network.notes + form.reparameterized.notes()  # type: ignore[operator, union-attr]
    if backend == "xnnpack":
        evidence, accuracy = _prove(network, buffer, precision, softmax, images, name=path.name)
        evidence.arithmetic = _arithmetic(precision, delegated)
    else:
        notes.append(f"lowered, not run: the {backend} delegate does not run on this host")
    record = _record(
        network, path.name, precision, backend, softmax, argv=argv,
        size_bytes=len(buffer), sha256=hashlib.sha256(buffer).hexdigest(),
        rewrites=[f"{name} x{count}" for name, count in form.reparameterized.items()],  # type: ignore[union-attr]
        export_seconds=round(seconds, 2), delegation=delegated, parity=evidence, accuracy=accuracy, notes=notes,
    )  # fmt: skip
    record.keep_measurements(path)
    bundled = _bundle(network, program, precision) if bundle else None
    _write(path, buffer, bundled, record)
    return record


def _write(path: Path, program: bytes, bundled: bytes | None, record: Record) -> None:
    """Put program, bundle and record in the place of older ones, once all are on the disk."""
    bundle_path = artifact_path(path.parent, path.name.removesuffix(".pte"), ".bpte")
    with contextlib.ExitStack() as stack:
        # Left in the opposite order: bundle, program, record.
        record_file = stack.enter_context(atomic_write(record_path(path)))
        program_file = stack.enter_context(atomic_write(path))
        if bundled is not None:
            stack.enter_context(atomic_write(bundle_path)).write_bytes(bundled)
        program_file.write_bytes(program)
        record_file.write_text(record.to_json(), encoding="utf-8")
        record_path(path).unlink(missing_ok=True)
        bundle_path.unlink(missing_ok=True)


def lower(
    network: Network,
    *,
    precision: Precision = "fp32",
    backend: Backend = "xnnpack",
    softmax: bool = False,
    calibration_images: int = CALIBRATION_IMAGES,
) -> tuple[nn.Module, Any, Delegation]:
    """Rewrite, quantize and lower a network, without proof and without writing anything.

    Returns:
        The deploy form, ExecuTorch's program, and how much of it the delegate took.

    Raises:
        InputError: The model cannot be exported or lowered, or ExecuTorch is not installed.
    """
    exir = executorch("exir")
    form = deploy_form(network, softmax=softmax)
    example = network.example()
    graph, in_float = form, []
    try:
        with quiet():
            if precision == "int8":
                calibration = (batch for batch, _ in network.images(split="train", limit=calibration_images))
                graph = quantize(form, example, calibration)
                in_float = computed_in_float(graph)
            elif precision == "fp16":
                graph, example = form.half(), example.half()
            exported = torch.export.export(graph, (example,))
            drop_aliases(exported)
    except InputError:
        raise
    except Exception as error:  # The model's own code runs under the exporter: anything may be raised.
        raise InputError(_why_not_exported(network.arch, error)) from error
    try:
        with quiet(), shared_provenance(), delegation.listening() as reasons:
            edge = exir.to_edge_transform_and_lower(
                exported,
                partitioner=[_partitioner(backend)],
                constant_methods=_constants(network, precision, softmax),
            )
            delegated = delegation.inspect(edge.exported_program().graph_module, reasons)
            program = edge.to_executorch()
    except (InputError, OSError):
        raise
    except Exception as error:  # The delegates' own checks: assertions and errors of every kind.
        raise InputError(
            f"{network.arch} cannot be lowered to {backend} {precision}: ExecuTorch says {first_line(error)}; "
            "rewrite the module that has this operator, or take another backend"
        ) from error
    delegated.in_float = in_float
    return form, program, delegated


def _why_not_exported(arch: str, error: Exception) -> str:
    # torch.export ends its message with the user's stack: the last line of a module's code is where it happened.
    places = re.findall(r'File "(?!.*/torch/)([^"]+)", line (\d+), in (\w+)', str(error))
    where = f" at {places[-1][0]}:{places[-1][1]} ({places[-1][2]})" if places else ""
    return (
        f"{arch} cannot be exported{where}: torch.export says {first_line(error)}; "
        "rewrite the module that branches on its data"
    )


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
        "num_classes": _num_classes(network),
        "labels": "\n".join(network.labels or []),
        "softmax": softmax,
        "edge_sk_version": __version__,
        "executorch_version": manifest()["versions"]["executorch"],
    }


def reference(network: Network, softmax: bool) -> nn.Module:
    """The eager model that a file is held against: preprocessing, the untouched network, softmax by choice."""
    eager = with_preprocessing(network.model, mean=network.mean, std=network.std)
    return nn.Sequential(eager, nn.Softmax(dim=1)).eval() if softmax else eager


def run_pte(program: bytes, images: Tensor) -> Tensor:
    """Run a program of batch 1 on images.

    Args:
        program: Content of a ``.pte``.
        images: ``(N, C, H, W)``, in [0, 1].

    Returns:
        Outputs, ``(N, classes)``, float32.

    Raises:
        InputError: ExecuTorch cannot load it: truncated, or of another version.
    """
    try:
        with quiet():
            loaded = executorch("runtime").Runtime.get().load_program(program)
            method = loaded.load_method("forward")
            dtype = {5: torch.float16}.get(method.metadata.input_tensor_meta(0).dtype(), torch.float32)
            # The runtime reads memory in order, whatever a tensor's strides say.
            outputs = [method.execute([image[None].to(dtype).contiguous()])[0].float().clone() for image in images]
    except RuntimeError as error:
        raise InputError(f"ExecuTorch cannot run the program: {first_line(error)}") from error
    return torch.cat(outputs)


def _prove(
    network: Network, program: bytes, precision: Precision, softmax: bool, images: int | None, *, name: str
) -> tuple[ParityEvidence, Accuracy | None]:
    """Hold the program against eager on test images, a batch at a time: they may not fit into memory together."""
    eager = reference(network, softmax)
    wanted: list[Tensor] = []
    answers: list[Tensor] = []
    truth: list[Tensor] = []
    for batch, classes in network.test_images(images):
        with torch.no_grad():
            wanted += [eager(part) for part in batch.split(16)]
        answers.append(run_pte(program, batch))
        truth.append(classes)
    expected, got, labels = torch.cat(wanted), torch.cat(answers), torch.cat(truth)
    measured = parity.compare(expected, got)
    limits = parity.threshold("pte", precision, trained=network.trained)
    measured.check(limits, what=name)
    accuracy = None
    if network.knows_data:
        accuracy = Accuracy(
            top1=(got.argmax(1) == labels).double().mean().item(),
            eager_top1=(expected.argmax(1) == labels).double().mean().item(),
            images=len(labels),
            data=network.data_set(),
        )
    return ParityEvidence.of(measured, limits, data=f"{network.data_set()} test", runtime=RUNTIME), accuracy


def _arithmetic(precision: Precision, delegated: Delegation) -> str | None:
    if precision == "int8" and delegated.in_float:
        return "int8, in part fp32"
    return half_arithmetic() if precision == "fp16" else precision


@functools.cache
def half_arithmetic() -> str | None:
    """What XNNPACK computes fp16 files in on this host: ``fp16``, ``fp32, stored as fp16``, or ``None``: unknown.

    XNNPACK chooses by the processor (its ``hardware-config.c``) and does not tell, so a convolution is asked to add 8
    ones to 2048. Between 2048 and 4096 halves are 2 apart: ones that are added one by one in half precision are lost.
    """
    convolution = nn.Conv2d(8, 1, 1).half().eval().requires_grad_(False)
    convolution.weight.fill_(1.0)
    nn.init.constant_(convolution.bias, 2048.0)  # type: ignore[arg-type]
    ones = torch.ones(1, 8, 2, 2, dtype=torch.float16)
    with quiet():
        try:
            exported = torch.export.export(convolution, (ones,))
            edge = executorch("exir").to_edge_transform_and_lower(exported, partitioner=[_partitioner("xnnpack")])
            answer = run_pte(bytes(edge.to_executorch().buffer), ones).unique().tolist()
        except Exception:  # A note about the host must not cost the user a file that is already proven.
            return None
    return "fp16" if answer == [2048.0] else "fp32, stored as fp16" if answer == [2056.0] else None


def _bundle(network: Network, program: Any, precision: str) -> bytes:
    """The program with four inputs and the outputs expected for them."""
    bundled = executorch("devtools.bundled_program.core")
    config = executorch("devtools.bundled_program.config")
    serialize = executorch("devtools.bundled_program.serialize").serialize_from_bundled_program_to_flatbuffer
    pictures = next(iter(network.images(split="test", limit=4)))[0]
    got = run_pte(bytes(program.buffer), pictures)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    cases = [
        config.MethodTestCase(inputs=[image[None].to(dtype)], expected_outputs=[out[None].to(dtype)])
        for image, out in zip(pictures, got, strict=True)
    ]
    with quiet():
        return bytes(serialize(bundled.BundledProgram(program, [config.MethodTestSuite("forward", cases)])))


def _record(
    network: Network, file: str, precision: Precision, backend: str, softmax: bool, *,
    argv: Sequence[str] | None, **fields: Any,
) -> Record:  # fmt: skip
    cost = profile(network.model, (1, *network.input_size))
    return Record(
        arch=network.arch,
        file=file,
        format="pte",
        backend=backend,
        precision=precision,
        weights=network.weights,
        training=network.training,
        num_classes=_num_classes(network),
        labels=network.labels,
        softmax=softmax,
        input=network.contract,
        params=cost.params,
        macs=cost.macs,
        activations=cost.activations,
        manifest=manifest(argv),
        **fields,
    )


def _num_classes(network: Network) -> int:
    with torch.no_grad():
        return network.model(network.example()).shape[1]
