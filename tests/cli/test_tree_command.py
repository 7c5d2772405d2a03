"""``specdecodes tree show``: what is printed, what the files hold, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from specdecodes.cli import main

STREE = """\
0  depth 0
├─ 1  depth 1, rank 1
│  ├─ 4  depth 2, rank 1
│  │  ├─ 7  depth 3, rank 1
│  │  │  ├─ 10  depth 4, rank 1
│  │  │  ├─ 11  depth 4, rank 2
│  │  │  └─ 12  depth 4, rank 3
│  │  └─ 8  depth 3, rank 2
│  └─ 5  depth 2, rank 2
│     └─ 9  depth 3, rank 1
├─ 2  depth 1, rank 2
│  └─ 6  depth 2, rank 1
└─ 3  depth 1, rank 3

13 nodes, depth 4, width per level 1 3 3 3 3
"""


def test_prints_the_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tree", "show", "3,2.1,2.1,3"]) == 0
    assert capsys.readouterr() == (STREE, "")


def test_a_growmap_is_the_tree_that_it_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    growmap = tmp_path / "growmap.json"
    growmap.write_text(json.dumps({"successors": [[1, 2], [], [3], []]}))
    assert main(["tree", "show", str(growmap)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:4] == [
        "0  depth 0",
        "├─ 1  depth 1, rank 1",
        "└─ 2  depth 1, rank 2",
        "   └─ 3  depth 2, rank 1",
    ]
    assert out.endswith("4 nodes, depth 2, width per level 1 2 1\n")


def test_writes_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tree.SVG"
    assert main(["tree", "show", "3,2.1,2.1,3", "--out", str(out)]) == 0
    assert capsys.readouterr() == ("", "")
    svg = ElementTree.parse(out).getroot()
    texts = ["".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "13 nodes, depth 4, width per level 1 3 3 3 3"
    assert [text for text in texts if "rank" in text] == [
        *("1 rank 1", "2 rank 2", "3 rank 3", "4 rank 1", "5 rank 2", "6 rank 1"),
        *("7 rank 1", "8 rank 2", "9 rank 1", "10 rank 1", "11 rank 2", "12 rank 3"),
    ]
    assert list(tmp_path.iterdir()) == [out]


def test_writes_png_as_large_as_the_svg(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="the extra 'pictures' is not installed")
    for name in ("tree.png", "tree.svg"):
        assert main(["tree", "show", "3,2.1,2.1,3", "--out", str(tmp_path / name)]) == 0
    svg = ElementTree.parse(tmp_path / "tree.svg").getroot()
    assert image.open(tmp_path / "tree.png").size == tuple(2 * int(svg.attrib[side]) for side in ("width", "height"))


@pytest.mark.parametrize("name", ["growmap.pt", "growmap.json"])
def test_save_writes_a_growmap_that_is_the_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / name
    assert main(["tree", "save", "3,2.1,2.1,3", str(path)]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["tree", "show", str(path)]) == 0
    assert capsys.readouterr() == (STREE, "")
    assert main(["tree", "save", str(path), str(tmp_path / "copy.json")]) == 0
    assert json.loads((tmp_path / "copy.json").read_text())["successors"][0] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "3,,2"], "tree: expected levels like '3,2.1,2.1,3'"),
        (["show", "none.json"], "tree: cannot read the growmap none.json"),
        (["show", "3", "--out", "tree.gif"], "--out: expected a file name ending in .svg or .png, got 'tree.gif'"),
        (["show", "3", "--out", "no/tree.svg"], "--out: expected a file in a folder that exists, got 'no/tree.svg'"),
        (["show"], "required: SPEC"),
        (["save", "3"], "required: FILE"),
        (["save", "3,,2", "a.pt"], "tree: expected levels like '3,2.1,2.1,3'"),
        (["save", "3", "tree.svg"], "tree: growmap tree.svg: expected a name that ends in .json or .pt"),
        (["save", "3", "no/tree.pt"], "tree: cannot write the growmap no/tree.pt"),
        (["draw", "3"], "invalid choice: 'draw'"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_input_is_one_line(refused: Callable[..., str], arguments: list[str], message: str) -> None:
    line = refused("tree", *arguments)
    assert line.startswith("specdecodes tree: ") and message in line


def test_help_of_show_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tree", "show", "--help"])
    out = capsys.readouterr().out
    assert "usage: specdecodes tree show" in out and "specdecodes tree show 3,2.1,2.1,3" in out
