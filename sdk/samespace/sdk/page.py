"""The frame of every page that samespace writes: no script, no font, no picture from elsewhere; it opens from a disk.

What is put into it is HTML already: escape what came from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from string import Template

__all__ = ["document", "outcome_html", "table_html"]

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
  :root { color-scheme: light dark; --ground: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d6dbe1; --panel: #f5f7f9;
    --pass: #1a7f37; --fail: #c62828; --inconclusive: #9a6700; }
  @media (prefers-color-scheme: dark) { :root { --ground: #111418; --ink: #e6e9ec; --soft: #9aa4ae; --line: #333a42;
    --panel: #1a1f25; --pass: #4ac26b; --fail: #ff7b72; --inconclusive: #d6a02a; } }
  * { box-sizing: border-box; }
  body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
    max-width: 72rem; padding: 0 1.25rem; }
  h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 0; }
  h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
  .pass { color: var(--pass); } .fail { color: var(--fail); } .inconclusive { color: var(--inconclusive); }
  .soft { color: var(--soft); } .scroll { overflow-x: auto; } code { font-size: .88em; overflow-wrap: anywhere; }
  table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
  th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top; }
  td.number { white-space: nowrap; } tr.first td { border-top: 2px solid var(--line); }
  section { border: 1px solid var(--line); border-left: 5px solid; border-radius: 8px; margin: 1.5rem 0;
    padding: 1rem 1.25rem; }
  section.pass { border-left-color: var(--pass); } section.fail { border-left-color: var(--fail); }
  section.inconclusive { border-left-color: var(--inconclusive); } section > * { color: var(--ink); }
  .outcome { font-weight: 650; text-transform: uppercase; font-size: .8rem; letter-spacing: .03em; white-space: nowrap; }
  .box { background: var(--panel); border-radius: 6px; margin: .5rem 0; padding: .7rem 1rem; } .box p { margin: .15rem 0; }
  .cases { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
  figure { background: var(--panel); border-radius: 6px; margin: 0; padding: .8rem; }
  figure .pictures { display: flex; gap: .6rem; } figure .pictures div { font-size: .75rem; color: var(--soft); }
  figure img { background: #888; border-radius: 4px; display: block; height: 96px; image-rendering: pixelated; width: 96px;
    object-fit: contain; }
  figcaption { margin-top: .5rem; font-size: .85rem; } figure table { font-size: .8rem; margin-top: .4rem; }
  svg { display: block; max-width: 100%; height: auto; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
  footer { color: var(--soft); font-size: .82rem; margin-top: 2rem; }
</style>
<h1>$heading</h1>
<p class="soft">$about</p>
$body
<footer>Written by samespace $version. The numbers behind it are what <code>--json</code> writes.</footer>
""")


def document(*, title: str, heading: str, about: str, body: str, version: str) -> str:
    """A page.

    Args:
        title: plain text, of the window.
        heading: HTML.
        about: plain text below it.
        body: HTML.
        version: of the samespace that measured what it says.
    """
    return _PAGE.substitute(title=escape(title), heading=heading, about=escape(about), body=body, version=escape(version))


def table_html(heads: Sequence[str], lines: Sequence[str]) -> str:
    """A table that scrolls where the window is narrow; ``lines`` are rows in HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def outcome_html(outcome: str) -> str:
    """``pass``, ``fail`` or ``inconclusive`` in its colour."""
    return f'<span class="outcome {outcome}">{outcome}</span>'
