"""Pictures of trees: what the files hold, and that nothing lies upon anything else."""

from __future__ import annotations

import builtins
import io
import itertools
import random
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import pytest

from specdecodes.core.parents import children_of, depths_of, ranks_of
from specdecodes.pictures.layout import BOX, Label, Picture, lay_out, row
from specdecodes.pictures.png import SCALE, png_bytes
from specdecodes.pictures.svg import STYLE, svg_element, svg_file
from specdecodes.pictures.text import branches
from specdecodes.plugins.trees.shape import TreeShape

STREE = TreeShape.parse("3,2.1,2.1,3").parents


def random_tree(nodes: int, seed: int) -> list[int]:
    """Parents in no particular order, but first."""
    numbers = random.Random(seed)
    return [-1, *(numbers.randrange(node) for node in range(1, nodes))]


TREES: dict[str, Sequence[int]] = {
    "root": [-1],
    "stree": STREE,
    "chain": TreeShape.chain(40).parents,
    "star": [-1, *[0] * 30],
    "64 nodes": random_tree(64, 0),
    "not breadth-first": [-1, 0, 1, 0, 3, 1, 0],
}
trees = pytest.mark.parametrize("parents", TREES.values(), ids=TREES.keys())


def drawn(parents: Sequence[int], **settings: Any) -> Picture:
    return lay_out(
        parents, [Label(str(node), f"rank {rank}") for node, rank in enumerate(ranks_of(parents))], **settings
    )


# Lists of parents


def test_children_depths_and_ranks_by_hand() -> None:
    parents = [-1, 0, 1, 0, 3, 1, 0]
    assert children_of(parents) == [[1, 3, 6], [2, 5], [], [4], [], [], []]
    assert depths_of(parents) == [0, 1, 2, 1, 2, 2, 1]
    assert ranks_of(parents) == [0, 1, 1, 2, 1, 2, 3]


# Layout


@trees
def test_no_two_nodes_overlap_and_all_are_inside(parents: Sequence[int]) -> None:
    picture = drawn(parents, headline="a headline", depths=True)
    assert len(picture.boxes) == len(parents)
    for a, b in itertools.combinations(picture.boxes, 2):
        beside = a.left + a.width <= b.left or b.left + b.width <= a.left
        assert beside or abs(a.top - b.top) >= BOX
    for box in picture.boxes:
        assert box.left >= 0 and box.left + box.width <= picture.width
        assert box.top >= 0 and box.top + BOX <= picture.height
    assert all(caption.baseline < min(box.top for box in picture.boxes) for caption in picture.captions)


@trees
def test_edges_join_parents_with_children_and_cross_no_box(parents: Sequence[int]) -> None:
    picture = drawn(parents)
    edges = {(edge.start, edge.end): edge for edge in picture.edges}
    assert len(edges) == len(parents) - 1
    for node, parent in enumerate(parents[1:], 1):
        a, b = picture.boxes[parent], picture.boxes[node]
        edge = edges[(a.left + a.width, a.middle[1]), (b.left, b.middle[1])]
        for box in picture.boxes:
            assert not box.left <= edge.bend <= box.left + box.width
        same_column = [box for box in picture.boxes if box.left == a.left]
        assert {box.width for box in same_column} == {a.width}, "else an edge could run below a wider box"


@trees
def test_depth_goes_right_and_siblings_down(parents: Sequence[int]) -> None:
    picture = drawn(parents)
    lefts = dict(zip(depths_of(parents), (box.left for box in picture.boxes), strict=True))
    assert [lefts[depth] for depth in sorted(lefts)] == sorted(lefts.values())
    assert all(picture.boxes[n].left == lefts[d] for n, d in enumerate(depths_of(parents)))
    for siblings in children_of(parents):
        tops = [picture.boxes[node].top for node in siblings]
        assert tops == sorted(tops)


def test_wide_letters_get_room() -> None:
    narrow, wide = (lay_out([-1], [Label(text)]).boxes[0].width for text in ("ab", "漢字"))
    assert wide > narrow
    assert row([Label("ab"), Label("漢字")]).boxes[1].left > row([Label("ab")]).boxes[0].width


def test_what_is_rejected_is_drawn_first() -> None:
    labels = [Label("0", kind=kind) for kind in ("root", "accepted", "rejected", "bonus")]
    assert [edge.kind for edge in lay_out([-1, 0, 0, 0], labels).edges] == ["rejected", "accepted", "bonus"]


# SVG


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


