"""What a linearised model costs on a device: its ONNX artifact beside the plain one's, in turns."""

from __future__ import annotations

import time

import numpy as np
import onnxruntime

from samespace.edge.models.linearised import two_streams
from samespace.export.formats.onnx import OnnxExporter
from samespace.export.graph import DeviceGraph
from samespace.export.run import RunModel

__all__ = ["forwards"]

_TURNS, _CALLS = 15, 40
#: What changes: the layers that the adaptations of this benchmark change, and everything.
_TRAINED = {"last stage": ("body.1", "head"), "all layers": ("stem", "body", "head")}


def forwards(model: RunModel, threads: int) -> dict[str, float]:
    """Median time of one picture as a multiple of the plain graph's, by what changes."""
    preprocess = model.record.preprocess
    plain = model.build()
    networks = {"plain": plain} | {name: two_streams(model.build(), trained) for name, trained in _TRAINED.items()}
    sessions = {}
    for name, network in networks.items():
        if name != "plain":
            # Changes that are all 0 could be folded away.
            for key, value in network.state_dict().items():
                if ".delta_" in key:
                    value.normal_(std=1e-3)
        files = OnnxExporter().convert(DeviceGraph(network, preprocess), "fp32").files
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        sessions[name] = onnxruntime.InferenceSession(next(iter(files.values())), options, providers=["CPUExecutionProvider"])
    picture = np.zeros((1, preprocess.size, preprocess.size, 3), np.uint8)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(_TURNS):
        for name, session in sessions.items():
            feed = {session.get_inputs()[0].name: picture}
            begun = time.perf_counter()
            for _ in range(_CALLS):
                session.run(None, feed)
            times[name].append(time.perf_counter() - begun)
    middle = {name: float(np.median(values)) for name, values in times.items()}
    return {name: middle[name] / middle["plain"] for name in _TRAINED}
