"""Whole plugins, discovered as installed distributions are, decode by name: one of our own and the README's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import specdecodes
from specdecodes import Mode, hookimpl, registry
from specdecodes.core.decoder import Decoder
from specdecodes.testing.toys import toy_model

ROOT = Path(__file__).parents[1]
PROMPT = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])


def decoder(mode: str, **settings: Any) -> Decoder:
    return specdecodes.load(toy_model("bamba"), mode=mode, **settings)


@pytest.fixture
def discovered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Make a module an entry point, as an installed distribution would, and discover again."""

    def run(module: ModuleType) -> None:
        info = tmp_path / "mine-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[specdecodes]\nmine = {module.__name__}\n")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delenv("SPECDECODES_PLUGINS", raising=False)
        registry.cache_clear()

    yield run
    registry.cache_clear()


OWN = '''
import torch
from specdecodes import Mode, hookimpl

class Twice:
    """Draft the last two tokens again."""
    has_probs = capturable = False
    marginals = None
    def __init__(self, context): pass
    @hookimpl
    def propose(self, state):
        self.last = torch.tensor([[*state.history[0][-2:], -1]])
        return self
    def topk(self, slots, k):
        tokens = torch.nn.functional.pad(self.last.gather(1, slots)[..., None], (0, k - 1), value=-1)
        return tokens, torch.where(tokens < 0, -torch.inf, 0.0)
    def expand(self, slots, tokens): return (slots + 1).clamp(max=2)

@hookimpl
def register_components(registry):
    registry.add("drafter", "twice", Twice)
    registry.add("mode", "twice", Mode("twice", "chain", "greedy", ("token-match",), settings={"depth": 2}))
'''


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafter_and_mode_of_a_plugin_decode_by_name(temperature: float, discovered: Any) -> None:
    module = ModuleType("mine")
    exec(OWN, vars(module))
    discovered(module)
    assert registry().get("mode", "twice").owner == "mine"
    settings = {"max_new_tokens": 32, "temperature": temperature, "seed": 2}
    plain = decoder("naive").generate(PROMPT, **settings)
    own = decoder("twice")
    assert type(own.greedy.hooks.manager.get_plugin("drafter")).__name__ == "Twice"  # type: ignore[union-attr]
    assert own.generate(PROMPT, **settings).tokens == plain.tokens


def test_mode_of_a_plugin_that_names_nobody_says_so(discovered: Any) -> None:
    module: Any = ModuleType("mine")

    @hookimpl
    def register_components(registry: Any) -> None:
        registry.add("mode", "hollow", Mode("nobody", "chain", "greedy", ()))

    module.register_components = register_components
    discovered(module)
    with pytest.raises(ValueError, match=r"^unknown drafter 'nobody'; known: "):
        decoder("hollow")


def test_plugin_of_the_readme_has_fifteen_lines_and_decodes(discovered: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## A plugin in fifteen lines", 1)[1]
    code = section.split("```python\n", 1)[1].split("```", 1)[0]
    lines = [line for line in code.splitlines() if line.strip() and not line.strip().startswith(("#", "import"))]
    assert len(lines) <= 15
    module = ModuleType("mine")
    exec(code, vars(module))
    discovered(module)
    (name,) = (c.name for c in registry().components() if c.owner == "mine" and c.kind == "drafter")
    plain = decoder("naive").generate(PROMPT, max_new_tokens=16)
    assert decoder("ngram", propose=name).generate(PROMPT, max_new_tokens=16).tokens == plain.tokens
