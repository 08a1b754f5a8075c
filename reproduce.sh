#!/usr/bin/env bash
# Thin: makes .venv when needed, then hands over to `python -m ...`. `./reproduce.sh help` lists the targets.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

usage() {
  cat <<'HELP'
Usage: ./reproduce.sh TARGET [ARGUMENTS...]

  setup    make .venv with the pinned versions and prepare the embedded data
  glue     Table 3: every method on GLUE, or on the embedded data where there is no GPU (python -m benchmarks.glue)
  long     Table 4: every method on long texts: SQuAD v2, 20News, Yelp, IMDB, or embedded ones (python -m benchmarks.long)
  latency  time of every method against dense models, interleaved, beside the FLOPs (python -m benchmarks.latency)
  bench    the gate against slow-downs, with its history (python -m benchmarks.regression)
  audit    the papers' tables against their own arithmetic; Tables 1 and 2 (python -m benchmarks.audit)
  pareto   Figure 3: every method swept over its settings: SQuAD v2 and MRPC, or embedded data (python -m benchmarks.pareto)
  figures  Figures 3 and 4 drawn from the records that there are, in seconds (python -m benchmarks.figures)
  report   one HTML page of all results: tables, figures, case study, audit, every number with its record
           (python -m benchmarks.report)
  test     the test-suite, a process per core (python -m pytest)
  help     this text

Every target makes .venv first if it is missing, incomplete or older than pyproject.toml and constraints.txt.
ARGUMENTS go to the Python command: ./reproduce.sh glue --help, ./reproduce.sh test -k runs

Environment variables:
  PYTHON            the interpreter to use, 3.11 or newer (default: python3)
  NO_INSTALL=1      install nothing and make no .venv: run with PYTHON and the libraries it has
  TORCH_INDEX_URL   an additional package index to take torch from (another CUDA version, or a CPU build)
HELP
}

say() { printf 'skimbench: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

base_python() { # prints the first interpreter that is new enough
  local candidate candidates=("${PYTHON:-python3}")
  if [ -z "${PYTHON:-}" ]; then candidates+=(python3.14 python3.13 python3.12 python3.11); fi
  for candidate in "${candidates[@]}"; do
    if new_enough "$candidate"; then echo "$candidate"; return; fi
  done
  die "no Python 3.11 or newer found as '${PYTHON:-python3}'; set PYTHON to one, e.g. PYTHON=/usr/bin/python3.12"
}

wanted() { cat pyproject.toml constraints.txt | cksum; }
installed() { [ -x .venv/bin/python ] && [ "$(cat .venv/.installed 2>/dev/null)" = "$(wanted)" ]; }

install() {
  local base pip=(.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt)
  base=$(base_python)
  rm -f .venv/.installed # until everything is in, the next call starts here again
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || ! new_enough .venv/bin/python; then
    say "making .venv with $("$base" --version)"
    "$base" -m venv --clear .venv || die "could not make .venv (on Debian and Ubuntu: apt install python3-venv)"
  fi
  say "installing torch (once, some minutes on a slow network)"
  "${pip[@]}" ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch setuptools ||
    die "torch could not be installed; check the network and call again, or use NO_INSTALL=1 with a Python that has it"
  say "installing the other libraries"
  "${pip[@]}" --no-build-isolation -e ".[embedded,test]" ||
    die "the libraries could not be installed; check the network and call again"
  wanted >.venv/.installed
}

install_alone() { # two first calls at the same time: the second waits, then finds everything installed
  if command -v flock >/dev/null; then flock 9; fi
  if ! installed; then install; fi
}

prepare() {
  local output
  say "preparing the embedded data"
  if output=$(HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$python" -m benchmarks.embedded 2>&1); then
    if [ -n "$output" ]; then printf '%s\n' "$output"; fi
  else
    say "the embedded data could not be prepared, going on without it: ${output##*$'\n'}"
  fi
}

target=${1:-help}
if [ $# -gt 0 ]; then shift; fi
case $target in
  help | -h | --help) usage; exit ;;
  setup | glue | long | latency | bench | audit | pareto | figures | report | test) ;;
  *)
    say "unknown target '$target'; the targets are setup, glue, long, latency, bench, audit, pareto, figures, report, test and help"
    exit 2
    ;;
esac

if [ "${NO_INSTALL:-}" = 1 ]; then
  python=$(base_python)
  export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
  if [ "$target" = setup ]; then prepare; fi
else
  python=.venv/bin/python
  if ! installed; then
    (install_alone) 9<reproduce.sh
    prepare
  elif [ "$target" = setup ]; then
    prepare
  fi
fi

case $target in
  setup) say "ready; next: ./reproduce.sh glue" ;;
  bench) exec "$python" -m benchmarks.regression "$@" ;;
  glue | long | latency | audit | pareto | figures | report) exec "$python" -m "benchmarks.$target" "$@" ;;
  test)
    if "$python" -c 'import xdist' 2>/dev/null; then
      export PYTEST_ADDOPTS=${PYTEST_ADDOPTS:-'--numprocesses auto --maxprocesses 8 --dist loadfile --benchmark-disable'}
    fi
    exec "$python" -m pytest "$@"
    ;;
esac
