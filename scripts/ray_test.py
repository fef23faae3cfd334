"""A study on a Ray cluster of this machine: what a node has made outlives it, and the numbers are the same as without one.

    make ray-test      # minutes; Linux with `unshare`. Not part of the tests: it installs Ray, and takes four micro runs

Everything happens in a network of its own, where there is nothing but loopback. The first node sees none of the study's
folders, so the runs are sent to it and fetched; it is killed when the trained policy of the second run has come back. Then a
second node joins, which does see them, rolls out both placements side by side, and finishes. study.json must hold the same
numbers as that of the local engine, also when it is asked for once more through Ray Client, as from outside the cluster.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

RAY = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
PORT, CLIENTS, IFREQ = "6379", "10001", "16sh22x"  # the last: how Linux describes a network interface
CONDITION = "random_mask"
PLACEMENTS = ("official", "near")
STUDY = {"name": "ray", "conditions": (CONDITION,), "profile": "micro", "placement": PLACEMENTS,
         "instructions": ("right", "blank"),
         "set": {"samples": 16, "episodes_per_task": 1, "max_steps": 4, "grounding_frames": 1, "videos_per_task": 0}}


def main() -> int:
    """Run the study twice and compare; 0 where both say the same."""
    if "LAR_RAY_TEST" not in os.environ:
        own = {"LAR_RAY_TEST": "1", "LAR_LIBERO_ASSETS": "standin", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
        return subprocess.call(["unshare", "--map-root-user", "--net", "--mount", sys.executable, *sys.argv],
                               env=os.environ | own)
    raise_loopback()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="ray-test-"))
    began = time.monotonic()
    expected = run(folder, "local", workers=1)
    print(f"local: {time.monotonic() - began:.0f} s", flush=True)
    head = ("--head", f"--port={PORT}", f"--ray-client-server-port={CLIENTS}", "--num-cpus=0", "--include-dashboard=false")
    nodes = [node(folder, *head), start_far_node(folder)]
    try:
        await_head(folder)
        threading.Thread(target=kill_once_trained, args=(folder, nodes), daemon=True).start()
        found = run(folder, "ray", engine="ray", address=f"127.0.0.1:{PORT}")
        print(f"on Ray: {time.monotonic() - began:.0f} s so far", flush=True)
        again = run(folder, "ray", engine="ray", address=f"ray://127.0.0.1:{CLIENTS}")
    finally:
        for one in nodes:
            kill(one)
    checkpoint = next((folder / "ray" / f"{CONDITION}-micro-s0" / "checkpoints").glob("step_*/model.safetensors"))
    assert len(nodes) == 3, "The first node was not killed: the study was done before."
    assert checkpoint.stat().st_mtime < nodes[2].started, "The policy was trained a second time."
    for arm in ("blind", CONDITION):
        assert all((folder / "ray" / f"{arm}-micro-s0" / f"log-{placement}.txt").exists() for placement in PLACEMENTS), arm
    assert numbers(found) == numbers(again) == numbers(expected), f"Other numbers: see {folder}/*/study.json."
    print(f"The same numbers, with one node killed: {time.monotonic() - began:.0f} s in all, {folder}")
    return 0


def run(folder: Path, name: str, **how: object) -> dict:
    """The study by one engine, with the same demonstrations."""
    from lar_core.measure.study import Study
    from lar_core.studies import run_study
    return run_study(Study(**STUDY), folder / name, folder / "data", **how)[0]


def numbers(study: dict) -> str:
    """All that study.json says but for times, memory and the commit."""
    arms = [{name: value for name, value in arm.items() if name != "costs"} for arm in study["arms"]]
    sizes = [{name: arm["costs"][name] for name in ("parameters", "flops")} for arm in study["arms"]]
    origin = study["provenance"] | {"commit": ""}
    return json.dumps([study["study"], origin, study["comparisons"], arms, sizes], sort_keys=True)


def node(folder: Path, *words: str, before: str = "true") -> subprocess.Popen:
    """Start a Ray node in a process group and a mount namespace of its own; again where the head was not ready.

    What it says goes to `nodes.txt`.
    """
    command = ["unshare", "--mount", "sh", "-c", f'{before} && until "$@"; do sleep 1; done', "sh", *RAY, *words]
    with (folder / "nodes.txt").open("ab") as said:
        started = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    started.started = time.time()
    return started


def start_far_node(folder: Path) -> subprocess.Popen:
    """A node in whose eyes `folder` is empty, so that it shares nothing with the driver.

    It comes when the driver is connected, which would else take it for the node of its own machine: their addresses are one.
    """
    connected = f"until ls '{folder}'/ray/.seen-*; do sleep 1; done"
    return node(folder, f"--address=127.0.0.1:{PORT}", "--num-cpus=1",
                before=f"{connected} && mount -t tmpfs none '{folder}'")


def kill_once_trained(folder: Path, nodes: list[subprocess.Popen]) -> None:
    """Kill the first node when the policy it has trained has come back, and let another one join."""
    while not list((folder / "ray" / f"{CONDITION}-micro-s0" / "checkpoints").glob("step_*")):
        time.sleep(0.2)
    kill(nodes[1])
    print("killed the first node", flush=True)
    nodes.append(node(folder, f"--address=127.0.0.1:{PORT}", "--num-cpus=2"))


def kill(one: subprocess.Popen) -> None:
    """A node with all that it has started."""
    with suppress(ProcessLookupError):  # it is gone already
        os.killpg(one.pid, signal.SIGKILL)
    one.wait()


def await_head(folder: Path) -> None:
    """Until the first node says that it has started; its port is open before that."""
    while "Ray runtime started" not in (folder / "nodes.txt").read_text(encoding="utf-8", errors="replace"):
        time.sleep(0.5)


def raise_loopback() -> None:
    """A new network namespace has a loopback interface that is down."""
    with socket.socket() as any_socket:
        asked = struct.pack(IFREQ, b"lo", 0)
        flags = struct.unpack(IFREQ, fcntl.ioctl(any_socket, 0x8913, asked))[1]  # SIOCGIFFLAGS
        fcntl.ioctl(any_socket, 0x8914, struct.pack(IFREQ, b"lo", flags | 1))  # SIOCSIFFLAGS, IFF_UP


if __name__ == "__main__":
    sys.exit(main())
