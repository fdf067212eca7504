"""What to export: formats and precisions by name, or what suits a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samespace.export.formats import EXPORTERS, exporter_class
from samespace.export.formats.base import Precision
from samespace.sdk.errors import ConfigError

__all__ = ["DEFAULT_ARTIFACTS", "TARGETS", "Artifacts", "choose_artifacts", "parse_artifacts"]

#: Formats and precisions.
Artifacts = tuple[tuple[str, Precision], ...]

#: What is exported unless told otherwise: one faithful artifact of each main format. It needs no calibration pictures, and no
#: model is too small for it; int8 is asked for, since it may be refused.
DEFAULT_ARTIFACTS: Artifacts = (("onnx", "fp32"), ("tflite", "fp32"), ("coreml", "fp16"))

#: What suits a target, the artifact to ship first, then what to fall back on.
TARGETS: Mapping[str, Artifacts] = {
    # fp16 halves the download of fp32 and is computed in float; ort is for apps that build onnxruntime's mobile package.
    "android": (("tflite", "int8"), ("tflite", "fp16"), ("tflite", "fp32"), ("ort", "int8"), ("ort", "fp32")),
    # int8 is in the weights only, so that it is nearly as exact as fp16, at half the size.
    "ios": (("coreml", "fp16"), ("coreml", "int8")),
    # No fp16: a browser without shader-f16 answers it with zeros, and wasm computes it in fp32.
    "web": (("onnx", "int8"), ("onnx", "fp32")),
    "linux-arm": (("tflite", "int8"), ("onnx", "int8"), ("onnx", "fp32")),
}


def choose_artifacts(
    exact: Sequence[str] = (), formats: Sequence[str] = (), precisions: Sequence[str] = (), targets: Sequence[str] = ()
) -> Artifacts:
    """All that is asked for, each once.

    Args:
        exact: ``format`` or ``format-precision``, see :func:`parse_artifacts`; these come on top of the others.
        formats: alone, each in its default precision.
        precisions: of the formats, or of the main ones: all combinations that exist.
        targets: names in :data:`TARGETS`. ``formats`` leave out the others of a target; ``precisions`` replace its own.

    Raises:
        ConfigError: an unknown name, a format that exists in none of the precisions, or a precision that none of the formats
            has; lists what there is.
    """
    chosen = [*parse_artifacts(exact)] if exact else []
    for target in targets:
        if target not in TARGETS:
            raise ConfigError(f"no export target is called {target!r}; there are: {', '.join(TARGETS)}")
        mine = {format for format, _ in TARGETS[target]}
        if strange := [format for format in formats if format not in mine]:
            there = ", ".join(f"{format}-{precision}" for format, precision in TARGETS[target])
            raise ConfigError(f"{strange[0]} is not for the target {target!r}, which takes: {there}")
        kept = [pair for pair in TARGETS[target] if not formats or pair[0] in formats]
        chosen += _product(list(dict.fromkeys(format for format, _ in kept)), precisions) if precisions else kept
    if not targets and precisions:
        chosen += _product(formats or [format for format, _ in DEFAULT_ARTIFACTS], precisions)
    elif not targets:
        chosen += parse_artifacts(formats) if formats else []
    return tuple(dict.fromkeys(chosen)) or DEFAULT_ARTIFACTS


def parse_artifacts(names: Sequence[str]) -> Artifacts:
    """``["onnx", "coreml-fp16"]`` to formats and precisions; a bare format takes its default precision.

    Raises:
        ConfigError: an unknown format, or a precision that it has not.
    """
    if not names:
        return DEFAULT_ARTIFACTS
    chosen: list[tuple[str, Precision]] = []
    for name in names:
        format, _, wanted = name.partition("-")
        precisions = exporter_class(format).precisions
        fitting: list[tuple[str, Precision]] = [(format, known) for known in precisions if known == (wanted or precisions[0])]
        if not fitting:
            raise ConfigError(f"{format} is not exported as {wanted!r}; there is: {_there([format])}")
        chosen += fitting
    return tuple(dict.fromkeys(chosen))


def _product(formats: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, Precision]]:
    """Combinations that exist; a name that none of them has is refused."""
    pairs: list[tuple[str, Precision]] = [
        (name, precision) for name in formats for precision in exporter_class(name).precisions if precision in precisions
    ]
    for precision in precisions:
        if precision not in {known for _, known in pairs}:
            raise ConfigError(f"{_list(formats)} not exported as {precision!r}; there is: {_there(formats)}")
    for format in formats:
        if format not in {known for known, _ in pairs}:
            raise ConfigError(f"{format} is not exported as {' or '.join(precisions)}; there is: {_there([format])}")
    return pairs


def _list(formats: Sequence[str]) -> str:
    return f"{formats[0]} is" if len(formats) == 1 else f"{', '.join(formats[:-1])} and {formats[-1]} are"


def _there(formats: Sequence[str]) -> str:
    return ", ".join(f"{name}-{known}" for name in EXPORTERS if name in formats for known in exporter_class(name).precisions)
