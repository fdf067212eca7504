"""The causes that a diagnosis can name, what each means, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from samespace.sdk.check.diagnosis.faults import PIXEL_FAULTS, VALUE_FAULTS, stage_of

__all__ = ["CAUSES", "UNKNOWN", "Entry", "cause_of", "stages_of"]

UNKNOWN = "unknown"


class Entry(NamedTuple):
    """What a cause means, in one sentence, and its mend."""

    summary: str
    mend: str


CAUSES: Mapping[str, Entry] = {
    "bgr": Entry(
        "red and blue are exchanged",
        "feed RGB: convert what OpenCV, Android's ARGB or iOS's BGRA buffers give before the resize or after it",
    ),
    "no_antialias": Entry(
        "the picture is resized without antialias: four pixels count, whatever the reduction",
        "resize with a filter that widens with the reduction, as the bundle's preprocess says (Pillow's BILINEAR)",
    ),
    "filter_nearest": Entry(
        "the picture is resized by nearest neighbour", "resize with the antialiased bilinear filter of the bundle's preprocess"
    ),
    "filter_bicubic": Entry(
        "the picture is resized with a bicubic filter", "resize with the antialiased bilinear filter of the bundle's preprocess"
    ),
    "filter_lanczos": Entry(
        "the picture is resized with a Lanczos filter", "resize with the antialiased bilinear filter of the bundle's preprocess"
    ),
    "filter_box": Entry(
        "the picture is resized with a box filter (OpenCV's INTER_AREA)",
        "resize with the antialiased bilinear filter of the bundle's preprocess",
    ),
    "crop_order": Entry(
        "the picture is cropped or padded before the resize instead of after it",
        "resize first, with the rounding of the bundle's preprocess, then crop or pad",
    ),
    "squashed": Entry("the picture is squashed into the square", "keep its aspect: crop or pad as the preprocess's 'fit' says"),
    "other_fit": Entry(
        "the picture is cropped where it should be padded, or padded where cropped", "do what the preprocess's 'fit' says"
    ),
    "exif_ignored": Entry(
        "the EXIF orientation is ignored: turned photos lie on their side", "turn the picture as its EXIF orientation says"
    ),
    "no_mean_std": Entry(
        "mean and std are left out", "normalise once: the exported graph does it, so export again or run the bundle's own file"
    ),
    "mean_std_twice": Entry(
        "mean and std are applied twice", "feed values 0-255: the graph normalises by itself, so the app must not"
    ),
    "range_01": Entry("the values are 0-1 where 0-255 are expected", "feed values 0-255: do not divide by 255"),
    "layout": Entry(
        "the buffer's layout is mistaken: interleaved pixels (NHWC) read as planes (NCHW), or the reverse",
        "write the buffer in the layout that the artifact's input says, or transpose it",
    ),
    "no_l2": Entry("the embeddings are not divided by their norms", "divide each embedding by its L2 norm"),
    "other_revision": Entry(
        "the embeddings are sound, but of another model or revision of it",
        "run the artifact of this bundle (compare its SHA-256), or check against the bundle of the model that runs",
    ),
    "int8_saturation": Entry(
        "int8 sums saturate: x86 processors without VNNI cut them at 16 bits",
        "export int8 with reduced range (7-bit weights) or unsigned weights, or run fp32 on such processors",
    ),
    "quantisation_error": Entry(
        "the device runs the artifact as it is: the artifact itself is this far from its model on these pictures",
        "calibrate on pictures like these, keep the worst layers in float, fine-tune for int8, or ship fp16",
    ),
    "fp16_overflow": Entry(
        "values overflow half precision: rows are NaN, infinite or zero",
        "export again with a norm that scales first, or run in single precision there",
    ),
    "fc_garbage": Entry(
        "the quantised FULLY_CONNECTED operator is misread by the runtime: output dimensions have wrong scales",
        "leave FULLY_CONNECTED in float or quantise it per tensor, or take a newer runtime (LiteRT)",
    ),
    UNKNOWN: Entry(
        "the embeddings differ, and no known mistake explains how",
        "compare the tensors that the app feeds with the golden ones, and bisect the artifact",
    ),
}

#: What bundles of format version 1 call it.
_OLD_NAMES = {"float01_twice": "range_01"}


def cause_of(fault: str) -> str:
    """The cause of a fingerprint's name: without its variant, and by its name of today."""
    name = fault.partition("@")[0]
    return _OLD_NAMES.get(name, name)


def stages_of(causes: tuple[str, ...]) -> frozenset[str]:
    """The stages at which these causes happen; a cause that is no preprocessing mistake has its own."""
    return frozenset(_STAGE.get(cause, cause) for cause in causes)


_STAGE = {cause_of(name): stage_of(name) for name in (*(n for names in PIXEL_FAULTS.values() for n in names), *VALUE_FAULTS)}