SVG = "{http://www.w3.org/2000/svg}"


@trees
def test_svg_has_a_node_per_node_and_an_edge_less(parents: Sequence[int]) -> None:
    picture = drawn(parents, headline="a headline", depths=True)
    svg = parsed(svg_file(picture, "a tree"))
    nodes = [g for g in svg.iter(f"{SVG}g") if "node" in g.attrib["class"].split()]
    assert len(nodes) == len(parents)
    assert len([path for path in svg.iter(f"{SVG}path") if "edge" in path.attrib["class"].split()]) == len(parents) - 1
    texts = ["".join(text.itertext()) for node in nodes for text in node.iter(f"{SVG}text")]
    assert texts == [f"{node} rank {rank}" for node, rank in enumerate(ranks_of(parents))]
    captions = [text.text for text in svg.iter(f"{SVG}text") if text.attrib.get("class") == "caption"]
    assert captions == ["a headline", *(f"depth {depth}" for depth in range(max(depths_of(parents)) + 1))]
    assert (int(svg.attrib["width"]), int(svg.attrib["height"])) == (picture.width, picture.height)


def test_svg_escapes_labels_and_titles() -> None:
    label = Label("<b>&", note="]]>", title='</title><script>"')
    picture = lay_out([-1], [label], headline="<i>")
    for text in (svg_file(picture, 'a "tree" <'), svg_element(picture, 'a "tree" <')):
        svg = parsed(text)
        assert {element.tag.removeprefix(SVG) for element in svg.iter()} <= {
            *("svg", "style", "rect", "text", "g", "title", "tspan")
        }
        assert svg.attrib["aria-label"] == 'a "tree" <'
        assert [element.text for element in svg.iter() if element.tag.endswith("title")] == ['</title><script>"']
        assert "<b>& ]]>" in ["".join(element.itertext()) for element in svg.iter() if element.tag.endswith("text")]


def test_an_element_leaves_its_style_to_the_page_and_a_file_has_one_for_both_grounds() -> None:
    picture = drawn(STREE)
    assert "<style>" not in svg_element(picture, "x")
    assert STYLE in svg_file(picture, "x")
    assert "prefers-color-scheme:dark" in STYLE


# PNG


@pytest.mark.parametrize("parents", [STREE, random_tree(64, 0)], ids=["13 nodes", "64 nodes"])
def test_png_has_the_layouts_size_and_its_colours_where_they_belong(parents: Sequence[int]) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="the extra 'pictures' is not installed")
    picture = drawn(parents, headline="a headline")
    image = image_module.open(io.BytesIO(png_bytes(picture)))
    assert (image.format, image.mode) == ("PNG", "RGB")
    assert image.size == (picture.width * SCALE, picture.height * SCALE)
    inside, outline, ground = (hexed("f4f4f5"), hexed("8a8a94"), hexed("ffffff"))
    assert image.getpixel((0, 0)) == ground
    for box in picture.boxes:
        assert image.getpixel(((box.left + 4) * SCALE, (box.top + 3) * SCALE)) == inside
        assert image.getpixel((box.left * SCALE, (box.top + BOX // 2) * SCALE)) == outline
        area = (box.left, box.top, box.left + box.width, box.top + BOX)
        letters = image.crop(tuple(SCALE * side for side in area)).getcolors(1 << 16)
        assert any(max(colour) < 0x60 for _, colour in letters)
    for edge in picture.edges:
        assert image.getpixel((edge.bend * SCALE, edge.end[1] * SCALE)) == outline


def hexed(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour))


def test_png_without_pillow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"PNG: expected Pillow.*pip install 'specdecodes\[pictures\]'"):
        png_bytes(drawn([-1]))


# Text


def test_branches_by_hand() -> None:
    lines = [f"{before}{node}" for before, node in branches([-1, 0, 0, 1, 1, 3, 2])]
    assert lines == ["0", "├─ 1", "│  ├─ 3", "│  │  └─ 5", "│  └─ 4", "└─ 2", "   └─ 6"]


@trees
def test_branches_visit_every_node_once_below_its_parent(parents: Sequence[int]) -> None:
    found = list(branches(parents))
    assert sorted(node for _, node in found) == list(range(len(parents)))
    for before, node in found:
        assert len(before) == 3 * depths_of(parents)[node]


def test_a_very_deep_tree_is_no_recursion() -> None:
    parents = [-1, *range(3000)]
    assert sum(1 for _ in branches(parents)) == len(drawn(parents).boxes) == 3001
