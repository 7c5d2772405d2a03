#!/usr/bin/env bash
# Everything a change must pass. Every stage runs, also after one has failed; the summary says what was left out.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1

usage() {
    cat <<'HELP'
Usage: bash run_test.sh [--quick]

Checks the whole repository: ruff format, ruff check, mypy, the tests, the out-of-tree plugins' tests, a smoke run of
the MT-Bench runner over every mode, and the model families on the newest transformers that pyproject.toml allows
(in .venv-newest). Uses the active virtual environment, else makes .venv; installs what pyproject.toml asks for at the
versions of constraints.txt, again whenever one of the two has changed.

  --quick     some five minutes on two cores: leaves out the tests marked slow and the newest transformers, asks one
              question per mode in the smoke run
  -h, --help  this text

PYTHON=/path/to/python chooses the interpreter that makes .venv. The exit status is 0 if every stage passed.

Example: bash run_test.sh --quick
HELP
}

quick=0
for argument in "$@"; do
    case "$argument" in
        --quick) quick=1 ;;
        -h | --help) usage; exit 0 ;;
        *) printf 'run_test.sh: expected --quick or --help, got %s\n' "$argument" >&2; exit 2 ;;
    esac
done

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' yellow=$'\e[33m' plain=$'\e[0m' pytest_color=yes
else
    bold='' green='' red='' yellow='' plain='' pytest_color=auto
fi

unset SPECDECODES_PLUGINS SPECDECODES_TRACE_HOOKS
tmp=$(mktemp -d "${TMPDIR:-/tmp}/specdecodes-test.XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

summary=()
failed=0
note='' # a stage may say more about itself; status 77 means that it was skipped, and why

stage() { # stage NAME COMMAND [ARGUMENT ...]
    local name=$1 started=$SECONDS status word
    shift
    printf '\n%s== %s%s\n' "$bold" "$name" "$plain"
    note=''
    "$@"
    status=$?
    case $status in
        0) word="${green}passed $plain" ;;
        77) word="${yellow}skipped$plain" ;;
        *) word="${red}failed $plain" failed=1 note="exit status $status${note:+: $note}" ;;
    esac
    summary+=("$word $(printf '%4ds  %-20s' $((SECONDS - started)) "$name") $note")
    return $status
}

# The environment

usable() { # usable PYTHON: a version that we support, able to make environments
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

choose_python() { # sets python
    local candidate
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        python="$VIRTUAL_ENV/bin/python"
        return
    fi
    python="$PWD/.venv/bin/python"
    "$python" -c '' 2>/dev/null && return
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
        if usable "$candidate"; then
            echo "making .venv with $candidate"
            "$candidate" -m venv --clear .venv
            return
        fi
    done
    note='expected Python 3.11 to 3.13 with venv and pip, found none; set PYTHON=/path/to/python'
    return 1
}

fingerprint() { # of what an install depends on
    "$python" - "$PWD" pyproject.toml constraints.txt <<'PY'
import hashlib, pathlib, sys
parts = [sys.version, sys.argv[1], *(pathlib.Path(name).read_text(encoding="utf-8") for name in sys.argv[2:])]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PY
}

environment() {
    local stamp now
    choose_python || return 1
    "$python" --version || { note="$python does not run"; return 1; }
    stamp="$(dirname "$python")/../.specdecodes-installed"
    now=$(fingerprint) || return 1
    # -P: look for the installed package, not for the folder that this script stands in
    if "$python" -P -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("specdecodes"))' &&
        [ "$(cat "$stamp" 2>/dev/null)" = "$now" ]; then
        note="$python"
        return
    fi
    "$python" -m pip install -c constraints.txt -e '.[dev]' || { note='pip install failed'; return 1; }
    printf '%s\n' "$now" >"$stamp"
    note="$python, installed"
}

# The tests

processes=$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
[ "$processes" -gt 8 ] && processes=8 # each holds a gigabyte
timed=tests/benchmark/test_overhead.py # compares with a clock, and so runs with nothing beside it

run_pytest() { # run_pytest NAME ARGUMENT ...: keeps the report and what was left out for the count
    local report="$tmp/reports/$1" status
    shift
    mkdir -p "$tmp/reports"
    [ "$quick" = 1 ] && set -- -m 'not slow' "$@"
    # The tests' tensors are small: a second thread waits more than it works, where a second process does not.
    OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" "$python" -m pytest -rs --color="$pytest_color" --junitxml="$report.xml" "$@" 2>&1 | tee "$report.log"
    status=${PIPESTATUS[0]}
    note=$(tally --reasons "$report")
    if [ "$status" = 5 ] && [ "$quick" = 1 ]; then # nothing was left to run
        return 77
    fi
    return "$status"
}

tally() { # tally [--reasons] REPORT ...: "N passed, N failed, N skipped", and a line for each reason to skip
    "$python" - "$@" <<'PY'
import collections, pathlib, re, sys
import xml.etree.ElementTree as xml
numbers, reasons = collections.Counter(), collections.Counter()
for report in sys.argv[1:]:
    path = pathlib.Path(report + ".xml")
    if not path.exists():
        continue
    for case in xml.parse(path).iter("testcase"):
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        numbers[kind] += 1
        reasons.update(skip.get("message") or "no reason given" for skip in case.iter("skipped") if kind == "skipped")
    log = pathlib.Path(report + ".log").read_text(encoding="utf-8", errors="replace")
    for number in re.findall(r"(\d+) deselected", log)[-1:]:
        numbers["skipped"] += int(number)
        reasons["slow"] += int(number)
print(", ".join(f"{numbers[kind]} {kind}" for kind in ("passed", "failed", "skipped")))
if "--reasons" in sys.argv:
    for reason, number in reasons.items():
        print(f"{'':35}skipped {number}: {reason}")
PY
}

