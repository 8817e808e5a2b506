"""Run the Core ML program that is really in a saved ``.mlpackage``, without a Mac.

Core ML itself exists on Apple's systems only. An ``.mlpackage`` holds a list of operators (the MIL program) and a file
of weights, and both can be read anywhere: this module loads them from disk and evaluates the program with torch, in
float32, with the weights as they are stored (half precision, 8 bits with a scale, a palette).

What that proves: the graph, the weights, the image preprocessing and the class labels in the file are those of the
model. What it does not: how the Neural Engine or the GPU round. Half-precision activations are therefore not rounded
here; their largest magnitude is kept instead (:attr:`MilProgram.largest_half`), because beyond 65504 a phone overflows.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sk.errors import InputError
from edge_sk.export.coreml_tools import coremltools
from edge_sk.export.mil_constants import CONSTANTS
from edge_sk.export.mil_ops import OPERATORS
from edge_sk.export.quiet import quiet

LARGEST_HALF = 65504.0
"""The largest number that half precision holds."""

_GRAYSCALE, _RGB = 10, 20  # ImageFeatureType.ColorSpace in Core ML's FeatureTypes.proto


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """An input that takes pixels, 0 to 255.

    Args:
        name: Its name in the package.
        channels: 3 for RGB, 1 for grayscale.
        height: In pixels.
        width: In pixels.
    """

    name: str
    channels: int
    height: int
    width: int

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
class _Step:
    kind: str
    inputs: dict[str, str | list[str]]
    outputs: list[str]
    half: bool  # computed in half precision on the phone
    last_use: list[str]  # values that no later step needs


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a package with one output says to an image.

    Args:
        logits: What enters the final softmax, or the output of a package without one: ``(classes,)``.
        label: The most probable class; ``None`` when the package is no classifier.
        probabilities: By label; ``None`` when the package is no classifier.
    """

    logits: Tensor
    label: str | None
    probabilities: dict[str, float] | None


