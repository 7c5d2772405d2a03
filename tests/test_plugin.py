"""The registry and its discovery: built-ins, entry points, names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import specdecodes
from specdecodes import Mode, hookimpl, plugins
from specdecodes.plugin import KINDS, Registry, check_lossless, mode_is_lossless, mode_label, registry, unknown
from specdecodes.plugins.modes import MODES


class Thing:
    """A thing.

    And more about it.
    """

    lossless = False

    def __init__(self, context: object, *, size: int = 3) -> None:
        self.size = size


# Names


def test_duplicate_names_both_owners() -> None:
    components = Registry()
    with components.owned_by("first-dist"):
        components.add("drafter", "thing", Thing, aliases=["gadget"])
    with components.owned_by("second-dist"):
        components.add("tree", "thing", Thing)  # another kind
        for name in ("thing", "gadget"):
            with pytest.raises(
                ValueError, match=rf"drafter '{name}' is registered twice, by first-dist and by second-dist"
            ):
                components.add("drafter", name, Thing)
        with pytest.raises(ValueError, match="drafter 'gadget' is registered twice"):
            components.add("drafter", "new", Thing, aliases=["gadget"])
    assert components.names("drafter") == ["thing"], "what is refused is not half registered"
    assert [c.owner for c in components.components()] == ["first-dist", "second-dist"]


def test_unknown_name_suggests_a_near_one_and_lists_all_sorted() -> None:
    components = Registry()
    for name in ("zeta", "alpha", "gamma"):
        components.add("tree", name, Thing, aliases=[f"old-{name}"])
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below
        components.get("tree", "gama")
    assert str(error.value) == (
        "unknown tree 'gama'; did you mean 'gamma'? known: alpha, gamma, old-alpha, old-gamma, old-zeta, zeta"
    )
    with pytest.raises(ValueError, match=r"^unknown drafter 'alpha'; known: \(none\)$"):
        components.get("drafter", "alpha")


def test_far_name_gets_no_suggestion() -> None:
    assert unknown("mode", "xyzzy", {"stree", "sd"}) == "unknown mode 'xyzzy'; known: sd, stree"


def test_alias_is_the_component() -> None:
    assert registry().get("mode", "sd-classic") is registry().get("mode", "sd")
    assert "sd-classic" not in registry().names("mode")


@pytest.mark.parametrize(
    ("kind", "factory", "message"),
    [
        ("draft", Thing, r"expected a kind of drafter, tree, verifier, state, observer, mode, got 'draft'"),
        ("drafter", "Thing", r"drafter 'x': expected a callable factory, got str"),
        ("drafter", Mode("a", "b", "c", ()), r"drafter 'x': expected a callable factory, got Mode"),
        ("mode", Thing, r"mode 'x': expected a Mode, got type"),
    ],
)
def test_what_is_no_component_is_refused(kind: str, factory: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Registry().add(kind, "x", factory)


def test_help_and_settings_come_from_the_factory() -> None:
    components = Registry()
    components.add("tree", "thing", Thing)
    components.add("mode", "some", Mode("a", "b", "c", (), help="What it does."))
    thing = components.get("tree", "thing")
    assert thing.help == "A thing."
    assert {name: parameter.default for name, parameter in thing.settings.items()} == {"size": 3}
    assert components.get("mode", "some").help == "What it does."


# Lossless or not


def test_mode_is_lossless_if_all_its_verifiers_are() -> None:
    components = Registry()
    components.add("verifier", "exact", type("Exact", (), {"lossless": True}))
    components.add("verifier", "lossy", Thing)
    components.add("verifier", "silent", type("Silent", (), {}))
    assert mode_is_lossless(components, Mode("d", "t", "exact", ("exact",)))
    assert not mode_is_lossless(components, Mode("d", "t", "lossy", ("exact",)))
    assert not mode_is_lossless(components, Mode("d", "t", "exact", ("exact", "lossy")))
    assert not mode_is_lossless(components, Mode("d", "t", "silent", ())), "what says nothing is not lossless"


@pytest.mark.parametrize("name", MODES)
def test_shipped_modes_are_lossless_but_for_those_that_say_so(name: str) -> None:
    lossless = mode_is_lossless(registry(), MODES[name][0])
    assert lossless == (name != "commonsense") == ("lossy" not in MODES[name][0].help.lower())


def test_check_lossless_names_the_lossy_verifier() -> None:
    known = registry()
    for name, (mode, _) in MODES.items():
        if mode_is_lossless(known, mode):
            check_lossless(known, name)
    with pytest.raises(ValueError, match="mode 'commonsense': expected lossless verifiers alone") as caught:
        check_lossless(known, "commonsense")
    assert "got 'commonsense', which is lossy" in str(caught.value)
    with pytest.raises(ValueError, match="got 'typical', which is lossy"):
        check_lossless(known, "stree", "typical")
    with pytest.raises(ValueError, match="got 'Silent', which is lossy"):
        check_lossless(known, "stree", type("Silent", (), {"serves": ("greedy",)})())


def test_check_lossless_looks_at_what_a_verifier_leaves_of_the_mode() -> None:
    exact = type("Exact", (), {"lossless": True, "serves": ("greedy", "sampling")})
    check_lossless(registry(), "commonsense", exact())
    with pytest.raises(ValueError, match="got 'commonsense'"):
        check_lossless(registry(), "commonsense", "token-match")  # at temperature 0 the mode's own decides


def test_a_lossy_mode_is_labelled() -> None:
    assert mode_label(registry(), "stree") == "stree"
    assert mode_label(registry(), "commonsense") == "commonsense (lossy)"


# Discovery


def test_built_ins_register_through_the_hook_of_third_parties() -> None:
    components = Registry()
    assert plugins.register_components.specdecodes_impl  # marked by hookimpl
    plugins.register_components(components)
    shipped = {(c.kind, c.name) for c in components.components()}
    assert shipped == {(c.kind, c.name) for c in registry().components() if c.owner == "specdecodes"}
    assert {kind for kind, _ in shipped} == set(KINDS)


def test_every_built_in_is_documented() -> None:
    for component in registry().components():
        assert component.help.endswith((".", "!")), f"{component.kind} {component.name}: {component.help!r}"


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution with one module and one entry point on the path, and discover again."""
    monkeypatch.delenv("SPECDECODES_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def run(distribution: str, code: str, *, entry: str = "") -> None:
        module = distribution.replace("-", "_")
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[specdecodes]\n{entry or distribution} = {module}\n")
        registry.cache_clear()

    yield run
    registry.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


def adds(name: str) -> str:
    return f"""
from specdecodes import hookimpl
class Own:
    "Own."
@hookimpl
def register_components(registry):
    registry.add("observer", {name!r}, Own)
"""


def test_entry_point_registers_under_its_distribution(install: Install) -> None:
    install("some-dist", adds("own"), entry="some")
    component = registry().get("observer", "own")
    assert component.owner == "some-dist" and component.help == "Own."
    assert registry().get("observer", "timing").owner == "specdecodes"


def test_two_distributions_may_call_their_entry_points_alike(install: Install) -> None:
    install("first-dist", adds("one"), entry="same")
    install("second-dist", adds("two"), entry="same")
    assert {registry().get("observer", name).owner for name in ("one", "two")} == {"first-dist", "second-dist"}


def test_duplicate_of_two_distributions_names_both(install: Install) -> None:
    install("first-dist", adds("own"))
    install("second-dist", adds("own"))
    with pytest.raises(
        ValueError, match=r"observer 'own' is registered twice, by (first|second)-dist and by (first|second)-dist"
    ):
        registry()


def test_duplicate_of_a_built_in_names_both(install: Install) -> None:
    install("some-dist", adds("timing"))
    with pytest.raises(ValueError, match="observer 'timing' is registered twice") as error:
        registry()
    assert "some-dist" in str(error.value) and "specdecodes" in str(error.value)


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, {"one", "two"}), ("first", {"one"}), ("first, second", {"one", "two"}), ("", set())]
)
def test_environment_limits_entry_points(
    limit: str | None, expected: set[str], install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("first-dist", adds("one"), entry="first")
    install("second-dist", adds("two"), entry="second")
    if limit is not None:
        monkeypatch.setenv("SPECDECODES_PLUGINS", limit)
    assert {"one", "two"} & set(registry().names("observer")) == expected
    assert "timing" in registry().names("observer"), "built-ins are no entry points"


def test_environment_names_what_is_not_installed(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("first-dist", adds("one"), entry="first")
    monkeypatch.setenv("SPECDECODES_PLUGINS", "frist")
    with pytest.raises(ValueError, match=r"^SPECDECODES_PLUGINS: unknown entry point 'frist'; did you mean 'first'\?"):
        registry()


def test_what_is_left_out_is_not_even_imported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("broken-dist", "raise RuntimeError('imported')", entry="broken")
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below
        registry()
    assert str(error.value) == (
        "plugin broken of broken-dist: cannot import broken_dist: RuntimeError('imported'); "
        "repair or uninstall it, or leave it out with SPECDECODES_PLUGINS"
    )
    monkeypatch.setenv("SPECDECODES_PLUGINS", "")
    assert "timing" in registry().names("observer")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def register_component(registry): ...", "register_component"),
        ("def register_components(registry, more): ...", "more"),
        ("def propose(state): ...", "propose"),
    ],
    ids=["unknown hook", "unknown argument", "a hook of decoders"],
)
def test_hook_that_would_never_be_called_is_refused(code: str, message: str, install: Install) -> None:
    install("some-dist", f"from specdecodes import hookimpl\n@hookimpl\n{code}\n")
    with pytest.raises(ValueError, match=f"(?s)^plugins: .*{message}"):
        registry()


def test_registry_is_made_once() -> None:
    assert registry() is registry() is specdecodes.registry()


def test_plugin_without_the_hook_is_harmless(install: Install) -> None:
    install("some-dist", "imported = True")
    assert "some-dist" not in {component.owner for component in registry().components()}
    assert sys.modules["some_dist"].imported


def test_hookimpl_is_the_marker_of_this_project() -> None:
    @hookimpl
    def propose(state: object) -> None: ...

    assert propose.specdecodes_impl["tryfirst"] is False  # type: ignore[attr-defined]
