"""Run the Core ML program of a saved ``.mlpackage``, without a Mac.

Core ML itself exists on Apple's systems only. An ``.mlpackage`` holds a list of operators (the MIL program) and a file
of weights, and both can be read anywhere: this module loads them from disk and evaluates the program with torch, in
float32, with the weights as they are stored (half precision, 8 bits with a scale, a palette).

This proves that the graph, the weights, the image preprocessing and the class labels in the file are those of the
model. It does not prove how the Neural Engine or the GPU round. Half-precision activations are therefore not rounded
here; their largest magnitude is kept instead (:attr:`MilProgram.largest_half`), because beyond 65504 a phone overflows.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sk.errors import InputError
from edge_sk.export.coreml import coremltools
from edge_sk.export.coreml.constants import CONSTANTS
from edge_sk.export.coreml.operators import OPERATORS
from edge_sk.stderr import capture_stderr

LARGEST_HALF = 65504.0
"""The largest number that half precision holds."""

# Channels by ImageFeatureType.ColorSpace in Core ML's FeatureTypes.proto.
_CHANNELS = {10: 1, 20: 3}


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """An input that takes pixels, 0 to 255: 3 channels are RGB, 1 is grayscale."""

    name: str
    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, features: Any, path: Path) -> ImageInput:
        """The one input of a package."""
        if len(features) != 1 or features[0].type.WhichOneof("Type") != "imageType":
            names = [feature.name for feature in features]
            raise InputError(f"{path} has the inputs {names}, not one image; export it with edge-sk export")
        kind = features[0].type.imageType
        if kind.colorSpace not in _CHANNELS:
            raise InputError(f"{path}: input {features[0].name!r} has colour space {kind.colorSpace}: RGB or grayscale")
        return cls(features[0].name, _CHANNELS[kind.colorSpace], kind.height, kind.width)

    def tensor(self, image: Any) -> Tensor:
        """Pixels as the program receives them, ``(1, C, H, W)`` float32.

        Raises:
            InputError: Not 8-bit, or another size than the input declares (Core ML itself refuses that, too).
        """
        pixels = np.asarray(image)
        expected = (self.height, self.width) + ((self.channels,) if self.channels == 3 else ())
        if pixels.dtype != np.uint8 or pixels.shape != expected:
            raise InputError(
                f"input {self.name!r} takes uint8 pixels of shape {expected} (height, width, RGB), got "
                f"{pixels.dtype} {pixels.shape}"
            )
        planes = pixels.reshape(self.height, self.width, self.channels).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(planes)).float()[None]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The outputs of a package for one image.

    Args:
        outputs: By name, as Core ML returns them: arrays; of a classifier the label and the probabilities by label.
        logits: What enters the softmax of the first output, or that output if no softmax makes it: ``(classes,)``.
        label: The most probable class; ``None`` when the package is no classifier.
    """

    outputs: dict[str, Any]
    logits: Tensor
    label: str | None


@dataclasses.dataclass(frozen=True)
class _Step:
    """An operator; values are known by the numbers of coremltools' variables, whose names are not unique."""

    kind: str
    name: str
    inputs: dict[str, int | list[int]]
    output: int
    half: bool  # computed in half precision on the phone


