"""A TFLite file that says nothing twice.

An int8 file has a scale and a zero point for every channel of every weight and bias, the zero points as eight bytes each, all
of them 0: a tenth of a small model's file. A flatbuffer may refer to one vector from many places.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["compact"]

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16


def compact(model: bytes) -> bytes:
    """The same model with equal vectors of numbers written once."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    class Builder(flatbuffers.Builder):
        """Remembers where it wrote a vector."""

        def __init__(self) -> None:
            super().__init__(len(model))
            self._written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: np.ndarray[Any, Any]) -> int:  # noqa: N802 - flatbuffers' name
            key = (x.dtype.str, x.tobytes())
            if key not in self._written:
                if x.dtype == np.uint8:  # as the schema demands of buffers
                    self.Prep(_ALIGNMENT, x.nbytes)
                self._written[key] = super().CreateNumpyVector(x)
            return self._written[key]

    builder = Builder()
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    for buffer in tree.buffers or ():
        if buffer.offset > 1:  # stored behind the flatbuffer, at a place in the file that would no longer be right
            buffer.data = np.frombuffer(model, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    builder.Finish(tree.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())
