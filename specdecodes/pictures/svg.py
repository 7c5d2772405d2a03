"""A picture as SVG: a file of its own, or part of a page."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from specdecodes.pictures.layout import BOX, FONT, Box, Edge, Picture
from specdecodes.pictures.palette import DARK, LIGHT, Palette


def _rules(palette: Palette) -> str:
    rules = [
        f"svg.tree .ground{{fill:{palette.ground}}}svg.tree .caption{{fill:{palette.muted}}}"
        f"svg.tree .note{{fill:{palette.muted}}}"
    ]
    for kind, (fill, stroke, ink) in palette.kinds.items():
        rules.append(
            f"svg.tree .{kind} rect{{fill:{fill};stroke:{stroke}}}svg.tree .{kind} text{{fill:{ink}}}"
            f"svg.tree path.{kind}{{stroke:{stroke}}}"
        )
    return "".join(rules)


STYLE = (
    f"svg.tree text{{font:{FONT}px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}}"
    "svg.tree .node text{text-anchor:middle}svg.tree path{fill:none}"
    "svg.tree .accepted rect,svg.tree path.accepted,svg.tree .bonus rect{stroke-width:2}"
    "svg.tree .rejected rect,svg.tree path.rejected{stroke-dasharray:4 3}"
    "svg.tree .cut rect,svg.tree path.cut{stroke-dasharray:1 3}"
    f"{_rules(LIGHT)}@media (prefers-color-scheme:dark){{{_rules(DARK)}}}"
)
"""What a page needs once for all its pictures; kinds differ in their outlines too, not in colour alone."""


def svg_file(picture: Picture, title: str) -> str:
    """The picture as a file: its own style and ground. ``title`` is what a screen reader says."""
    head = f"<style>{STYLE}</style>", '<rect class="ground" width="100%" height="100%"/>'
    return _svg(picture, title, ' xmlns="http://www.w3.org/2000/svg"', *head)


def svg_element(picture: Picture, title: str) -> str:
    """The picture as an element of an HTML page that has :data:`STYLE`."""
    return _svg(picture, title, "")


def _svg(picture: Picture, title: str, attributes: str, *head: str) -> str:
    width, height = picture.width, picture.height
    lines = [
        f'<svg{attributes} class="tree" role="img" aria-label={quoteattr(title)} '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        *head,
        *(f'<text class="caption" x="{c.left:g}" y="{c.baseline:g}">{escape(c.text)}</text>' for c in picture.captions),
        *map(_edge, picture.edges),
        *(line for box in picture.boxes for line in _node(box)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _edge(edge: Edge) -> str:
    (x, y), (end_x, end_y) = edge.start, edge.end
    return f'<path class="edge {edge.kind}" d="M{x:g} {y:g}H{edge.bend:g}V{end_y:g}H{end_x:g}"/>'


def _node(box: Box) -> Iterator[str]:
    label = box.label
    x, y = box.middle
    yield f'<g class="node {label.kind}">'
    if label.title:
        yield f"<title>{escape(label.title)}</title>"
    round_off = BOX / 2 if label.kind == "bonus" else 4
    yield f'<rect x="{box.left:g}" y="{box.top:g}" width="{box.width:g}" height="{BOX}" rx="{round_off:g}"/>'
    note = f' <tspan class="note">{escape(label.note)}</tspan>' if label.note else ""
    yield f'<text x="{x:g}" y="{y + FONT / 3:g}">{escape(label.text)}{note}</text>'
    yield "</g>"
