"""The out-of-tree distribution, installed by pip where nothing else is, decodes by name in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAME = "specdecodes-prompt-lookup"
DECODE = """
import contextlib, io, json, sys
import torch
import specdecodes
from specdecodes.cli import main
from specdecodes.testing import toy_model

torch.set_num_threads(1)
with contextlib.redirect_stdout(io.StringIO()) as listed:
    code = main(["plugins", "--json"])
model = toy_model("bamba", dtype=torch.float64)
prompt = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
plain = specdecodes.load(model, mode="naive").generate(prompt, max_new_tokens=64)
found = specdecodes.load(model, mode="prompt-lookup", max_ngram=2, depth=6).generate(prompt, max_new_tokens=64)
print(json.dumps({
    "code": code,
    "plugins": json.loads(listed.getvalue()),
    "plain": plain.tokens,
    "found": found.tokens,
    "steps": len(found.accept_lengths),
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed distributions with ours in it; no network, no build isolation."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    folder = tmp_path_factory.mktemp("fresh")
    source = folder / "source"  # a build leaves files beside its source
    shutil.copytree(ROOT / "plugins" / NAME, source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(folder / "site"), str(source)]
    subprocess.run(command, check=True, timeout=300)
    return folder / "site"


def run(site: Path | None) -> dict[str, Any]:
    path = os.pathsep.join(str(part) for part in (site, ROOT) if part is not None)
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    environment.pop("SPECDECODES_PLUGINS", None)
    result = subprocess.run(
        [sys.executable, "-c", DECODE], capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT / "tests"
    )
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


@pytest.mark.slow
def test_installed_plugin_is_listed_and_decodes_like_plain_decoding(site: Path) -> None:
    answer = run(site)
    assert answer["code"] == 0
    listed = {(row["kind"], row["name"]): row for row in answer["plugins"]}
    for kind in ("drafter", "mode"):
        assert listed[kind, "prompt-lookup"]["distribution"] == NAME
    assert listed["mode", "prompt-lookup"]["lossless"] is True
    assert listed["mode", "stree"]["distribution"] == "specdecodes"
    assert answer["found"] == answer["plain"] and len(answer["plain"][0]) == 64
    assert answer["steps"] < 63, "nothing that was looked up was ever accepted"
