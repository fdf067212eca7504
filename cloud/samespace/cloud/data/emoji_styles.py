"""The emoji vendors: which package holds which style, who drew it, and under which licence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["GALLERY_STYLES", "QUERY_STYLES", "STYLES", "Style", "attribution"]


@dataclass(frozen=True, slots=True)
class Style:
    """One vendor's drawings, as an npm package of SVG bodies."""

    title: str
    version: str  #: of the package; pinned, so that two machines render the same pictures
    family: str  #: styles of one family are redrawings of each other
    author: str
    licence: str  #: SPDX identifier
    url: str


_GOOGLE = ("Google Inc", "Apache-2.0", "https://github.com/googlefonts/noto-emoji")
_MICROSOFT = ("Microsoft Corporation", "MIT", "https://github.com/microsoft/fluentui-emoji")
_EMOJITWO = ("Emoji One", "CC-BY-4.0", "https://github.com/EmojiTwo/emojitwo")
_LEGACY = ("Emoji One", "CC-BY-SA-4.0", "https://github.com/joypixels/emojione-legacy")

#: In order of precedence: of two identical pictures the one of the earlier style is kept.
STYLES: dict[str, Style] = {
    "noto": Style("Noto Emoji", "1.2.9", "noto", *_GOOGLE),
    "noto-v1": Style("Noto Emoji (v1)", "1.2.5", "noto", *_GOOGLE),
    "twemoji": Style("Twitter Emoji", "1.2.5", "twemoji", "Twitter", "CC-BY-4.0", "https://github.com/jdecked/twemoji"),
    "openmoji": Style("OpenMoji", "1.2.29", "openmoji", "OpenMoji", "CC-BY-SA-4.0", "https://github.com/hfg-gmuend/openmoji"),
    "fluent-emoji": Style("Fluent Emoji", "1.2.7", "fluent", *_MICROSOFT),
    "fluent-emoji-flat": Style("Fluent Emoji Flat", "1.2.6", "fluent", *_MICROSOFT),
    "fluent-emoji-high-contrast": Style("Fluent Emoji High Contrast", "1.2.6", "fluent", *_MICROSOFT),
    "emojione": Style("Emoji One (Colored)", "1.2.3", "emojione", *_EMOJITWO),
    "emojione-v1": Style("Emoji One (v1)", "1.2.3", "emojione", *_LEGACY),
    "emojione-monotone": Style("Emoji One (Monotone)", "1.2.1", "emojione", *_EMOJITWO),
    "fxemoji": Style("Firefox OS Emoji", "1.2.2", "fxemoji", "Mozilla", "Apache-2.0", "https://github.com/mozilla/fxemoji"),
    "streamline-emojis": Style(
        "Streamline Emojis",
        "1.2.4",
        "streamline",
        "Streamline",
        "CC-BY-4.0",
        "https://github.com/webalys-hq/streamline-vectors",
    ),
}

QUERY_STYLES = ("twemoji", "openmoji", "emojione-v1", "fxemoji", "streamline-emojis")
GALLERY_STYLES = ("noto", "fluent-emoji")

_LICENCE_TEXTS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "MIT": "https://opensource.org/license/mit",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
}


def attribution(styles: Iterable[str] = STYLES) -> str:
    """Who drew the emoji and under which licence, one line a style; to be printed wherever the pictures are shown."""
    lines = ["Emoji drawings, rendered as small bitmaps on white:"]
    for name in styles:
        style = STYLES[name]
        lines.append(f"  {style.title} by {style.author}, {style.licence} ({_LICENCE_TEXTS[style.licence]}): {style.url}")
    return "\n".join(lines)
