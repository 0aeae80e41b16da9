#!/bin/sh
# Prepares the virtual environment that `make` works in; running it again costs little.
#
#   sh tools/install.sh VENV EXTRAS        e.g. sh tools/install.sh .venv data,maps
#
# PYTHON=python3.12   the Python to build the environment from (default: the first one that is 3.11 or newer)
# TORCH=torch==2.9.1  a pip requirement for torch, instead of the choice made here
#
# torch is the one hard choice: plain `pip install torch` on Linux downloads several GB of CUDA packages.
#   torch is installed already (2.4 or newer)   it is kept; on a GPU machine only if it can use the GPU
#   a GPU is here (nvidia-smi works)            the CUDA build
#   no GPU                                      the CPU build, wherever pip finds it, else PyTorch's CPU index;
#                                               never a CUDA build: better a clear error than GBs of no use
set -eu

case $1 in /*) venv=$1 ;; *) venv=$PWD/$1 ;; esac
extras=$2
cpu_index=https://download.pytorch.org/whl/cpu
root=$(cd "$(dirname "$0")/.." && pwd)
pinned=$(sed -n 's/^torch==//p' "$root/constraints.txt")
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'slams set-up: %s\n' "$*"; }
fail() { printf 'slams set-up: %s\n' "$@" >&2; exit 1; }

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# Prints the version of the torch that Python $1 has, if we can use it here; fails if there is none.
usable_torch() {
    "$1" - "$(has_gpu && echo gpu || echo cpu)" 2>/dev/null <<'PY'
import importlib.metadata, re, sys
version = importlib.metadata.version("torch")
if tuple(map(int, re.findall(r"\d+", version)[:2])) < (2, 4):
    sys.exit(1)
if sys.argv[1] == "gpu":
    import torch  # seconds, so only where the answer depends on it
    if not torch.cuda.is_available():
        sys.exit(1)
print(version)
PY
}

find_python() {
    candidates=${PYTHON:-python3 python python3.14 python3.13 python3.12 python3.11}
    for candidate in $candidates; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer that can make virtual environments (venv, ensurepip) among: $candidates." \
        "Install one (on Debian and Ubuntu: apt install python3 python3-venv), or name it:" \
        "make demo PYTHON=/path/to/python3"
}

pip_install() { "$venv/bin/python" -m pip install --quiet "$@"; }

# If Python $1 is itself in a virtual environment, "system" packages would not be those of that environment.
share_parent() {
    parent=$("$1" -c 'import sys, sysconfig as s; print(s.get_path("purelib") * (sys.prefix != sys.base_prefix))')
    if [ -n "$parent" ]; then
        echo "$parent" >"$("$venv/bin/python" -c 'import sysconfig as s; print(s.get_path("purelib"))')/parent.pth"
    fi
}

install_torch() {
    if [ -n "${TORCH:-}" ]; then
        pip_install "$TORCH"
    elif has_gpu; then
        say "a GPU is here: installing the CUDA build of torch $pinned (several GB)"
        # === : with == pip would prefer a CPU wheel (2.13.0+cpu sorts higher) lying in a local folder.
        pip_install "torch===$pinned" ||
            fail "found no CUDA build of torch $pinned; name one that you can get, for example" \
                "make demo TORCH=torch==2.9.1, or the CPU build: make demo TORCH=torch==$pinned+cpu"
        usable_torch "$venv/bin/python" >/dev/null ||
            say "this torch cannot use the GPU (is the driver older than its CUDA?) and will run on the CPU;" \
                "for another build: make demo TORCH='torch==…'"
    elif [ "$(uname -s)" != Linux ]; then
        pip_install "torch==$pinned"  # outside Linux the plain build is the small one
    else
        say "no GPU is here: installing the CPU build of torch $pinned"
        # Only CPU builds carry the suffix +cpu, so neither line can end in a CUDA download.
        pip_install "torch==$pinned+cpu" >"$venv/torch.log" 2>&1 ||
            pip_install --timeout 15 --retries 1 --extra-index-url "$cpu_index" "torch==$pinned+cpu" \
                >>"$venv/torch.log" 2>&1 ||
            fail "found no CPU build of torch $pinned; pip's words are in $venv/torch.log." \
                "With the network back, run the same command again; behind a mirror, tell pip of one that has" \
                "$cpu_index; or take any torch of at least 2.4 that you can get," \
                "for example the CUDA build (several GB): make demo TORCH=torch==$pinned"
    fi
}

started=$(date +%s)
if [ ! -x "$venv/bin/python" ]; then
    base=$(find_python)
    if found=$(usable_torch "$base"); then
        say "creating $venv from $base, sharing its packages, because it has torch $found"
        "$base" -m venv --system-site-packages "$venv"
        share_parent "$base"
    else
        say "creating $venv from $base ($("$base" -V 2>&1))"
        "$base" -m venv "$venv"
    fi
fi
if [ -n "${TORCH:-}" ] || ! usable_torch "$venv/bin/python" >/dev/null; then
    install_torch
fi
torch=$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))')
say "torch $torch; installing slams[$extras] (a fresh environment takes 1 to 5 minutes and about 2 GB)"

# Constrain to the torch taken, not to the pinned one: a kept torch must not be replaced.
echo "torch==$torch" >"$venv/constraints.txt"
(cd "$root" && pip_install -c "$venv/constraints.txt" -e ".[$extras]")
say "ready after $(($(date +%s) - started)) s: $venv"