class MilProgram:
    """The main function of a saved package with one image input.

    Attributes:
        image: The input.
        labels: Class labels in the order of the probabilities; ``None`` when the package is no classifier.
        description: Core ML's ``ModelDescription``: names and descriptions of inputs and outputs, metadata.
        specification_version: Core ML's; it decides the oldest system that loads the package.
        operations: How often each operator runs; stored constants are not counted.
        max_rank: Most axes of any value; Core ML allows 5.
        largest_half: Largest magnitude seen so far in a value that is half precision in the program.
        ends_in_softmax: Whether the first output is made of probabilities.
    """

    def __init__(self, path: Path, spec: Any, main: Any) -> None:
        self.path = path
        self.description = spec.description
        self.specification_version = int(spec.specificationVersion)
        self.image = ImageInput.of(spec.description.input, path)
        self.labels: list[str] | None = None
        self.operations: collections.Counter[str] = collections.Counter()
        self.max_rank = 0
        self.largest_half = 0.0
        self._constants: dict[int, Any] = {}
        self._steps: list[_Step] = []
        (self._input,) = map(id, main.inputs.values())
        self._outputs = [id(var) for var in main.outputs]
        self._first = self._outputs[0]
        for op in main.operations:
            self._add(op)
        self._logits = self._before_softmax()
        self.ends_in_softmax = self._logits != self._first

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MilProgram:
        """Read a package from disk.

        Raises:
            InputError: No such package, not an ML program, damaged, or an operator that this module does not know; the
                operator and its output are named.
        """
        path = Path(path)
        ct = coremltools()
        if not path.is_dir():
            raise InputError(f"no package at {path}; an .mlpackage is a folder that edge-sk export writes")
        with capture_stderr():
            from coremltools.converters.mil.frontend.milproto.load import load

            try:
                model = ct.models.MLModel(str(path), skip_model_load=True)
                spec = model.get_spec()
                if spec.WhichOneof("Type") != "mlProgram":
                    raise InputError(f"{path} holds a {spec.WhichOneof('Type')}, not an ML program")
                program = load(
                    spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir
                )
                return cls(path, spec, program.functions["main"])
            except InputError:
                raise
            except Exception as error:  # coremltools and its C++ reader raise every type there is
                raise InputError(
                    f"{path} is not a readable ML program ({type(error).__name__}: {error}); export it again"
                ) from error

    @torch.inference_mode()
    def predict(self, image: Any) -> Prediction:
        """Run the program.

        Args:
            image: 8 bits per channel: PIL, or an array of shape (H, W, 3), or (H, W) for grayscale.

        Raises:
            InputError: The image does not fit, or an operator has an argument that this module does not know.
        """
        values: dict[int, Any] = self._constants | {self._input: self.image.tensor(image)}
        for step in self._steps:
            arguments = {
                name: [values[each] for each in source] if isinstance(source, list) else values[source]
                for name, source in step.inputs.items()
            }
            try:
                value = OPERATORS[step.kind](**arguments)
            except (TypeError, ValueError, KeyError, RuntimeError, IndexError) as error:
                raise InputError(
                    f"{self.path}: cannot evaluate operator {step.kind!r} of {step.name!r}: {error}; "
                    "edge_sk/export/coreml/operators.py has what is known of it"
                ) from error
            values[step.output] = value
            if step.half and value.numel():
                self.largest_half = max(self.largest_half, value.abs().max().item())
        logits = values[self._logits].flatten()
        if self.labels is None:
            names = [feature.name for feature in self.description.output]
            arrays = (values[output].numpy() for output in self._outputs)
            return Prediction(dict(zip(names, arrays, strict=True)), logits, None)
        by_label = dict(zip(self.labels, values[self._first].flatten().tolist(), strict=True))
        label = max(by_label, key=by_label.__getitem__)
        names = self.description.predictedFeatureName, self.description.predictedProbabilitiesName
        return Prediction(dict(zip(names, (label, by_label), strict=True)), logits, label)

    def _add(self, op: Any) -> None:
        """Take one operator over from coremltools' representation."""
        output = id(op.outputs[0])
        inputs = {name: var for name, var in op.inputs.items() if var is not None}
        if op.op_type == "const":
            self._constants[output] = _constant(op.outputs[0].val)
            return
        if op.op_type in CONSTANTS:
            arguments = {name: var.val for name, var in inputs.items()}
            self._constants[output] = _constant(CONSTANTS[op.op_type](**arguments))
            return
        self.operations[op.op_type] += 1
        if op.op_type == "classify":
            self.labels = [str(label) for label in op.classes.val]
            self._first = id(op.probabilities)
        elif op.op_type in OPERATORS:
            self.max_rank = max(self.max_rank, op.outputs[0].rank)
            sources = {
                name: [id(each) for each in var] if isinstance(var, (list, tuple)) else id(var)
                for name, var in inputs.items()
            }
            half = op.outputs[0].is_tensor_or_scalar_of("fp16")
            self._steps.append(_Step(op.op_type, op.outputs[0].name, sources, output, half))
        else:
            raise InputError(
                f"{self.path}: operator {op.op_type!r}, which makes {op.outputs[0].name!r}, is not known to "
                "edge_sk.export.coreml.mil, so the package cannot be verified here; add it to "
                "edge_sk/export/coreml/operators.py"
            )

    def _before_softmax(self) -> int:
        """What enters the softmax that makes the first output; that output itself if no softmax does."""
        makers = {step.output: step for step in self._steps}
        value: Any = self._first
        while value in makers and makers[value].kind in ("cast", "reshape"):
            value = makers[value].inputs["x"]
        is_softmax = value in makers and makers[value].kind == "softmax"
        return makers[value].inputs["x"] if is_softmax else self._first  # type: ignore[return-value]


def _constant(value: Any) -> Any:
    """Strings, booleans and small integer vectors stay; numbers to compute with become float32 tensors."""
    if isinstance(value, (str, list)):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    if array.ndim == 0:
        return array.item()
    return torch.from_numpy(array.astype(np.int64)) if array.dtype.kind in "iu" else array
