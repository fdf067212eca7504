"""The same ORT file for the same model: onnxruntime writes one of its tables in the order of a hash map, anew in each run.

The table of kernel types is the last thing that is written, so it lies at the beginning of the flatbuffer, before the model.
It is written again in the order of its names; the model behind it stays as it is, byte by byte.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from samespace.sdk.errors import ExportError

__all__ = ["in_steady_order"]

_IDENTIFIER = b"ORTM"
_UNKNOWN = "onnxruntime wrote an ORT file of a layout that is not known here; install an onnxruntime that this release supports"


def in_steady_order(data: bytes) -> bytes:
    """An ORT file with its table of kernel types in the order of names.

    Raises:
        ExportError: the file is laid out in another way than onnxruntime has done so far.
    """
    import flatbuffers
    from flatbuffers import number_types

    session_table = _schema("InferenceSession")
    resolver_table = _schema("KernelTypeStrResolver")

    session = session_table.InferenceSession.GetRootAs(data, 0)
    table, model, resolver = session._tab, session.Model(), session.KernelTypeStrResolver()
    if data[4:8] != _IDENTIFIER or model is None or resolver is None:
        raise ExportError(_UNKNOWN)
    # A table's description lies just before it, unless it shares that of an equal table further back.
    position = model._tab.Pos
    description = position - model._tab.Get(number_types.SOffsetTFlags, position)
    start = min(position, description)
    version = table.Indirect(table.Pos + table.Offset(4)) if table.Offset(4) else start
    if version < start or resolver._tab.Pos > start:
        raise ExportError(_UNKNOWN)

    builder: Any = flatbuffers.Builder(1024)
    tail = data[start:]
    # The builder writes from the end to the beginning: it goes on where the model begins.
    builder.Bytes = bytearray(len(tail)) + bytearray(tail)
    builder.head = len(tail)
    # Everything is aligned from the end, and the whole is a multiple of the largest alignment in it, which may be less than 16.
    builder.minalign = math.gcd(16, len(data))
    kernels = _write_resolver(builder, resolver, resolver_table)
    session_table.Start(builder)
    session_table.AddOrtVersion(builder, len(data) - version)
    session_table.AddModel(builder, len(data) - position)
    session_table.AddKernelTypeStrResolver(builder, kernels)
    builder.Finish(session_table.End(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _schema(name: str) -> Any:
    """The module of a table, as flatbuffers generated it. The package around it makes the modules find each other."""
    return importlib.import_module(f"onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.{name}")


def _write_resolver(builder: Any, resolver: Any, table: Any) -> int:
    operator_table = _schema("OpIdKernelTypeStrArgsEntry")

    operators = [resolver.OpKernelTypeStrArgs(index) for index in range(resolver.OpKernelTypeStrArgsLength())]
    written = []
    for operator in sorted(operators, key=lambda entry: entry.OpId()):
        kinds = [operator.KernelTypeStrArgs(index) for index in range(operator.KernelTypeStrArgsLength())]
        kinds = [_write_kind(builder, kind) for kind in sorted(kinds, key=lambda entry: entry.KernelTypeStr())]
        name = builder.CreateString(operator.OpId())
        listed = _write_vector(builder, kinds)
        operator_table.Start(builder)
        operator_table.AddOpId(builder, name)
        operator_table.AddKernelTypeStrArgs(builder, listed)
        written.append(operator_table.End(builder))
    listed = _write_vector(builder, written)
    table.Start(builder)
    table.AddOpKernelTypeStrArgs(builder, listed)
    return table.End(builder)


def _write_kind(builder: Any, kind: Any) -> int:
    argument_table = _schema("ArgTypeAndIndex")
    kind_table = _schema("KernelTypeStrArgsEntry")

    arguments = [kind.Args(index) for index in range(kind.ArgsLength())]
    written = []
    for argument in sorted(arguments, key=lambda entry: (entry.ArgType(), entry.Index())):
        argument_table.Start(builder)
        argument_table.AddArgType(builder, argument.ArgType())
        argument_table.AddIndex(builder, argument.Index())
        written.append(argument_table.End(builder))
    name = builder.CreateString(kind.KernelTypeStr())
    listed = _write_vector(builder, written)
    kind_table.Start(builder)
    kind_table.AddKernelTypeStr(builder, name)
    kind_table.AddArgs(builder, listed)
    return kind_table.End(builder)


def _write_vector(builder: Any, tables: list[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return builder.EndVector()
