#!/bin/sh
# setup.sh PYTHON VENV: a virtual environment with the pinned dependencies. Safe to repeat; keeps nothing half-made.
set -eu
python=${1:?no Python 3.11 to 3.13 was found: install one, or say make PYTHON=/path/to/python}
venv=$2

"$python" - <<'CHECK' || exit 1
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"Python {sys.version.split()[0]} was found, but 3.11 to 3.13 is needed: say make PYTHON=python3.12, for example.")
CHECK

[ -x "$venv/bin/pip" ] || "$python" -m venv "$venv" || {
    echo "The virtual environment could not be made: on Debian or Ubuntu type  sudo apt-get install -y python3-venv" >&2
    exit 1
}
install="$venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt"
echo "Installing into $venv (a few minutes the first time) ..."

# Without an NVIDIA GPU take PyTorch's CPU build wherever pip can find it (much smaller; to offer pip PyTorch's own
# index of CPU builds, set PIP_EXTRA_INDEX_URL to it), and the registry's default build where it cannot.
version=$(sed -n 's/^torch==//p' constraints.txt)
if [ ! -e /dev/nvidia0 ] && ! "$venv/bin/python" -c "import torch" 2>/dev/null; then
    $install "torch==$version+cpu" 2>/dev/null || echo "No CPU build of PyTorch $version was found: taking the default build."
fi
$install "torch==$version"
$install -e ".[test,notebooks]"
$install --no-deps -r lar_core/scene/requirements.txt
