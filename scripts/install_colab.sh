#!/bin/sh
# install_colab.sh [PYTHON]: into a running Colab (or any Jupyter) environment, on top of what is there.
# torch, numpy and ipywidgets stay exactly as they are: Colab's own match its driver and its front end.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
kept=$(mktemp)
"$python" - > "$kept" <<'VERSIONS'
from importlib.metadata import PackageNotFoundError, version
for name in ("torch", "numpy", "ipywidgets"):
    try:
        print(f"{name}=={version(name)}")
    except PackageNotFoundError:
        pass
VERSIONS
echo "Installing (about two minutes); these stay as they are: $(tr '\n' ' ' < "$kept")"
"$python" -m pip install --quiet --disable-pip-version-check -c "$kept" -r requirements-colab.txt
"$python" -m pip install --quiet --disable-pip-version-check --no-deps -r lar_core/scene/requirements.txt -e .
sh scripts/install_gl.sh
