"""An adaptation as one page, with pictures: which images moved which, and which nobody else agrees with."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image

from samespace.cloud.finetune.fit import Fitted
from samespace.cloud.finetune.report import FinetuneReport
from samespace.sdk.page import document, table_html

__all__ = ["page"]

#: Images that are shown, and of each the images that moved it most.
_SHOWN, _MOVERS = 8, 6


def page(
    report: FinetuneReport,
    fitted: Fitted,
    pictures: npt.NDArray[np.uint8],
    keys: Sequence[str],
    targets: npt.NDArray[np.float32],
    version: str,
) -> str:
    """The page as HTML text.

    Args:
        pictures: ``(n, s, s, 3)`` as they were learnt from, and ``keys`` what they are called.
        targets: ``(n, d)``.
    """
    parts = [f"<p>{escape(line)}</p>" for line in report.lines()]
    if fitted.influence is None or fitted.left_out is None:
        parts.append(
            '<p class="soft">The influence of single images is known where the optimum is found in closed form: give fewer '
            "images, or let fewer layers change.</p>"
        )
    else:
        moved: list[int] = np.argsort(-np.linalg.norm(fitted.fitted, axis=1))[:_SHOWN].tolist()
        lines = [_mover_row(index, fitted.influence[index], pictures, keys) for index in moved]
        parts += [
            "<h3>These images moved this one most</h3>",
            '<p class="soft">By how much of its own change would go if the image had not been there, in closed form. '
            "Negative: it pulled the other way.</p>",
            table_html(("embedding", "moved by", *[""] * (_MOVERS - 1)), lines),
        ]
        missed = np.linalg.norm(fitted.before + fitted.left_out - targets, axis=1)
        alone: list[int] = np.argsort(-missed)[:_SHOWN].tolist()
        cells = "".join(_cell(pictures[index], keys[index], f"{missed[index]:.2f}") for index in alone)
        parts += [
            "<h3>What no other image would have led to</h3>",
            '<p class="soft">Distance to what was wanted, by an adaptation without the image: a wrong label is seen here.</p>',
            table_html(("farthest first", *[""] * (len(alone) - 1)), [f"<tr>{cells}</tr>"]),
        ]
    if report.reproduce:
        parts.append(f'<p class="soft"><small>again with: <code>{escape(report.reproduce)}</code></small></p>')
    return document(
        title=f"adaptation {report.adaptation_id}",
        heading=escape(report.adaptation_id),
        about=f"of {report.model_id}, towards {report.towards}",
        body="\n".join(parts),
        version=version,
    )


def _mover_row(index: int, influence: npt.NDArray[np.float32], pictures: npt.NDArray[np.uint8], keys: Sequence[str]) -> str:
    movers: list[int] = np.argsort(-np.abs(influence))[:_MOVERS].tolist()
    cells = "".join(_cell(pictures[one], keys[one], f"{influence[one]:+.3f}") for one in movers)
    return f"<tr>{_cell(pictures[index], keys[index], '')}{cells}</tr>"


def _cell(picture: npt.NDArray[np.uint8], key: str, said: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    name = escape(key)
    return f'<td><img alt="{name}" title="{name}" width="64" src="data:image/png;base64,{data}"><br><small>{said}</small></td>'