plugin_tests() { # plugin_tests FOLDER: with the plugin installed for this stage only
    local name site
    name=$(basename "$1")
    site="$tmp/plugins/$name/site"
    mkdir -p "$site"
    cp -R "$1" "$tmp/plugins/$name/source" # a build leaves files in its source
    "$python" -m pip install --quiet --no-deps --no-build-isolation --target "$site" "$tmp/plugins/$name/source" ||
        { note='pip install failed'; return 1; }
    PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" run_pytest "plugin-$name" -c pyproject.toml "$1/tests"
}

smoke() {
    local questions=2 modes
    [ "$quick" = 1 ] && questions=1
    modes=$(SPECDECODES_PLUGINS='' "$python" -c 'import specdecodes; print(",".join(specdecodes.registry().names("mode")))') ||
        { note='the registry does not load'; return 1; }
    note="$modes; questions per mode: $questions"
    "$python" -m specdecodes.benchmark.run_mtbench \
        --modes "$modes" --max-questions "$questions" --max-new-tokens 32 --out-dir "$tmp/smoke"
}

# The newest transformers: an environment of its own that lies on top of the other one

newest_version() { # prints the newest version that pyproject.toml's range allows and the index has
    local range
    range=$("$python" - <<'PY'
import re, tomllib
with open("pyproject.toml", "rb") as file:
    wanted = tomllib.load(file)["project"]["dependencies"]
print(next(line for line in wanted if re.match(r"transformers\b", line)))
PY
    ) || return 1
    "$python" -m pip install --quiet --dry-run --no-deps --ignore-installed --report "$tmp/newest.json" "$range" >&2 ||
        return 1
    "$python" - "$tmp/newest.json" <<'PY'
import json, pathlib, sys
print(json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))["install"][0]["metadata"]["version"])
PY
}

newest_environment() { # newest_environment VERSION: makes .venv-newest, where it is not there yet
    local stamp=.venv-newest/.specdecodes-installed now below site
    below=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return 1
    now="$(fingerprint) $1 $below" || return 1
    [ "$(cat "$stamp" 2>/dev/null)" = "$now" ] && .venv-newest/bin/python -c '' && return
    "$python" -m venv --clear .venv-newest || return 1
    site=$(echo .venv-newest/lib/python*/site-packages)
    # Everything but transformers comes from the environment below, editable installs included.
    printf 'import site; site.addsitedir("%s")\n' "$below" >"$site/below.pth" || return 1
    grep -v '^transformers==' constraints.txt >"$tmp/constraints-newest.txt"
    .venv-newest/bin/python -m pip install --quiet -c "$tmp/constraints-newest.txt" "transformers==$1" || return 1
    printf '%s\n' "$now" >"$stamp"
}

newest_transformers() {
    local version status models=tests/models
    [ "$quick" = 1 ] && { note='left out by --quick'; return 77; }
    version=$(newest_version) || { note='the package index cannot be reached'; return 77; }
    newest_environment "$version" || { note="transformers $version: pip install failed"; return 1; }
    (
        python=.venv-newest/bin/python
        run_pytest newest -n "$processes" --dist worksteal -m 'not slow or conformance' $models/test_{measured,interpose,refusals}.py tests/integration/test_custom_generate.py
        status=$?
        printf '%s' "$note" >"$tmp/newest-note"
        exit $status
    )
    status=$?
    note="transformers $version: $(cat "$tmp/newest-note")"
    return $status
}

everything() {
    local folder
    stage 'ruff format' "$python" -m ruff format --check .
    stage 'ruff check' "$python" -m ruff check .
    stage 'mypy' "$python" -m mypy
    stage 'tests' run_pytest tests -n "$processes" --dist worksteal --ignore "$timed" tests
    stage 'timed tests' run_pytest timed "$timed"
    for folder in plugins/*/; do
        folder=${folder%/}
        [ -f "$folder/pyproject.toml" ] || continue
        if [ -d "$folder/tests" ]; then
            stage "$folder" plugin_tests "$folder"
        else
            stage "$folder" no_tests
        fi
    done
    stage 'smoke run' smoke
    stage 'newest transformers' newest_transformers
}

no_tests() {
    note='it has no tests'
    return 1
}

if stage 'environment' environment; then
    everything
    reports=()
    for report in "$tmp"/reports/*.xml; do
        reports+=("${report%.xml}")
    done
    counts=$(tally "${reports[@]}")
else
    summary+=("${yellow}skipped${plain}        everything else      there is no environment to run it in")
    counts='0 passed, 0 failed, 0 skipped'
fi

printf '\n%s== summary%s\n' "$bold" "$plain"
printf '%s\n' "${summary[@]}"
printf 'It took %d s%s.\n' "$SECONDS" "$([ "$quick" = 1 ] && echo ' with --quick; before you hand in a change, run it without')"
printf 'tests: %s\n' "$counts"
exit $failed
