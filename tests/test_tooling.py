"""The project's tooling: what is declared, what is pinned, what is shipped, and what ``run_test.sh`` reports."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def pins() -> dict[str, str]:
    """Version by package; a line of constraints.txt that is not ``name==version`` fails."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line), line
            name, version = line.split("==")
            assert name not in found, f"{name} is pinned twice"
            found[name] = version
    return found


def files() -> list[Path]:
    """What is, or could be, committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout: no list of the repository's files")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


# What is declared and pinned


@pytest.mark.parametrize("requirement", [*CORE, *EXTRAS["dev"]], ids=str)
def test_every_direct_dependency_has_a_floor_that_its_pin_satisfies(requirement: Requirement) -> None:
    assert any(part.operator == ">=" for part in requirement.specifier), "expected a lower bound"
    pin = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin), f"{pin} is outside of {requirement.specifier}"


def imports(folder: Path) -> dict[str, Path]:
    """Top-level names that the Python files under ``folder`` import from elsewhere, with one file for each."""
    found: dict[str, Path] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            found.update((module.partition(".")[0], path) for module in modules)
    own = {path.stem for path in folder.iterdir()} | {"specdecodes", folder.name}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | own}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("specdecodes", ["corpus", "cuda", "train", "pictures"]),
        ("tests", ["corpus", "cuda", "train", "pictures", "dev"]),
    ],
)
def test_every_import_is_declared(folder: str, extras: list[str]) -> None:
    declared = names(CORE).union(*(names(EXTRAS[extra]) for extra in extras))
    distributions = packages_distributions()
    for name, path in imports(ROOT / folder).items():
        owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
        assert owners & declared, f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not declare"


def test_hooks_run_tools_of_the_dev_extra_and_fetch_nothing() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {hook["entry"].split()[0] for hook in hooks} <= names(EXTRAS["dev"])


def test_no_file_names_a_machine_path_or_a_registry_host() -> None:
    forbidden = re.compile(
        r"(?<![\w.])/(work|farm|root)/"
        r"|https?://(127\.|localhost|10\.|192\.168\.)|file:///"
        r"|pypi\.org|pythonhosted\.org|download\.pytorch\.org|--(extra-)?index-url|--find-links"
    )
    itself = Path(__file__)
    found = []
    for path in files():
        data = path.read_bytes()
        if b"\0" in data[:8192] or path == itself:
            continue
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
            if match := forbidden.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert not found


# What is shipped


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "specdecodes").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()], (
        "explicit discovery misses these"
    )


@pytest.mark.slow
def test_wheel_holds_the_package_with_its_data_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("specdecodes", "tests", "benchmark", "train", "plugins"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(tmp_path), str(source)], check=True, timeout=120)
    with zipfile.ZipFile(next(tmp_path.glob("specdecodes-*.whl"))) as wheel:
        shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = source / "specdecodes"
    wanted = [*package.rglob("*.py"), *package.glob("assets/**/*"), *package.glob("kernels/*/README.md")]
    wanted += [*package.glob("kernels/*.h"), *package.glob("kernels/*/*.cpp")]
    wanted += [package / "benchmark" / name for name in ("questions.jsonl", "report.html.jinja")]
    assert shipped == {str(path.relative_to(source)) for path in wanted if path.is_file()}


# run_test.sh


def bash(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", *arguments], capture_output=True, text=True, timeout=60, **settings)


@pytest.mark.parametrize("script", ["run_test.sh", ".ci/run"])
def test_scripts_parse(script: str) -> None:
    assert bash("-n", str(ROOT / script)).returncode == 0


def test_ci_runs_the_command_of_the_readme() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "exec bash run_test.sh" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^bash run_test\.sh\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_the_options(flag: str, tmp_path: Path) -> None:
    result = bash(str(ROOT / "run_test.sh"), flag, cwd=tmp_path)
    assert result.returncode == 0
    assert "--quick" in result.stdout and "Example" in result.stdout


def test_unknown_option_is_refused() -> None:
    result = bash(str(ROOT / "run_test.sh"), "--fast")
    assert result.returncode == 2
    assert result.stderr == "run_test.sh: expected --quick or --help, got --fast\n"


# The rest runs the script on a folder of its own whose "python" writes down how it is called. -m TOOL fails where
# FAIL names the tool, pytest writes a report of one test passed and one skipped, the index has one version of
# transformers (none where FAIL is "index"), and new environments are copies of the stub; everything else is Python.
STUB = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >>"$CALLS"
case "$1 $2" in
    "-m $FAIL") exit 3 ;;
    "-m pytest")
        for argument in "$@"; do
            case "$argument" in --junitxml=*) report=${argument#*=} ;; esac
        done
        echo '<testsuite><testcase/><testcase><skipped message="no GPU"/></testcase></testsuite>' >"$report"
        case "$*" in *"-m not slow"*) echo '1 passed, 1 skipped, 4 deselected in 0.1s' ;; esac ;;
    "-m venv")
        mkdir -p .venv-newest/bin .venv-newest/lib/python3.11/site-packages
        cp "$0" .venv-newest/bin/python ;;
    "-m pip")
        case "$*" in *" --report "*)
            [ "$FAIL" = index ] && exit 1
            while [ "$1" != --report ]; do shift; done
            printf '%s' '{"install": [{"metadata": {"version": "5.99.0"}}]}' >"$2" ;;
        esac ;;
    "-m "* | "-P -c") ;;
    "-c import specdecodes"*) echo naive,stree ;;
    *) exec "$PYTHON" "$@" ;;
esac
"""


