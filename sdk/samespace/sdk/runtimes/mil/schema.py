"""The fields of Core ML's messages that the evaluator reads.

Numbers and names are those of ``Model.proto``, ``FeatureTypes.proto`` and ``MIL.proto`` of the public Core ML specification.
"""

from __future__ import annotations

from samespace.sdk.runtimes.mil.wire import Field, Message

__all__ = ["COLOUR_ORDERS", "DTYPES", "MODEL"]

#: MIL.proto, enum DataType. Names as in MIL's text form.
DTYPES: dict[int, str] = {
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 21: "int8", 22: "int16", 23: "int32", 24: "int64", 25: "int4",
    31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3",
}  # fmt: skip

#: FeatureTypes.proto, enum ImageFeatureType.ColorSpace: the order in which the program gets the channels.
COLOUR_ORDERS: dict[int, str] = {20: "RGB", 30: "BGR"}

_DIMENSION: Message = {1: Field("constant", {1: Field("size", "int")}), 2: Field("unknown", {1: Field("variadic", "int")})}
_TENSOR_TYPE: Message = {1: Field("dtype", "int"), 3: Field("dimensions", _DIMENSION, many=True)}
_VALUE_TYPE: Message = {1: Field("tensor", _TENSOR_TYPE)}
_NAMED: Message = {1: Field("name", "string"), 2: Field("type", _VALUE_TYPE)}

# TensorValue wraps each element type in a message of its own, whose only field is number 1.
_TENSOR_VALUE: Message = {
    1: Field("floats", {1: Field("values", "float", many=True)}),
    2: Field("ints", {1: Field("values", "int", many=True)}),
    3: Field("bools", {1: Field("values", "int", many=True)}),
    4: Field("strings", {1: Field("values", "string", many=True)}),
    5: Field("longs", {1: Field("values", "int", many=True)}),
    6: Field("doubles", {1: Field("values", "double", many=True)}),
    7: Field("bytes", {1: Field("values", "bytes")}),
}
_VALUE: Message = {
    2: Field("type", _VALUE_TYPE),
    3: Field("immediate", {1: Field("tensor", _TENSOR_VALUE)}),
    5: Field("blob", {1: Field("file", "string"), 2: Field("offset", "int")}),
}
_BINDING: Message = {1: Field("name", "string"), 2: Field("value", _VALUE)}
_OPERATION: Message = {
    1: Field("kind", "string"),
    2: Field("inputs", {1: Field("bindings", _BINDING, many=True)}, map=True),
    3: Field("outputs", _NAMED, many=True),
    5: Field("attributes", _VALUE, map=True),
}
_BLOCK: Message = {2: Field("outputs", "string", many=True), 3: Field("operations", _OPERATION, many=True)}
_FUNCTION: Message = {1: Field("inputs", _NAMED, many=True), 2: Field("opset", "string"), 3: Field("blocks", _BLOCK, map=True)}
_IMAGE: Message = {1: Field("width", "int"), 2: Field("height", "int"), 3: Field("colour", "int")}
_FEATURE: Message = {1: Field("name", "string"), 3: Field("type", {4: Field("image", _IMAGE)})}

#: The whole ``.mlmodel`` file.
MODEL: Message = {
    1: Field("version", "int"),
    2: Field("description", {1: Field("inputs", _FEATURE, many=True), 10: Field("outputs", _FEATURE, many=True)}),
    502: Field("program", {2: Field("functions", _FUNCTION, map=True)}),
}