class MilProgram:
    """The main function of a saved package.

    Attributes:
        labels: Class labels in the order of the probabilities; ``None`` when the package is no classifier.
        image: The image input; ``None`` when the package takes a plain tensor.
        answer_names: Names of a classifier's two outputs, the label and the probabilities by label.
        metadata: ``author``, ``license``, ``short_description``, ``version`` and the user-defined entries.
        specification_version: Core ML's; it decides the oldest system that loads the package.
        largest_half: Largest magnitude seen so far in a value that is half precision in the program.
    """

    def __init__(self, path: Path, spec: Any, main: Any) -> None:
        self.path = path
        self.largest_half = 0.0
        description = spec.description
        self.specification_version = int(spec.specificationVersion)
        self.metadata = {
            "author": description.metadata.author,
            "license": description.metadata.license,
            "short_description": description.metadata.shortDescription,
            "version": description.metadata.versionString,
            **dict(description.metadata.userDefined),
        }
        self.descriptions = {
            feature.name: feature.shortDescription for feature in (*description.input, *description.output)
        }
        self.input_names = [feature.name for feature in description.input]
        self.output_names = [feature.name for feature in description.output]
        self.image = _image_input(description)
        self.answer_names = (description.predictedFeatureName, description.predictedProbabilitiesName)
        self.labels: list[str] | None = None
        self._constants: dict[str, Any] = {}
        self._steps: list[_Step] = []
        self._ranks: dict[str, int] = {}
        self._keys: dict[Any, str] = {}
        self._names: collections.Counter[str] = collections.Counter()
        self.stored_as: collections.Counter[str] = collections.Counter()
        for var in main.inputs.values():
            self._key(var)
        for op in main.operations:
            self._add(op)
        self._outputs = [self._key(var) for var in main.outputs]
        self._keys.clear()
        self._release()

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
            raise InputError(f"no package at {path}; an .mlpackage is a folder that deploy/export.py writes")
        with quiet():
            from coremltools.converters.mil.frontend.milproto.load import load

            try:
                model = ct.models.MLModel(str(path), skip_model_load=True)
                spec = model.get_spec()
                if spec.WhichOneof("Type") != "mlProgram":
                    raise InputError(f"{path} holds a {spec.WhichOneof('Type')}, not an ML program")
                _refuse_unknown(spec, path)
                program = load(
                    spec,
                    specification_version=spec.specificationVersion,
                    file_weights_dir=model.weights_dir,
                )
            except InputError:
                raise
            except Exception as error:  # coremltools and its C++ reader raise every type there is
                raise InputError(
                    f"{path} is not a readable ML program ({type(error).__name__}: {error}); export it again"
                ) from error
            return cls(path, spec, program.functions["main"])

    def operations(self) -> collections.Counter[str]:
        """How often each operator runs; stored constants are not counted."""
        return collections.Counter(step.kind for step in self._steps)

    def max_rank(self) -> int:
        """Most axes of any value; Core ML allows 5."""
        return max(self._ranks.values(), default=0)

    @property
    def ends_in_softmax(self) -> bool:
        """Whether the answer is made of probabilities."""
        end, before = self._ends()
        return end != before

    def predict(self, features: Any) -> dict[str, Any]:
        """Run the program as ``MLModel.predict`` would.

        Args:
            features: An 8-bit image (PIL, or an array of shape (H, W, 3)), or a mapping from input names to values.

        Returns:
            The outputs by name: arrays, and for a classifier the label and a dict from label to probability.
        """
        if self.labels is None:
            values = self._run(self._feed(features), self._outputs)
            return {name: values[var].numpy() for name, var in zip(self.output_names, self._outputs, strict=True)}
        answer = self.answer(features)
        label, by_label = self.answer_names
        return {label: answer.label, by_label: answer.probabilities}

    def answer(self, features: Any) -> Answer:
        """Run the program once, for its answer and for what enters its final softmax.

        Args:
            features: As for :meth:`predict`.

        Raises:
            InputError: The package has several outputs.
        """
        end, before = self._ends()
        values = self._run(self._feed(features), [end, before])
        if self.labels is None:
            return Answer(values[before].flatten(), None, None)
        by_label = dict(zip(self.labels, values[end].flatten().tolist(), strict=True))
        return Answer(values[before].flatten(), max(by_label, key=by_label.__getitem__), by_label)

    def _key(self, var: Any) -> str:
        """A variable's name, made unique: coremltools names the defaults that it fills in like others in the file."""
        if var not in self._keys:
            self._names[var.name] += 1
            number = self._names[var.name]
            self._keys[var] = var.name if number == 1 else f"{var.name}#{number}"
        return self._keys[var]

    def _add(self, op: Any) -> None:
        """Take one operator over from coremltools' representation."""
        names = [self._key(var) for var in op.outputs]
        if op.op_type == "const":
            self._constants[names[0]] = _constant(op.outputs[0].val)
            return
        if op.op_type in CONSTANTS:
            arguments = {name: var.val for name, var in op.inputs.items() if var is not None}
            self._constants[names[0]] = _constant(CONSTANTS[op.op_type](**arguments))
            self.stored_as[op.op_type] += 1
            return
        if op.op_type == "classify":
            self.labels = [str(label) for label in op.classes.val]
            inputs: dict[str, Any] = {"probabilities": op.probabilities}
        else:
            inputs = {name: var for name, var in op.inputs.items() if var is not None}
        half = False
        for var in op.outputs:
            if hasattr(var, "rank") and op.op_type != "classify":
                self._ranks[self._key(var)] = var.rank
                half = half or _is_half(var)
        wiring = {
            name: [self._key(each) for each in var] if isinstance(var, (list, tuple)) else self._key(var)
            for name, var in inputs.items()
        }
        self._steps.append(_Step(op.op_type, wiring, names, half, last_use=[]))

    def _release(self) -> None:
        """Note after which step each value is no longer needed: a big network would hold every feature map."""
        seen = {*self._outputs, *self._constants, *(self._ends() if len(self._outputs) == 1 or self.labels else ())}
        for step in reversed(self._steps):
            for names in step.inputs.values():
                for name in [names] if isinstance(names, str) else names:
                    if name not in seen:
                        seen.add(name)
                        step.last_use.append(name)

    def _feed(self, features: Any) -> dict[str, Tensor]:
        if not isinstance(features, Mapping):
            if len(self.input_names) != 1:
                raise InputError(f"the package has inputs {self.input_names}: pass a mapping by name")
            features = {self.input_names[0]: features}
        if set(features) != set(self.input_names):
            raise InputError(f"the package takes inputs {self.input_names}, got {sorted(features)}")
        return {
            name: self.image.tensor(value)
            if self.image is not None and name == self.image.name
            else torch.as_tensor(np.asarray(value)).float()
            for name, value in features.items()
        }

    @torch.inference_mode()
    def _run(self, feed: dict[str, Tensor], wanted: list[str]) -> dict[str, Any]:
        values: dict[str, Any] = self._constants | feed
        for step in self._steps:
            if step.kind == "classify":
                continue
            arguments = {
                name: values[source] if isinstance(source, str) else [values[each] for each in source]
                for name, source in step.inputs.items()
            }
            try:
                result = OPERATORS[step.kind](**arguments)
            except (TypeError, ValueError, KeyError, RuntimeError, IndexError) as error:
                raise InputError(
                    f"{self.path}: cannot evaluate operator {step.kind!r} of {step.outputs[0]!r}: {error}; "
                    "edge_sk/export/mil_ops.py says what is known of it"
                ) from error
            results = result if isinstance(result, (list, tuple)) else (result,)
            for name, value in zip(step.outputs, results, strict=True):
                values[name] = value
                if step.half and value.numel():
                    self.largest_half = max(self.largest_half, value.abs().max().item())
            for name in step.last_use:
                del values[name]
        return {name: values[name] for name in wanted}

    def _ends(self) -> tuple[str, str]:
        """The value that the answer is made of, and what enters its softmax (itself where there is none)."""
        if self.labels is None and len(self._outputs) != 1:
            raise InputError(f"{self.path} has outputs {self.output_names}: use predict()")
        end = self._outputs[0]
        for step in self._steps:
            if step.kind == "classify":
                end = str(step.inputs["probabilities"])
        makers = {name: step for step in self._steps for name in step.outputs}
        name = end
        while name in makers and makers[name].kind in ("cast", "reshape", "squeeze", "expand_dims"):
            name = str(makers[name].inputs["x"])
        if name in makers and makers[name].kind == "softmax":
            return end, str(makers[name].inputs["x"])
        return end, end


def _image_input(description: Any) -> ImageInput | None:
    for feature in description.input:
        if feature.type.WhichOneof("Type") == "imageType":
            kind = feature.type.imageType
            channels = {_RGB: 3, _GRAYSCALE: 1}.get(kind.colorSpace)
            if channels is None:
                raise InputError(f"input {feature.name!r} has colour space {kind.colorSpace}: RGB or grayscale")
            return ImageInput(feature.name, channels, kind.height, kind.width)
    return None


def _refuse_unknown(spec: Any, path: Path) -> None:
    """Name the first operator that this module cannot evaluate."""
    function = spec.mlProgram.functions["main"]
    for op in function.block_specializations[function.opset].operations:
        if op.type not in OPERATORS and op.type not in CONSTANTS and op.type not in ("const", "classify"):
            raise InputError(
                f"{path}: operator {op.type!r}, which makes {op.outputs[0].name!r}, is not known to "
                "edge_sk.export.mil, so the package cannot be verified here; add it to edge_sk/export/mil_ops.py"
            )


def _is_half(var: Any) -> bool:
    return getattr(var.dtype, "__type_info__", None) is not None and repr(var.dtype.__type_info__()) == "fp16"


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
