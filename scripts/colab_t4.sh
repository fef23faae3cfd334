#!/bin/sh
# colab_t4.sh [--dry-run] [CONDITION]: the session of docs/t4.md on a real T4, from a terminal, through Google's own client.
#
# Takes a Colab runtime with a T4, brings this commit there, runs the full-size smoke test, the memory table under 15 GB with
# latency per precision and head, PaliGemma's answers to detect and segment, and one condition at profile t4 with 20 episodes
# a task instead of 50, so that all of it has room in four hours (docs/t4.md); fetches each
# result as soon as it is there (results/gpu.json, results/CONDITION-t4-s0.json, the rest in build/colab_t4), and gives the
# runtime back whatever happens. --dry-run prints the commands. The last two need HF_TOKEN and the licence of PaliGemma's
# weights, and are left out without a token.
#
# The client: pip install google-colab-cli (github.com/googlecolab/google-colab-cli, Linux and macOS; it asks for a Google
# account the first time). What is used of it is what its README, its skill file and its source say: new --gpu, upload, exec -f
# --timeout, download, stop. This script was NOT run against Colab yet. Not established: how large a file `upload` takes (the
# bundle has about 17 MB), and whether a free account is given a T4 this way. `exec` need not fail when what it runs does, so the
# end of a step is known by a file that is downloaded, and `download` does fail.
set -eu
cd "$(dirname "$0")/.."
dry=
[ "${1:-}" = "--dry-run" ] && { dry=yes; shift; }
condition=${1:-attention_mask}
session=lar-t4
out=build/colab_t4
there=/content/la-reconvla

run() {
    echo "+ $*"
    [ -n "$dry" ] || "$@"
}

# step NAME SECONDS COMMAND: in the checkout on the runtime, at most so long; what it prints comes here while it runs.
step() {
    echo "# $1: $3"
    cat > "$out/$1.py" <<PYTHON
import os, subprocess
os.makedirs("/content/t4", exist_ok=True)
command = r'''mkdir -p $there && cd $there && $3'''
process = subprocess.Popen(["bash", "-ec", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           env=os.environ | {"HF_TOKEN_PATH": "/content/hf_token", "PYTHONUNBUFFERED": "1"})
with open("/content/t4/$1.part", "w") as log:
    for line in process.stdout:
        print(line, end="", flush=True)
        log.write(line)
if process.wait():
    raise SystemExit("$1 failed, see above.")
os.replace("/content/t4/$1.part", "/content/t4/$1.txt")
PYTHON
    run colab exec -s "$session" --timeout "$2" -f "$out/$1.py"
    fetch "$1.txt" "$out/$1.txt"
}

# fetch NAME FILE: of what the steps leave in /content/t4
fetch() {
    run colab download -s "$session" "/content/t4/$1" "$2"
}

finish() {
    rm -f "$out/hf_token"
    run colab stop -s "$session"
}

mkdir -p "$out"
if [ -z "$dry" ] && ! command -v colab > /dev/null; then
    echo "Google's client for Colab is not installed: pip install google-colab-cli" >&2
    exit 2
fi
run git bundle create "$out/lar.bundle" HEAD
trap finish EXIT
trap 'exit 130' INT TERM HUP
run colab new -s "$session" --gpu T4
run colab upload -s "$session" "$out/lar.bundle" /content/lar.bundle
step gpu 60 'nvidia-smi --query-gpu=name,memory.total --format=csv,noheader | tee /dev/stderr | grep -q T4'
step install 1200 'git clone -q /content/lar.bundle . && sh scripts/install_colab.sh python3'
step plan 300 "python3 -m lar_core doctor --profile t4 --condition $condition"
step full_size 1800 'python3 -m lar_core doctor --full-size'
step bench_gpu 7200 'python3 scripts/bench_gpu.py --cap 15 --batches 1 8 --out /content/t4/gpu.json'
fetch gpu.json results/gpu.json
if [ -z "${HF_TOKEN:-}" ] && [ -z "$dry" ]; then
    echo "HF_TOKEN is not set, so PaliGemma's answers and $condition were left out: its weights cannot be had without it."
    exit 0
fi
[ -n "$dry" ] || (umask 077 && printf %s "$HF_TOKEN" > "$out/hf_token")  # a file: the client logs code
run colab upload -s "$session" "$out/hf_token" /content/hf_token
step abilities 1800 'python3 -c "from lar_core.data.hub import download; download(\"paligemma-3b-mix-224\")" &&
python3 -m lar_core doctor --profile t4'
step condition 14400 "python3 -m lar_core reproduce --profile t4 --condition $condition --set episodes_per_task=20 --run-dir /content/run &&
cp /content/run/results.json /content/t4/ &&
tar -C /content/run -czf /content/t4/run.tar.gz results.json report.html config.yaml metrics.jsonl rollouts.jsonl"
fetch results.json "results/$condition-t4-s0.json"
fetch run.tar.gz "$out/run.tar.gz"
