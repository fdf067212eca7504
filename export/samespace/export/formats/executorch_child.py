"""The child process of :mod:`samespace.export.formats.executorch`: lowers one model to a ``.pte`` program for XNNPACK.

samespace is not installed where it runs. One question (see :mod:`samespace.sdk.runtimes.child_frames`): ``{"precision",
"shape"}`` with three of torch.export's archives, what stands before the model, the model, and the L2 norm behind it, and with
pictures to calibrate on, uint8 of ``shape``; answered with the versions and the program.
"""

from __future__ import annotations

import io
import runpy
import sys
import warnings
from dataclasses import replace
from importlib.metadata import version
from typing import Any


def answer(question: Any, parts: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Lower a model."""
    import numpy as np
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # pyright: ignore[reportMissingImports]
        XnnpackPartitioner,
    )
    from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]

    warnings.simplefilter("ignore")
    before, model, after = (torch.export.load(io.BytesIO(part)) for part in parts[:3])
    example: Any = before.example_inputs
    steps = [program.module() for program in (before, model, after)]
    if question["precision"] == "int8":
        pictures = torch.from_numpy(np.frombuffer(parts[3], np.uint8).reshape(question["shape"]).copy())
        steps[1] = _int8(steps[1], steps[0], pictures)
    program = torch.export.export(torch.nn.Sequential(*steps), example[0])
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    packages = {name: version(name) for name in ("executorch", "torch", "torchao")}
    return {"versions": packages}, [bytes(lowered.buffer)]


def _int8(model: Any, before: Any, pictures: Any) -> Any:
    """Static int8, weights per channel; activations by their least and greatest values: histograms clip, and take minutes."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (  # pyright: ignore[reportMissingImports]
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True)
    observer = MinMaxObserver.with_args(eps=2**-12)
    by_range = {
        name: replace(getattr(config, name), observer_or_fake_quant_ctr=observer)
        for name in ("input_activation", "output_activation")
    }
    prepared = prepare_pt2e(model, XNNPACKQuantizer().set_global(replace(config, **by_range)))
    with torch.no_grad():
        for index in range(len(pictures)):
            prepared(before(pictures[index : index + 1]))
    return convert_pt2e(prepared)


if __name__ == "__main__":
    runpy.run_path(sys.argv[1])["serve"](answer)