class Sandbox:
    """A copy of run_test.sh with a stub environment; ``calls`` are the stub's arguments in the latest run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls"
        stub = folder / "an environment" / "bin" / "python"
        stub.parent.mkdir(parents=True)
        stub.write_text(STUB, encoding="utf-8")
        stub.chmod(0o755)
        self.repository = folder / "a clone"
        (self.repository / "plugins" / "ngram" / "tests").mkdir(parents=True)
        (self.repository / "plugins" / "ngram" / "pyproject.toml").touch()
        for name in ("run_test.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.repository)

    def run(self, *arguments: str, fail: str = "nothing") -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        settings = {
            "VIRTUAL_ENV": str(self.folder / "an environment"),
            "CALLS": str(self.log),
            "FAIL": fail,
            "PYTHON": sys.executable,
        }
        return bash(str(self.repository / "run_test.sh"), *arguments, cwd=self.folder, env=os.environ | settings)

    @property
    def calls(self) -> list[str]:
        """The modules run with ``-m``, in order."""
        return [line.split()[1] for line in self.log.read_text().splitlines() if line.startswith("-m ")]


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


STAGES = ["ruff", "ruff", "mypy", "pytest", "pytest", "pip", "pytest", "specdecodes.benchmark.run_mtbench"]
NEWEST = ["pip", "venv", "pip", "pytest"]


def test_stages_run_in_order_and_their_tests_are_counted(sandbox: Sandbox) -> None:
    result = sandbox.run()
    assert result.returncode == 0, result.stdout + result.stderr
    assert sandbox.calls == ["pip", *STAGES, *NEWEST]
    assert "skipped 1: no GPU" in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stdout.splitlines()[-1] == "tests: 4 passed, 0 failed, 8 skipped"


@pytest.mark.parametrize("tool", sorted(set(STAGES) - {"pip"}))
def test_stage_that_fails_fails_the_run_and_stops_no_other(sandbox: Sandbox, tool: str) -> None:
    result = sandbox.run(fail=tool)
    assert result.returncode == 1
    assert sandbox.calls == ["pip", *STAGES, *NEWEST]
    failed = [line for line in result.stdout.splitlines() if line.startswith("failed ")]
    assert len(failed) == (STAGES + NEWEST).count(tool)
    assert all("exit status 3" in line for line in failed)


def test_install_that_fails_ends_the_run(sandbox: Sandbox) -> None:
    result = sandbox.run(fail="pip")
    assert result.returncode == 1
    assert sandbox.calls == ["pip"]
    assert "pip install failed" in result.stdout and "everything else" in result.stdout


def test_environment_is_installed_again_only_when_its_files_change(sandbox: Sandbox) -> None:
    sandbox.run()
    sandbox.run()
    assert sandbox.calls == [*STAGES, "pip", "pytest"]
    with (sandbox.repository / "constraints.txt").open("a") as constraints:
        constraints.write("# changed\n")
    sandbox.run()
    assert sandbox.calls == ["pip", *STAGES, *NEWEST]


def test_newest_transformers_lies_on_top_of_the_environment_at_the_other_pins(sandbox: Sandbox) -> None:
    result = sandbox.run()
    assert re.search(r"^passed .* newest transformers +transformers 5\.99\.0: 1 passed,", result.stdout, re.MULTILINE)
    (installed,) = (line for line in sandbox.log.read_text().splitlines() if line.endswith("transformers==5.99.0"))
    assert installed.startswith("-m pip install --quiet -c ")
    (below,) = (sandbox.repository / ".venv-newest").glob("lib/*/site-packages/below.pth")
    assert re.fullmatch(r'import site; site\.addsitedir\("/.*site-packages"\)\n', below.read_text())
    asked = next(line for line in sandbox.log.read_text().splitlines() if " --report " in line)
    assert asked.endswith(" transformers>=5.17,<6"), "within the range of pyproject.toml"


def test_index_that_cannot_be_reached_skips_the_newest_transformers_and_says_so(sandbox: Sandbox) -> None:
    result = sandbox.run(fail="index")
    assert result.returncode == 0
    assert sandbox.calls == ["pip", *STAGES, "pip"]
    assert re.search(
        r"^skipped .* newest transformers +the package index cannot be reached$", result.stdout, re.MULTILINE
    )


def test_quick_leaves_out_slow_tests_and_says_so(sandbox: Sandbox) -> None:
    result = sandbox.run("--quick")
    assert result.returncode == 0
    assert re.search(r"skipped 4: slow$", result.stdout, re.MULTILINE)
    assert re.search(r"^skipped .* newest transformers +left out by --quick$", result.stdout, re.MULTILINE)
    assert sandbox.calls == ["pip", *STAGES]
    assert result.stdout.splitlines()[-1] == "tests: 3 passed, 0 failed, 15 skipped"
    pytests = [line for line in sandbox.log.read_text().splitlines() if line.startswith("-m pytest")]
    assert pytests and all("-m not slow" in line for line in pytests)
    assert "--max-questions 1 " in sandbox.log.read_text()
