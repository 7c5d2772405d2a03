"""What users get wrong: one clear line on stderr (what, expected, got, way out), exit code 2, nothing written.

Checkpoints: test_bad_checkpoints.py. The runner's own bad input (question files, --resume) is tested with the runner.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import specdecodes
from specdecodes.cli import main

from .conftest import Pair

ROOT = Path(__file__).parents[1]


# Lossy modes where they are not wanted

LOSSY = {
    "a lossy mode": (["--mode", "commonsense"], "mode 'commonsense'", "'commonsense'"),
    "a lossy verifier": (["--mode", "stree", "--verify", "typical"], "mode 'stree'", "'typical'"),
    "one at temperature 0 alone": (["--mode", "commonsense", "--verify", "token-match"], "mode", "'commonsense'"),
}


@pytest.mark.parametrize("case", LOSSY)
def test_lossless_only_refuses_lossy_modes(
    case: str, generate_refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, mode, verifier = LOSSY[case]
    monkeypatch.setattr("specdecodes.core.load.load_model", None)  # it is refused before anything is loaded
    line = generate_refused(*flags, "--lossless-only")
    assert line.startswith(mode) and f"(--lossless-only), got {verifier}, which is lossy; choose another" in line


def test_lossless_only_lets_lossless_modes_through(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--target", pair.target, "--draft", pair.draft, "--prompt", "w1 w2", "--max-new-tokens", "4"]
    assert main(["generate", *flags, "--mode", "stree", "--lossless-only"]) == 0
    assert "(lossy)" not in capsys.readouterr().out
    assert main(["generate", *flags, "--mode", "stree", "--verify", "typical", "--temperature", "1"]) == 0
    assert "mode             stree (lossy)\n" in capsys.readouterr().out


def test_load_refuses_a_lossy_mode_where_only_lossless_ones_will_do() -> None:
    with pytest.raises(ValueError, match="mode 'commonsense': expected lossless verifiers alone"):
        specdecodes.load(mode="commonsense", lossless_only=True)


# Names and settings

COMPONENTS = {
    "--mode": ("strea", "unknown mode 'strea'; did you mean 'stree'? known: "),
    "--propose": ("modle", "unknown drafter 'modle'; did you mean 'model'? known: "),
    "--build-tree": ("statik", "unknown tree 'statik'; did you mean 'static'? known: "),
    "--verify": ("greedi", "unknown verifier 'greedi'; did you mean 'greedy'? known: "),
    "--commit-state": ("replai", "unknown state 'replai'; did you mean 'replay'? known: copy, "),
}


@pytest.mark.parametrize("flag", COMPONENTS)
def test_an_empty_name_is_no_default(flag: str, generate_refused: Callable[..., str]) -> None:
    assert re.match("unknown [a-z]+ ''; known: ", generate_refused(flag, ""))


def test_a_name_in_another_case(generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--mode", "NAIVE").startswith("unknown mode 'NAIVE'; did you mean 'naive'? known: ")


@pytest.mark.parametrize("flag", COMPONENTS)
def test_unknown_component(flag: str, generate_refused: Callable[..., str]) -> None:
    name, line = COMPONENTS[flag]
    assert generate_refused(flag, name).startswith(line)


def test_unknown_command(refused: Callable[..., str]) -> None:
    assert refused("genrate").startswith("specdecodes: unknown command 'genrate'; did you mean 'generate'? known: ")
    assert refused().startswith("specdecodes: expected a command (generate, ")
    assert refused("--loud").startswith("specdecodes: expected a command (generate, ")


def test_unknown_flag_and_missing_prompt(refused: Callable[..., str]) -> None:
    assert "unrecognized arguments: --promt x" in refused("generate", "--prompt", "x", "--promt", "x")
    assert "--prompt" in refused("generate")
    assert "unrecognized arguments" in refused("generate", "--prompt", "x", "--temperatur", "1")


SETTINGS = {
    "dpth=3": "unknown setting 'dpth'; did you mean 'depth'? known: depth, max_slots",
    "depth=many": "depth: expected int, got 'many'",
    "depth=2.5": "depth: expected int, got 2.5",
    "depth=True": "depth: expected int, got True",
    "depth=0": "depth: expected at least 1 drafted token, got 0",
    "depth": "--set: expected KEY=VALUE, got 'depth'; for example --set depth=4",
    "=3": "--set: expected KEY=VALUE, got '=3'; for example --set depth=4",
    "device=cpu": "--set: 'device' is no component's setting; use --device",
    "build_tree=chain": "--set: 'build_tree' is no component's setting; use --build-tree",
}


@pytest.mark.parametrize("pair_text", SETTINGS)
def test_setting(pair_text: str, generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--mode", "sd", "--set", pair_text) == SETTINGS[pair_text]


def test_setting_of_a_mode_that_takes_none(generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--mode", "naive", "--set", "depth=3") == "unknown setting 'depth'; known: (none)"


TOO_LARGE = {
    ("stree", "tree=5000"): "tree: expected a tree of at most 4096 nodes, got 5001; choose a smaller one",
    ("stree", "tree=99999999999"): "tree: expected a tree of at most 4096 nodes, got 100000000000; ",
    ("sd", "depth=99999999999"): "depth: expected a tree of at most 4096 nodes, got 100000000000; ",
    ("dynamic", "depth=99999999999"): "depth: expected at most 4096, got 99999999999",
    ("dynamic", "max_nodes=5000"): "max_nodes: expected at most 4096, got 5000",
    ("beam", "width=4000"): "tree: expected a tree of at most 4096 nodes, got 16001; choose a smaller one",
    ("sd", "max_slots=99999999999"): "max_slots: expected at most 4096 nodes, got 99999999999",
    (
        "sd",
        "max_slots=2",
    ): "max_slots: expected at least 4, the nodes that the draft runs in a step of this tree, got 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TOO_LARGE, ids=" ".join)
def test_what_would_not_fit_into_memory(case: tuple[str, str], generate_refused: Callable[..., str]) -> None:
    mode, setting = case
    assert generate_refused("--mode", mode, "--set", setting).startswith(TOO_LARGE[case])


def test_more_children_than_the_vocabulary_has_tokens(pair: Pair) -> None:
    decoder = specdecodes.load(pair.target, pair.draft, "stree", tree="200,1")
    plain = specdecodes.load(pair.target, mode="naive")
    assert decoder.generate("w1 w2", max_new_tokens=5).tokens == plain.generate("w1 w2", max_new_tokens=5).tokens


def test_length_of_a_chain_for_a_mode_without_one(generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--mode", "stree", "--K", "3") == (
        "--K: expected a mode whose tree takes 'depth', such as sd, got 'stree' with the tree builder 'static'; "
        "use --set with its settings (tree)"
    )
    assert generate_refused("--K", "0") == "depth: expected at least 1 drafted token, got 0"


# Trees

TREES = {
    "3,x": "tree: expected levels like '3,2.1,2.1,3' (",
    "3,,2": "tree: expected levels like '3,2.1,2.1,3' (",
    "": "tree: expected levels like '3,2.1,2.1,3' (",
    "3.2": "tree: level 1 gives children to 2 nodes, but the level above has only 1",
    "3,0": "tree: level 2: expected counts of 0 or more and at least one child, got (0,)",
    "no-such.json": "tree: cannot read the growmap no-such.json: ",
}


@pytest.mark.parametrize("spec", TREES)
def test_tree(spec: str, generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--set", f"tree={spec}").startswith(TREES[spec])


GROWMAPS = {
    "cycle": ([[1], [2], [1]], "node 2 has child 1; children must come after their parent (no cycles)"),
    "itself": ([[1], [1]], "node 1 has child 1; children must come after their parent (no cycles)"),
    "forward parent": ([[2], [], [1]], "node 2 has child 1; children must come after their parent (no cycles)"),
    "two parents": ([[1, 2], [2], []], "node 2 has two parents, 0 and 1"),
    "two roots": ([[1], [], []], "node 2 is a second root; expected one root (node 0)"),
    "unknown child": ([[1, 5], []], "node 0 has child 5; expected 1 to 1"),
    "no child": ([[]], "expected at least one child of the root"),
    "empty": ([], "expected "),
    "text": ("none", "expected "),
    "numbers": ([1, 2], "expected "),
    "word": ([["a"], []], "node 0 has child 'a'; expected 1 to 1"),
}


@pytest.mark.parametrize("name", GROWMAPS)
def test_growmap(name: str, tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    successors, reason = GROWMAPS[name]
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"successors": successors}))
    assert generate_refused("--set", f"tree={path}").startswith(f"tree: growmap {path}: {reason}")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made",)


SEQUOIA: dict[str, Any] = {
    "roots": [[0], [1, 2]],
    "branches": [[2], [0, 0]],
    "Successors": [[1, 2], [], []],
    "mask": torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]),
    "depth": torch.tensor([0, 1, 1]),
    "size": 3,
}
SEQUOIAS = {
    "mask": (torch.eye(3), "mask disagrees with Successors at [1, 0]: expected 1, got 0.0; "),
    "depth": (torch.arange(3), "depth disagrees with Successors at [2]: expected 1, got 2; "),
    "size": (4, "size disagrees with Successors: expected 3, got 4; "),
    "roots": ([[0], [1], [2]], "roots disagrees with Successors: expected a list of 2 levels, got 3; "),
    "branches": ([[2], [1, 0]], "branches disagrees with Successors at depth 1: expected [0, 0], got [1, 0]; "),
    "Successors": (
        [[1], [2], [0]],
        "Successors: node 2 has child 0; children must come after their parent (no cycles)",
    ),
    "code": (Evil(), "expected a dictionary saved with torch.save (roots, branches, "),
}


@pytest.mark.parametrize("setting", ["growmap", "tree"])
@pytest.mark.parametrize("field", SEQUOIAS)
def test_growmap_of_sequoia(field: str, setting: str, tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    value, reason = SEQUOIAS[field]
    path = tmp_path / "map.pt"
    torch.save({**SEQUOIA, field: value}, path)
    line = generate_refused("--mode", "sequoia", "--set", f"{setting}={path}")
    assert line.startswith(f"tree: growmap {path}: {reason}")


COSTS = {
    "{1: 1, 8: 0}": "cost: expected positive costs by number of tree nodes, 1 (a plain step) among them, ",
    "[1, 2]": "cost: expected positive costs by number of tree nodes, 1 (a plain step) among them, ",
    "{8: 2}": "cost: expected positive costs by number of tree nodes, 1 (a plain step) among them, ",
}


@pytest.mark.parametrize("cost", COSTS)
def test_cost_curve(cost: str, generate_refused: Callable[..., str]) -> None:
    line = generate_refused("--build-tree", "optimal", "--set", "acceptance=[0.5]", "--set", f"cost={cost}")
    assert line.startswith(COSTS[cost])


def test_a_cost_curve_that_falls_is_used_with_a_warning(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--target", pair.target, "--draft", pair.draft, "--prompt", "w1 w2", "--max-new-tokens", "2"]
    settings = ["--set", "acceptance=[0.9]", "--set", "cost={1: 1.0, 4: 1.5, 8: 1.25}"]
    assert main(["generate", *models, "--build-tree", "optimal", *settings]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "warning: cost: expected a curve that does not fall as the tree grows, but c(8) = 1.25 is below"
    )


@pytest.mark.parametrize("text", ["{", "[]", "{}", "3", "[" * 100_000], ids=["{", "[]", "{}", "3", "nested"])
def test_growmap_that_is_none(text: str, tmp_path: Path, generate_refused: Callable[..., str]) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    assert generate_refused("--set", f"tree={path}").startswith(f'tree: growmap {path}: expected JSON {{"successors"')


# Prompts and sampling


def test_empty_prompt(generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--prompt", "") == "prompt: expected some text, got an empty prompt"


@pytest.mark.parametrize("prompt", ["", [], [{"role": "user", "content": ""}]], ids=str)
def test_empty_prompt_from_python(prompt: Any, pair: Pair) -> None:
    decoder = specdecodes.load(pair.target, mode="naive")
    with pytest.raises(ValueError, match=r"^prompt: expected some text, got an empty prompt$"):
        decoder.generate(prompt)
    with pytest.raises(ValueError, match=r"^prompt: expected at least one token, got an empty prompt$"):
        decoder.generate(torch.empty(1, 0, dtype=torch.long))


def test_prompt_longer_than_the_model_allows(generate_refused: Callable[..., str]) -> None:
    line = generate_refused("--raw", "--prompt", "w1 " * 4000, "--max-new-tokens", "100")
    assert line == (
        "prompt: 4000 tokens and max_new_tokens 100 make 4100, but the model allows 4096 positions; "
        "shorten the prompt or lower max_new_tokens"
    )


SAMPLING = {
    ("--temperature", "-0.5"): "temperature: expected 0 (greedy) or 1e-10 to 1e+10, got -0.5",
    ("--temperature", "nan"): "temperature: expected 0 (greedy) or 1e-10 to 1e+10, got nan",
    ("--temperature", "inf"): "temperature: expected 0 (greedy) or 1e-10 to 1e+10, got inf",
    ("--temperature", "1e-45"): "temperature: expected 0 (greedy) or 1e-10 to 1e+10, got 1e-45",
    ("--top-p", "0"): "top_p: expected a number in (0, 1], got 0.0",
    ("--top-p", "1.01"): "top_p: expected a number in (0, 1], got 1.01",
    ("--top_p", "-1"): "top_p: expected a number in (0, 1], got -1.0",
    ("--top-k", "-1"): "top_k: expected 0 (off) or more, got -1",
    ("--min-p", "1"): "min_p: expected a number in [0, 1), got 1.0",
    ("--repetition-penalty", "0"): "repetition_penalty: expected 1e-10 to 1e+10 (1 is off), got 0.0",
    ("--repetition-penalty", "1e-320"): "repetition_penalty: expected 1e-10 to 1e+10 (1 is off), got 1e-320",
    ("--repetition-penalty", "inf"): "repetition_penalty: expected 1e-10 to 1e+10 (1 is off), got inf",
    ("--max-new-tokens", "0"): "max_new_tokens: expected at least 1, got 0",
    ("--n_tokens_to_generate", "-3"): "max_new_tokens: expected at least 1, got -3",
    ("--seed", "-1"): "seed: expected 0 to 2**63 - 1, got -1",
    ("--stop", ""): "stop: expected a sequence of non-empty strings, got ('',)",
    ("--do-sample", "--temperature=0"): "temperature: expected above 0 with --do-sample, got 0; ",
    ("--max-new-tokens", "many"): "argument --max-new-tokens",
}


@pytest.mark.parametrize("flags", SAMPLING, ids=" ".join)
def test_sampling(flags: tuple[str, str], generate_refused: Callable[..., str]) -> None:
    assert generate_refused(*flags).startswith(SAMPLING[flags])


def test_sampling_is_checked_before_anything_is_loaded(refused: Callable[..., str]) -> None:
    line = refused("generate", "--target", "/no/such/folder", "--prompt", "x", "--top-p", "2")
    assert "top_p" in line


def test_mode_that_cannot_sample_is_refused_before_it_decodes(generate_refused: Callable[..., str]) -> None:
    line = generate_refused("--mode", "stree", "--verify", "rejection", "--temperature", "1")
    assert line.startswith("mode 'stree' cannot decode at temperature 1: verifier Rejection: it judges chains only")


# Devices and dtypes


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_cuda(device: str, generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--device", device) == (
        f"device: got {device!r}, but this machine (or this build of torch) has no CUDA; use 'cpu'"
    )


@pytest.mark.parametrize("device", ["gpu", "meta", "mps", "cpu:x", ""])
def test_unknown_device(device: str, generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--device", device) == f"device: expected 'cpu' or 'cuda[:N]', got {device!r}"


def test_unknown_dtype(generate_refused: Callable[..., str]) -> None:
    assert generate_refused("--dtype", "float8").startswith("dtype: expected one of float32, fp32, ")
    assert generate_refused("--dtype", "float8").endswith(", got 'float8'")


# Once more from outside


def test_as_a_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment.pop("LOGLEVEL", None)
    command = [sys.executable, "-m", "specdecodes", "generate", "--target", "/no/such", "--prompt", "x"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "specdecodes generate: target: expected a folder, a hub id or 'embedded', got '/no/such'; no such folder\n"
    )
    assert not list(tmp_path.iterdir())
