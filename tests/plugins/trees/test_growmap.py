"""Growmap files: Sequoia's dictionary and our JSON, read, written, and refused where they contradict themselves."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch

from specdecodes import load
from specdecodes.plugins.trees.growmap import Growmap
from specdecodes.plugins.trees.growmap_file import read_growmap, write_growmap
from specdecodes.plugins.trees.shape import TreeShape
from specdecodes.plugins.trees.static import Static
from specdecodes.testing import check_tree_builder, toy_model

SUCCESSORS = [[1, 2, 3], [4, 5], [6], [], [], [], []]


def sequoia(**changes):
    """The dictionary of ``SUCCESSORS``, spelled out."""
    mask = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 0, 1, 0, 0, 0, 1],
    ]
    growmap = {
        "roots": [[0], [1, 2, 3], [4, 5, 6]],
        "branches": [[3], [2, 1, 0], [0, 0, 0]],
        "Successors": SUCCESSORS,
        "mask": torch.tensor(mask),
        "depth": torch.tensor([0, 1, 1, 1, 2, 2, 2]),
        "size": 7,
    }
    return {**growmap, **changes}


@pytest.fixture
def save(tmp_path):
    def write(content):
        path = tmp_path / "tree.pt"
        torch.save(content, path)
        return path

    return write


def changed(name, at, value):
    tensor = sequoia()[name].clone()
    tensor[at] = value
    return {name: tensor}


def test_sequoias_dictionary_is_a_shape(save):
    path = save(sequoia())
    assert read_growmap(path) == SUCCESSORS
    assert TreeShape.parse(str(path)) == TreeShape.parse("3,2.1.0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int32])
def test_a_mask_of_another_type_says_the_same(save, dtype):
    assert read_growmap(save(sequoia(mask=sequoia()["mask"].to(dtype)))) == SUCCESSORS


def test_nodes_need_not_be_numbered_level_by_level(save):
    """Depth first: 0 -> 1, 4; 1 -> 2, 3. Siblings keep their order, which is the order of draws."""
    growmap = {
        "roots": [[0], [1, 4], [2, 3, 5]],
        "branches": [[2], [2, 1], [0, 0, 0]],
        "Successors": [[1, 4], [2, 3], [], [], [5], []],
        "mask": torch.tensor(
            [
                [1, 0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0, 0],
                [1, 1, 1, 0, 0, 0],
                [1, 1, 0, 1, 0, 0],
                [1, 0, 0, 0, 1, 0],
                [1, 0, 0, 0, 1, 1],
            ]
        ),
        "depth": torch.tensor([0, 1, 2, 2, 1, 2]),
        "size": 6,
    }
    expected = TreeShape.parse("2,2.1")
    assert TreeShape.from_growmap(save(growmap)) == expected
    # A level may list its nodes in another order, and siblings may be drawn in another one than they are numbered in.
    other = {"roots": [[0], [4, 1], [3, 5, 2]], "branches": [[2], [1, 2], [0, 0, 0]]}
    assert TreeShape.from_growmap(save({**growmap, **other})) == expected
    swapped = {"Successors": [[4, 1], [2, 3], [], [], [5], []]}
    assert TreeShape.from_growmap(save({**growmap, **swapped})) == TreeShape.parse("2,1.2")


@pytest.mark.parametrize("suffix", ["json", "pt"])
@pytest.mark.parametrize("spec", ["1", "1,1,1", "3,2.1,2.1,3", "2,0.2,1.1", "3,2.1.0,1.0.0,1,1,1,1"])
def test_what_is_written_is_read(tmp_path, spec, suffix):
    shape, path = TreeShape.parse(spec), tmp_path / f"tree.{suffix}"
    shape.to_growmap(path)
    assert TreeShape.parse(str(path)) == shape
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "nothing temporary is left"


def test_the_files_that_are_written(tmp_path):
    write_growmap(SUCCESSORS, tmp_path / "tree.pt")
    written, expected = torch.load(tmp_path / "tree.pt", weights_only=True), sequoia()
    assert list(written) == list(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(written[name], value) and written[name].dtype == torch.int64
        else:
            assert written[name] == value
    write_growmap(SUCCESSORS, tmp_path / "tree.json")
    assert json.loads((tmp_path / "tree.json").read_text()) == {"successors": SUCCESSORS}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (changed("mask", (4, 2), 1), r"mask disagrees with Successors at \[4, 2\]: expected 0, got 1"),
        (changed("mask", (6, 6), 0), r"mask disagrees with Successors at \[6, 6\]: expected 1, got 0"),
        ({"mask": torch.eye(6)}, r"mask .*: expected a tensor of shape \[7, 7\], got \[6, 6\]"),
        ({"mask": [[1]]}, r"mask .*: expected a tensor of shape \[7, 7\], got list"),
        (changed("depth", 3, 2), r"depth disagrees with Successors at \[3\]: expected 1, got 2"),
        ({"depth": torch.zeros(7, 1)}, r"depth .*: expected a tensor of shape \[7\], got \[7, 1\]"),
        ({"size": 8}, "size disagrees with Successors: expected 7, got 8"),
        ({"size": 7.0}, "size disagrees with Successors: expected 7, got 7.0"),
        ({"roots": [[0], [1, 2], [3, 4, 5, 6]]}, r"roots .* at depth 1: expected \[1, 2, 3\], got \[1, 2\]"),
        ({"roots": [[0], [1, 2, 3]]}, "roots .*: expected a list of 3 levels, got 2"),
        ({"roots": 3}, "roots .*: expected a list of 3 levels, got int"),
        ({"branches": [[3], [1, 2, 0], [0, 0, 0]]}, r"branches .* at depth 1: expected \[2, 1, 0\], got \[1, 2, 0\]"),
        ({"branches": [[3], [2, 1, 0]]}, "branches .*: expected a list of 3 levels, got 2"),
        ({"Successors": [[1], [2], [1]]}, r"Successors: node 2 has child 1; .*\(no cycles\)"),
        ({"Successors": [[2], [1], []]}, r"Successors: node 1 has child 1; .*\(no cycles\)"),
        ({"Successors": [[2], [], [1]]}, "Successors: node 2 has child 1; children must come after their parent"),
        ({"Successors": [[1, 2], [2], []]}, "Successors: node 2 has two parents, 0 and 1"),
        ({"Successors": [[1], [], []]}, "Successors: node 2 is a second root"),
        ({"Successors": [[1, 9], []]}, "Successors: node 0 has child 9; expected 1 to 1"),
        ({"Successors": [[True], []]}, "Successors: node 0 has child True"),
        ({"Successors": [[]]}, "Successors: expected at least one child of the root"),
        ({"Successors": torch.ones(2, 2)}, "Successors: expected a list of children per node"),
    ],
)
def test_a_growmap_that_contradicts_itself_says_where(save, changes, message):
    path = save(sequoia(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        Static(tree=str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_fields_are_named(save):
    growmap = sequoia()
    del growmap["mask"], growmap["depth"]
    with pytest.raises(ValueError, match="got a dictionary without mask, depth"):
        read_growmap(save(growmap))
    with pytest.raises(ValueError, match=r"expected a dictionary .*\(roots, branches, .*, got Tensor"):
        read_growmap(save(torch.ones(3)))


class Runs:
    """Unpickling it would call ``os.mkdir``."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("dump", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_in_its_place_is_not_run(tmp_path, dump, recwarn):
    path, made = tmp_path / "tree.pt", tmp_path / "made"
    dump(sequoia(roots=Runs(made)), path)
    with pytest.raises(ValueError, match="that needs code to be read, which is never run") as caught:
        Static(tree=str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not made.exists() and not recwarn.list


@pytest.mark.parametrize("data", [b"", b'{"successors": [[1], []]}', b"PK\x03\x04", "cut"])
def test_damaged_files_are_refused(tmp_path, data):
    path = tmp_path / "tree.pt"
    write_growmap(SUCCESSORS, path)
    path.write_bytes(path.read_bytes()[:400] if data == "cut" else data)
    with pytest.raises(
        ValueError, match=r"expected a dictionary saved with torch.save .*, got a (damaged )?file"
    ) as caught:
        read_growmap(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the growmap nowhere.pt: No such file"):
        Static(tree="nowhere.pt")
    with pytest.raises(ValueError, match=r"cannot write the growmap .*: No such file"):
        write_growmap(SUCCESSORS, tmp_path / "no" / "tree.pt")
    with pytest.raises(ValueError, match=r"expected a name that ends in .json or .pt"):
        write_growmap(SUCCESSORS, tmp_path / "tree.txt")
    with pytest.raises(ValueError, match=r"node 2 is a second root"):
        write_growmap([[1], [], []], tmp_path / "tree.pt")
    assert not list(tmp_path.iterdir())


def test_the_builder_takes_a_file_or_a_shape(save):
    path = str(save(sequoia()))
    assert Growmap(growmap=path).shape == Growmap(tree=path).shape == TreeShape.parse("3,2.1.0")
    assert Growmap(tree="2,1").shape == TreeShape.parse("2,1")
    with pytest.raises(ValueError, match=r"^growmap: expected the path of a file that ends in .json or .pt, got '3,2'"):
        Growmap(growmap="3,2")
    check_tree_builder(Growmap, growmap=path)


def test_the_mode_sequoia_draws_without_replacement(save):
    target, draft = toy_model("bamba"), toy_model("mamba2", seed=1)
    decoder = load(target, draft, "sequoia", growmap=str(save(sequoia())))
    assert decoder.greedy.draws == "none" and decoder.sampling.draws == "without_replacement"
    out = decoder.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=9, temperature=1.0, seed=0)
    assert len(out.tokens[0]) == 9
