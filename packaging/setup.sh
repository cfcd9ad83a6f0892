#!/bin/sh
# Set up everything snapfs needs on a Debian machine: system packages, virtual environment, build.
# Safe to run again: what is there already is not touched. Usage: packaging/setup.sh [VENV]
set -eu

cd "$(dirname "$0")/.."
venv=${1:-.venv}
stamp=$venv/.setup-done

# fuse3, libfuse3-dev, pkg-config, gcc and the Python headers build and run pyfuse3; the rest are the programs that
# the tests drive a mount with.
packages='fuse3 libfuse3-dev pkg-config gcc libc6-dev python3-dev python3-venv attr fio git rsync sqlite3 e2fsprogs xfsprogs'

say() { printf 'setup: %s\n' "$*"; }

missing=''
if command -v dpkg-query >/dev/null 2>&1; then
    for package in $packages; do
        if ! dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
            missing="$missing $package"
        fi
    done
else
    say "this is not a Debian system; install what corresponds to: $packages"
fi
if [ -n "$missing" ]; then
    as_root=''
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            say "system packages are missing, and only root may install them; there is no sudo here either." >&2
            say "As root: apt-get update && apt-get install --no-install-recommends$missing" >&2
            exit 1
        fi
        as_root=sudo
    fi
    say "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    $as_root apt-get update -qq
    # shellcheck disable=SC2086
    $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# Find a Python that is new enough.
python=''
for candidate in python3.11 python3.12 python3.13 python3 /usr/bin/python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    say 'no Python of version 3.11 or newer with venv found' >&2
    exit 1
fi

if [ ! -x "$venv/bin/python" ]; then
    say "making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    say 'building and installing Python packages'
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --upgrade pip
    # The build tool warns about every editable installation; nothing is wrong with this one.
    PYTHONWARNINGS=ignore "$venv/bin/python" -m pip install -q --disable-pip-version-check -e '.[dev]'
    touch "$stamp"
fi
say "done: $venv/bin/snapfs"
