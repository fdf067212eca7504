"""int8 that is merely too coarse is called that: the app and its processor did nothing wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from samespace.export.formats.onnx import OnnxExporter
from samespace.export.formats.onnx_int8 import Scheme, to_int8
from samespace.export.options import ExportOptions
from samespace.sdk.bundle import Bundle
from samespace.sdk.check.diagnosis import diagnose
from samespace.sdk.check.diagnosis.saturation import emulated_embeddings
from samespace.sdk.runtimes.tensors import as_input
from samespace.sdk.signing import SigningKey, TrustStore


@pytest.fixture(scope="module")
def bundle(digits: Any, digits_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Calibrated on pictures that are nearly black: the ranges fit none of the probes."""
    folder = tmp_path_factory.mktemp("coarse")
    fp32 = onnx.load_model_from_string(OnnxExporter().convert(digits.graph, "fp32").files[""])
    dark = ExportOptions(calibration=(digits.calibration // 16).astype(np.uint8))
    models = {"int8": to_int8(fp32, dark, Scheme()).SerializeToString()}
    key, trust = SigningKey.new(), TrustStore(folder / "trust")
    trust.add(key.public, "tests")
    return Bundle.open(digits_bundle(folder / "digits.samespace", key, models), trust=trust)


def emulated(bundle: Bundle, digits: Any, *, saturating: bool) -> np.ndarray:
    artifact = bundle.artifact("onnx-int8")
    fed = as_input(digits.unseen[:96], artifact.spec.input)
    rows = emulated_embeddings(artifact.single_file, artifact.spec.input.name, fed, saturating=saturating)
    assert rows is not None
    return rows


@pytest.mark.parametrize("live", [True, False])
def test_a_coarse_artifact_is_named_and_not_the_processor(bundle: Bundle, digits: Any, live: bool) -> None:
    rows = emulated(bundle, digits, saturating=False)
    found = diagnose(bundle, "onnx-int8", rows, live=live)
    assert [cause.name for cause in found.causes] == ["quantisation_error"]


@pytest.mark.parametrize("live", [True, False])
def test_what_the_artifact_does_not_give_is_not_called_coarse(bundle: Bundle, digits: Any, live: bool) -> None:
    turned = np.roll(emulated(bundle, digits, saturating=False), 1, axis=1)
    found = diagnose(bundle, "onnx-int8", turned, live=live)
    assert "quantisation_error" not in [cause.name for cause in found.causes]
    assert found.causes
