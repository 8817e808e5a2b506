"""A network as an ``.mlpackage`` for Core ML: image in, labels out, proven equal, with a record beside it."""

from __future__ import annotations

import collections
import errno
import json
import shutil
import time
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_sk.errors import InputError
from edge_sk.export.coreml import coremltools
from edge_sk.export.coreml.check import check_interface, check_operators, check_outputs
from edge_sk.export.coreml.mil import MilProgram
from edge_sk.export.network import Network
from edge_sk.export.prepare import drop_aliases, export_errors, prepare
from edge_sk.export.record import MLProgram, Precision, Record
from edge_sk.export.write import make_record, new_path, new_record
from edge_sk.files import atomic_folder, file_digest
from edge_sk.manifest import __version__, manifest
from edge_sk.reading import read_json
from edge_sk.running import first_line
from edge_sk.stderr import capture_stderr

PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32", "int8", "palette6")
TARGETS = ("iOS16", "iOS17", "iOS18", "iOS26")
"""Oldest systems to run on, by coremltools' names; macOS 13 and later take what iOS 16 takes, and so on."""

PALETTE_TROUBLE = (
    "packages with palettes from coremltools 9.0 were reported wrong or crashing on the Neural Engine "
    "(github.com/apple/coremltools issues 2716, 2688: 4 bits): compare on the device, or use int8"
)
INPUT, LABEL = "image", "classLabel"


def to_mlpackage(
    network: Network,
    output: str | Path,
    *,
    precision: Precision = "fp16",
    target: str = "iOS16",
    softmax: bool = True,
    images: int | None = None,
    replace: bool = False,
    accept: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> Record:
    """Convert a network, run the saved package on real images against eager, and keep it with its record.

    Args:
        network: What to export.
        output: Folder; the package is ``ARCH_coreml_PRECISION.mlpackage`` (``network.name`` may stand for the arch),
            the record has ``.json`` behind it.
        precision: ``int8`` and ``palette6`` say how weights are stored; arithmetic is then in half precision.
        target: Oldest system, of :data:`TARGETS`; ``17`` and ``ios17`` mean ``iOS17``.
        softmax: A classifier with probabilities and labels, as Xcode's preview and the Vision framework expect;
            ``False`` gives raw logits, as does a network that is no classifier: its outputs, by name.
        images: Test images for parity and accuracy, at least 64; ``None`` as
            :meth:`edge_sk.export.network.Network.test_images` says.
        replace: Also replace a package of the same name that holds other weights.
        accept: Demands of the proof to replace: ``"accuracy_loss<=0.05"``; see
            :func:`edge_sk.export.parity.accepting`.
        argv: The command for the record.

    Returns:
        The record that was written.

    Raises:
        InputError: An unknown precision or target, a package of the same name holds other weights, no images named
            for trained weights, an operator that coremltools cannot convert, labels that do not fit,
            outputs beyond the thresholds of :data:`edge_sk.export.parity.THRESHOLDS`, or coremltools is not installed.
        OSError: The disk is full. In every case no package is left behind, and an older one stays.
    """
    if precision not in PRECISIONS:
        raise InputError(f"mlpackage has no {precision} here; it has {', '.join(PRECISIONS)}")
    target = oldest_system(target)
    network.check_file(f"mlpackage {precision}")
    network.check_images(images)
    path = new_path(network, Path(output), f"coreml_{precision}.mlpackage", replace=replace)
    coremltools()
    softmax = softmax and network.is_classifier
    labels = class_labels(network) if softmax else None
    started = time.perf_counter()
    rewritten, rewrites = prepare(network, softmax=softmax)
    with export_errors(network.arch):
        graph = drop_aliases(_aten(torch.export.export(rewritten, (network.example(),))))
    model = _convert(graph, network, precision, target, labels)
    _describe(model, network, precision, labels)
    seconds = time.perf_counter() - started
    with new_record(path) as write_record, atomic_folder(path) as package:
        _save(model, package)
        program = MilProgram.load(package)
        check_interface(program, network, labels)
        check_operators(program, graph)
        evidence, accuracy, notes = check_outputs(program, network, precision, images=images, accept=accept)
        record = make_record(
            network,
            rewrites,
            argv=argv,
            notes=[*([PALETTE_TROUBLE] if precision == "palette6" else []), *notes],
            file=path.name,
            format="mlpackage",
            backend="coreml",
            precision=precision,
            labels=labels,
            softmax=softmax,
            size_bytes=sum(file.stat().st_size for file in package.rglob("*") if file.is_file()),
            sha256=file_digest(package),
            export_seconds=round(seconds, 2),
            program=MLProgram(
                target=target,
                specification_version=program.specification_version,
                operators=dict(sorted(program.operations.items())),
                max_rank=program.max_rank,
                largest_half=program.largest_half if precision != "fp32" else None,
            ),
            parity=evidence,
            accuracy=accuracy,
        )
        write_record(record)
    return record


def oldest_system(name: str) -> str:
    """The oldest system, as coremltools calls it, that may be written ``iOS17``, ``ios17`` or ``17``."""
    for target in TARGETS:
        if name.lower() in (target.lower(), target.removeprefix("iOS")):
            return target
    raise InputError(f"unknown Core ML target {name!r}; known: {', '.join(TARGETS)}")


def class_labels(network: Network) -> list[str]:
    """One label per class, all different; numbers where the network has no names.

    Raises:
        InputError: Another number of labels, or two equal ones: Core ML returns a dictionary by label.
    """
    labels = network.labels or [str(index) for index in range(network.num_classes or 0)]
    if len(labels) != network.num_classes:
        raise InputError(
            f"{len(labels)} labels for {network.num_classes} classes of {network.arch}; give one label per class"
        )
    label, count = collections.Counter(labels).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"label {label!r} stands for {count} classes: a Core ML classifier returns a "
            "dictionary by label; make the labels different, or export raw logits with softmax=False"
        )
    return list(labels)


