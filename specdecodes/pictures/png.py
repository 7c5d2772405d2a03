"""A picture as PNG, drawn with Pillow (the extra ``pictures``) and the letters that Pillow brings."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise

from specdecodes.pictures.layout import BOX, FONT, Picture
from specdecodes.pictures.palette import LIGHT

SCALE = 2
"""Pixels of the file per pixel of the layout."""


def png_bytes(picture: Picture) -> bytes:
    """The picture on a light ground, ``SCALE`` times as wide and high as its layout.

    Raises:
        ValueError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ValueError(
            "PNG: expected Pillow, which is not installed; pip install 'specdecodes[pictures]', or write an SVG"
        ) from error
    image = Image.new("RGB", (picture.width * SCALE, picture.height * SCALE), LIGHT.ground)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(FONT * SCALE)
    for caption in picture.captions:
        place = (caption.left * SCALE, caption.baseline * SCALE)
        draw.text(place, caption.text, fill=LIGHT.muted, font=font, anchor="ls")
    for edge in picture.edges:
        corners = [edge.start, (edge.bend, edge.start[1]), (edge.bend, edge.end[1]), edge.end]
        for ends in pairwise(_scaled(corners)):  # from the top or left: a line drawn backwards lies a pixel off
            draw.line([min(ends), max(ends)], fill=LIGHT.kinds[edge.kind].stroke, width=SCALE)
    for box in picture.boxes:
        colours = LIGHT.kinds[box.label.kind]
        rectangle = _scaled([(box.left, box.top), (box.left + box.width, box.top + BOX)])
        draw.rounded_rectangle(rectangle, 4 * SCALE, fill=colours.fill, outline=colours.stroke, width=SCALE)
        parts = [(box.label.text, colours.ink)]
        if box.label.note:
            parts.append((f" {box.label.note}", LIGHT.muted))
        x = box.middle[0] * SCALE - sum(font.getlength(text) for text, _ in parts) / 2
        for text, ink in parts:
            draw.text((x, box.middle[1] * SCALE), text, fill=ink, font=font, anchor="lm")
            x += font.getlength(text)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _scaled(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(x * SCALE, y * SCALE) for x, y in points]
