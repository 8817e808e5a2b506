"""A network as a ``.pte`` for ExecuTorch: one delegate, proven equal, with a record beside it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import edge_sk
from edge_sk.errors import InputError
from edge_sk.export import delegation, parity
from edge_sk.export.deploy_form import deploy_form, with_preprocessing
from edge_sk.export.executorch_tools import executorch, quiet
from edge_sk.export.network import UNTRAINED, Network, check_output
from edge_sk.export.quantize import CALIBRATION_IMAGES, computed_in_float, quantize
from edge_sk.export.record import (
    Accuracy,
    Delegation,
    ParityEvidence,
    Precision,
    Record,
    write_record,
)
from edge_sk.files import artifact_path, atomic_write
from edge_sk.manifest import manifest

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
    images: int = parity.MIN_IMAGES,
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
        images: Images for parity; at least 64.
        argv: The command for the record.

    Returns:
        The record that was written.

    Raises:
        InputError: The backend has no such precision, something stays outside the delegate, the file's outputs are
            beyond the thresholds of :data:`edge_sk.export.parity.THRESHOLDS`, the model cannot be exported, or
            ExecuTorch is not installed. No file is left behind.
    """
    if precision not in BACKENDS[backend]:
        raise InputError(f"{backend} has no {precision} here; it has {', '.join(BACKENDS[backend])}")
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
    evidence, accuracy, notes = None, None, []
    if network.weights == UNTRAINED:
        notes.append("untrained weights: parity holds for these weights, accuracy means nothing")
    if backend == "xnnpack":
        evidence, accuracy = _prove(network, buffer, precision, softmax, images, name=path.name)
    else:
        notes.append(f"lowered, not run: the {backend} delegate does not run on this host")
    record = _record(
        network, path.name, precision, backend, softmax, size=len(buffer), argv=argv,
        rewrites=[f"{name} x{count}" for name, count in form.reparameterized.items()],  # type: ignore[union-attr]
        export_seconds=round(seconds, 2), delegation=delegated, parity=evidence, accuracy=accuracy, notes=notes,
    )  # fmt: skip
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer)
    if bundle:
        _write_bundle(network, program, path, precision, softmax)
    write_record(path, record)
    return record


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
        InputError: The model cannot be exported, or ExecuTorch is not installed.
    """
    exir = executorch("exir")
    form = deploy_form(network.model, mean=network.mean, std=network.std, softmax=softmax)
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
    except InputError:
        raise
    except Exception as error:  # The model's own code runs under the exporter: anything may be raised.
        raise InputError(_why_not_exported(network.arch, error)) from error
    with quiet(), delegation.listening() as reasons:
        edge = exir.to_edge_transform_and_lower(
            exported,
            partitioner=[_partitioner(backend)],
            constant_methods=_constants(network, precision, softmax),
        )
        delegated = delegation.inspect(edge.exported_program().graph_module, reasons)
        program = edge.to_executorch()
    delegated.in_float = in_float
    return form, program, delegated


def _why_not_exported(arch: str, error: Exception) -> str:
    # torch.export ends its message with the user's stack: the last line of a module's code is where it happened.
    places = re.findall(r'File "(?!.*/torch/)([^"]+)", line (\d+), in (\w+)', str(error))
    where = f" at {places[-1][0]}:{places[-1][1]} ({places[-1][2]})" if places else ""
    return (
        f"{arch} cannot be exported{where}: torch.export says {_first_line(error)}; "
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
        "crop_pct": network.crop_pct,
        "interpolation": network.interpolation,
        "mean": list(network.mean),
        "std": list(network.std),
        "num_classes": _num_classes(network),
        "labels": "\n".join(network.labels or []),
        "softmax": softmax,
        "edge_sk_version": manifest()["versions"]["edge_sk"] or "",
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
    with quiet():
        runtime = executorch("runtime").Runtime.get()
        # The runtime reads memory in order, whatever a tensor's strides say.
        try:
            loaded = runtime.load_program(program)
            method = loaded.load_method("forward")
            dtype = {5: torch.float16}.get(method.metadata.input_tensor_meta(0).dtype(), torch.float32)
            outputs = [method.execute([image[None].to(dtype).contiguous()])[0].float().clone() for image in images]
        except RuntimeError as error:
            raise InputError(f"ExecuTorch cannot run the program: {_first_line(error)}") from error
    return torch.cat(outputs)


def _prove(
    network: Network, program: bytes, precision: Precision, softmax: bool, images: int, *, name: str
) -> tuple[ParityEvidence, Accuracy | None]:
    """Hold the program against eager on test images; on all of them where accuracy means something."""
    limit = None if network.knows_data else images
    batches = list(network.images(split="test", limit=limit))
    pictures, labels = torch.cat([b for b, _ in batches]), torch.cat([y for _, y in batches])
    with torch.no_grad():
        expected = torch.cat([reference(network, softmax)(batch) for batch in pictures.split(16)])
    got = run_pte(program, pictures)
    measured = parity.compare(expected, got)
    limits = parity.threshold("pte", precision, trained=network.weights != UNTRAINED)
    measured.check(limits, what=name)
    accuracy = None
    if network.knows_data:
        accuracy = Accuracy(
            top1=(got.argmax(1) == labels).double().mean().item(),
            eager_top1=(expected.argmax(1) == labels).double().mean().item(),
            images=len(labels),
            data=network.data,
        )
    return ParityEvidence.of(measured, limits, data=f"{network.data} test", runtime=RUNTIME), accuracy


def _write_bundle(network: Network, program: Any, path: Path, precision: str, softmax: bool) -> None:
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
        content = serialize(bundled.BundledProgram(program, [config.MethodTestSuite("forward", cases)]))
    with atomic_write(artifact_path(path.parent, path.name.removesuffix(".pte"), ".bpte")) as temporary:
        temporary.write_bytes(content)


def _record(
    network: Network, file: str, precision: Precision, backend: str, softmax: bool, *, size: int,
    argv: Sequence[str] | None, **fields: Any,
) -> Record:  # fmt: skip
    cost = edge_sk.profile(network.model, (1, *network.input_size))
    return Record(
        arch=network.arch,
        file=file,
        format="pte",
        backend=backend,
        precision=precision,
        weights=network.weights,
        num_classes=_num_classes(network),
        labels=network.labels,
        softmax=softmax,
        input=network.contract,
        params=cost.params,
        macs=cost.macs,
        activations=cost.activations,
        size_bytes=size,
        manifest=manifest(argv),
        **fields,
    )


def _num_classes(network: Network) -> int:
    with torch.no_grad():
        return network.model(network.example()).shape[1]


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