def _aten(graph: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A graph in the ATEN dialect, which coremltools knows, without the one common operator that it lacks there."""
    shuffle = torch.ops.aten.channel_shuffle.default
    return graph.run_decompositions({shuffle: torch.export.default_decompositions()[shuffle]})


def _convert(
    graph: torch.export.ExportedProgram, network: Network, precision: Precision, target: str, labels: list[str] | None
) -> Any:
    ct = coremltools()
    layout = ct.colorlayout.RGB if network.input_size[0] == 3 else ct.colorlayout.GRAYSCALE
    image = ct.ImageType(name=INPUT, shape=(1, *network.input_size), scale=1 / 255, color_layout=layout)
    outputs = (
        {"classifier_config": ct.ClassifierConfig(labels, predicted_feature_name=LABEL)}
        if labels is not None
        else {"outputs": [ct.TensorType(name=name, dtype=np.float32) for name in network.outputs]}
    )
    try:
        with capture_stderr():
            from coremltools.converters.mil import Builder

            # Reading a package, too, counts up the numbers in the names of values: begin as in a fresh process.
            Builder.name_count.clear()
            model = ct.convert(
                graph,
                convert_to="mlprogram",
                inputs=[image],
                minimum_deployment_target=ct.target[target],
                compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
                skip_model_load=True,
                **outputs,
            )
    except OSError:
        raise
    except Exception as error:
        with capture_stderr():
            # The frames hold a temporary folder, which would otherwise be removed at some later moment, with a warning.
            traceback.clear_frames(error.__traceback__)
            culprit = _culprit(graph, network, error)
        raise InputError(
            f"coremltools cannot convert {culprit} in {network.arch}: {first_line(error)}; "
            "replace that module by operators that Core ML has"
        ) from error
    with capture_stderr():
        import coremltools.optimize.coreml as cto

        if precision == "int8":
            linear = cto.OpLinearQuantizerConfig(mode="linear_symmetric")
            return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=linear))
        if precision == "palette6":
            palette = cto.OpPalettizerConfig(mode="kmeans", nbits=6)
            return cto.palettize_weights(model, cto.OptimizationConfig(global_config=palette))
        return model


def _culprit(graph: torch.export.ExportedProgram, network: Network, error: Exception) -> str:
    """The operator that an error message names, and the module of the network that it comes from."""
    words = set(first_line(error).replace("'", " ").replace(",", " ").split())
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function" and node.name in words]
    if not targets:
        return "an operator"
    # The rewritten network is a traced graph, which no longer has the network's modules.
    original = _aten(torch.export.export(network.model, (network.example(),)))
    for node in original.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if node.target == targets[0] and stack:
            path, kind = stack[-1]
            return f"{targets[0]} of module {path!r} ({str(kind).rsplit('.', 1)[-1]})"
    return str(targets[0])


def _describe(model: Any, network: Network, precision: str, labels: list[str] | None) -> None:
    """Write metadata that Xcode shows, and how to use the file for those who have nothing else."""
    channels, height, width = network.input_size
    model.author = "edge-sk"
    model.license = "MIT (the converter's code); weights and labels: those of their training data"
    model.version = __version__
    classes = f"{network.num_classes} classes, " if network.num_classes else ""
    model.short_description = f"{network.arch}, {classes}{precision}"
    model.input_description[INPUT] = (
        f"{'RGB' if channels == 3 else 'grayscale'} image, {width}x{height}. Resize in proportion to cover "
        f"{int(width / network.crop_pct)}x{int(height / network.crop_pct)} ({network.interpolation}), crop the centre; "
        "normalisation is inside."
    )
    if labels is None:
        for name, shape in network.outputs.items():
            model.output_description[name] = "Logits, one per class." if network.is_classifier else f"Of shape {shape}."
    else:
        model.output_description[LABEL] = "The most probable class."
        model.output_description[model.get_spec().description.predictedProbabilitiesName] = (
            "Probability of every class."
        )
    facts = {
        "arch": network.arch,
        "precision": precision,
        "weights": network.weights,
        "version": __version__,
        "torch": manifest()["versions"]["torch"],
        "input_size": "x".join(map(str, network.input_size)),
        "mean": ",".join(f"{value:g}" for value in network.mean),
        "std": ",".join(f"{value:g}" for value in network.std),
        "interpolation": network.interpolation,
        "crop_pct": repr(network.crop_pct),  # every digit: the device rounds what it divides by this down
    }
    model.user_defined_metadata.update({f"edge_sk.{name}": value for name, value in facts.items()})


def _save(model: Any, path: Path) -> None:
    """Save the package; an error of the disk becomes an OSError of one line."""
    try:
        with capture_stderr():
            model.save(str(path))
    except shutil.Error as error:
        # copytree collects (source, destination, reason): the first says enough.
        reason = str(error.args[0][0][2]) if error.args and error.args[0] else str(error)
        full = f"[Errno {errno.ENOSPC}]" in reason
        code = errno.ENOSPC if full else errno.EIO
        raise OSError(code, "No space left on device" if full else reason, str(path.parent.parent)) from error
    # For ExecuTorch's developer tools; not part of the format, and as large as a small network.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    _make_repeatable(path)


def _make_repeatable(package: Path) -> None:
    """Rewrite what differs between two exports of one network, so that they have the same digest.

    coremltools writes the day into the metadata, map entries in the order of their hashes, and random identifiers into
    the manifest. The new identifiers are made from what they identify.
    """
    listing = package / "Manifest.json"
    content = read_json(listing)
    root, entries = content["rootModelIdentifier"], content["itemInfoEntries"]
    model_file = package / "Data" / entries[root]["path"]
    spec = coremltools().proto.Model_pb2.Model.FromString(model_file.read_bytes())
    spec.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    model_file.write_bytes(spec.SerializeToString(deterministic=True))
    names = {
        old: str(uuid.uuid5(uuid.NAMESPACE_OID, item["path"] + file_digest(package / "Data" / item["path"])))
        for old, item in entries.items()
    }
    content["rootModelIdentifier"] = names[root]
    content["itemInfoEntries"] = {names[old]: item for old, item in entries.items()}
    listing.write_text(json.dumps(content, indent=4, sort_keys=True), encoding="utf-8")
