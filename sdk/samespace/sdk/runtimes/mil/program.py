"""A Core ML ML Program in memory: what :mod:`~samespace.sdk.runtimes.mil.translate` translates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.sdk.runtimes.mil.blob import read_blob, unpack_bytes
from samespace.sdk.runtimes.mil.schema import COLOUR_ORDERS, DTYPES, MODEL
from samespace.sdk.runtimes.mil.wire import decode

__all__ = ["Constant", "Operation", "Program", "TensorType", "read_package"]

#: A constant of the program: an array (0-d for a scalar) or a string.
Constant = npt.NDArray[Any] | str


@dataclass(frozen=True)
class TensorType:
    """Declared type of a value: MIL's name of the dtype (``"fp16"``, ``"int32"``, ...), and the shape, None where dynamic."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Operation:
    """One operation of the main function.

    Attributes:
        kind: MIL's name of the operator, e.g. ``"conv"``.
        inputs: parameter -> names of the values bound to it (one, or several where the parameter is a list).
        outputs: name -> declared type.
    """

    kind: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, TensorType]


@dataclass(frozen=True)
class Program:
    """The main function of an ML Program.

    Attributes:
        inputs: name -> declared type.
        outputs: names of the values it returns.
        operations: in order of execution, without the constants.
        constants: name -> value.
        images: input name -> ``"RGB"`` or ``"BGR"``, for inputs that are images.
    """

    inputs: Mapping[str, TensorType]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Constant]
    images: Mapping[str, str]


def read_package(files: Mapping[str, bytes]) -> Program:
    """Read an ``.mlpackage``.

    Args:
        files: path below the package, with forward slashes -> bytes.

    Raises:
        ValueError: the bytes are no package with an ML Program in it.
    """
    model_path = _model_path(files)
    model = decode(_file(files, model_path), MODEL)
    function = model.get("program", {}).get("functions", {}).get("main")
    if function is None:
        raise ValueError("it holds no ML Program with a function 'main'; convert it with convert_to='mlprogram'")
    block = function["blocks"].get(function.get("opset", ""))
    if block is None:
        raise ValueError(f"its main function has no body for the operator set {function.get('opset')!r}")
    return _Reader(files, PurePosixPath(model_path).parent).program(model, function, block)


class _Reader:
    def __init__(self, files: Mapping[str, bytes], folder: PurePosixPath) -> None:
        self._files = files
        self._folder = folder
        self._constants: dict[str, Constant] = {}

    def program(self, model: dict[str, Any], function: dict[str, Any], block: dict[str, Any]) -> Program:
        operations = []
        for raw in block["operations"]:
            if raw.get("kind") == "const":
                for output in raw["outputs"]:
                    self._constants[output["name"]] = self._value(raw["attributes"].get("val", {}))
            else:
                operations.append(self._operation(raw))
        images = {
            feature["name"]: COLOUR_ORDERS.get(feature["type"]["image"].get("colour", 0), "unknown")
            for feature in model.get("description", {}).get("inputs", [])
            if "image" in feature.get("type", {})
        }
        inputs = {value["name"]: _tensor_type(value.get("type", {})) for value in function["inputs"]}
        return Program(inputs, tuple(block["outputs"]), tuple(operations), self._constants, images)

    def _operation(self, raw: dict[str, Any]) -> Operation:
        outputs = {value.get("name", ""): _tensor_type(value.get("type", {})) for value in raw["outputs"]}
        inputs: dict[str, tuple[str, ...]] = {}
        # iOS 16 and older keep parameters of the constexpr operators among the attributes.
        inline = {key: {"bindings": [{"value": value}]} for key, value in raw["attributes"].items() if key != "name"}
        for parameter, argument in (inline | raw["inputs"]).items():
            names = []
            for index, binding in enumerate(argument["bindings"]):
                name = binding.get("name", "")
                if not name:
                    name = f"{next(iter(outputs), '')}/{parameter}/{index}"
                    self._constants[name] = self._value(binding.get("value", {}))
                names.append(name)
            inputs[parameter] = tuple(names)
        return Operation(raw.get("kind", ""), inputs, outputs)

    def _value(self, value: dict[str, Any]) -> Constant:
        kind = _tensor_type(value.get("type", {}))
        shape = tuple(edge if edge is not None else -1 for edge in kind.shape)
        if "blob" in value:
            path = value["blob"].get("file", "").replace("@model_path", str(self._folder), 1)
            return read_blob(_file(self._files, path), value["blob"].get("offset", 0), kind.dtype, shape)
        tensor = value.get("immediate", {}).get("tensor", {})
        if kind.dtype == "string":
            strings = tensor.get("strings", {}).get("values", [])
            return strings[0] if strings else ""
        if "bytes" in tensor:
            return unpack_bytes(tensor["bytes"].get("values", b""), kind.dtype, shape)
        values = next(
            (tensor[name]["values"] for name in ("floats", "ints", "bools", "longs", "doubles") if name in tensor), []
        )
        return np.array(values).astype(_NUMPY[kind.dtype]).reshape(shape)


_NUMPY = {"bool": np.bool_, "fp16": np.float16, "fp32": np.float32, "fp64": np.float64} | {
    f"{sign}int{bits}": np.dtype(f"{sign}int{bits}").type for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def _tensor_type(raw: dict[str, Any]) -> TensorType:
    tensor = raw.get("tensor", {})
    # A dimension whose constant is absent is dynamic; a constant without a size is 0 (the wire format leaves zeros out).
    shape = tuple(edge["constant"].get("size", 0) if "constant" in edge else None for edge in tensor.get("dimensions", []))
    return TensorType(DTYPES.get(tensor.get("dtype", 0), "unknown"), shape)


def _model_path(files: Mapping[str, bytes]) -> str:
    manifest = json.loads(_file(files, "Manifest.json"))
    try:
        return "Data/" + manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"its Manifest.json names no root model ({error})") from None


def _file(files: Mapping[str, bytes], path: str) -> bytes:
    if path not in files:
        raise ValueError(f"it has no file {path}; there are: {', '.join(sorted(files)) or 'none'}")
    return files[path]
