#!/bin/sh
# lerobot_setup.sh PYTHON VENV: LeRobot with both plugins and our scene, without our models. Safe to repeat.
set -eu
python=$1
venv=$2
[ -e "$venv/.ready" ] && exit 0
[ -x "$venv/bin/pip" ] || "$python" -m venv "$venv"
install="$venv/bin/python -m pip install --quiet --disable-pip-version-check"
echo "Installing LeRobot into $venv (several minutes: without a CPU build its PyTorch brings CUDA) ..."

if [ ! -e /dev/nvidia0 ]; then
    $install "torch==2.9.1+cpu" "torchvision==0.24.1+cpu" 2>/dev/null ||
        echo "No CPU build of PyTorch 2.9.1 was found: taking the default build."
fi
$install "torch==2.9.1" "torchvision==0.24.1" lerobot==0.4.4 -e integrations/lerobot_env_lar
$install --no-deps -r lar_core/scene/requirements.txt -e .
$install -e integrations/lerobot_policy_lar
touch "$venv/.ready"
