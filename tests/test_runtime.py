"""Number types that suit the device, whatever torch says it supports; launchers that are at work, and those that are not."""

import os
import platform
import socketserver
import subprocess
import sys
import threading

import pytest
import torch

from lar_core.run import runtime
from lar_core.run.errors import LarError
from lar_core.run.runtime import act_precision, float_dtype, mixed_precision, native_bf16

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def card(monkeypatch):
    """A GPU of some capability and free memory, which says, as a T4 does, that it supports bf16."""
    def pretend(capability, free=15 * 10**9):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    return pretend


def test_a_t4_computes_in_fp16_and_refuses_bf16(card):
    card((7, 5))
    assert not native_bf16(GPU)
    assert float_dtype("int8", GPU) == float_dtype("fp16", GPU) == torch.float16
    assert mixed_precision("int8", GPU) == "fp16"
    with pytest.raises(LarError, match="a card has no bf16 in hardware.*precision=fp16"):
        float_dtype("bf16", GPU)


def test_an_a100_computes_in_bf16(card):
    card((8, 0))
    assert float_dtype("nf4", GPU) == torch.bfloat16 and mixed_precision("int8", GPU) == "bf16"


def test_a_cpu_computes_in_fp32_around_8_bit(card):
    assert float_dtype("int8", CPU) == torch.float32 and mixed_precision("int8", CPU) == "no"


@pytest.mark.parametrize("free, expected", [(15e9, "fp16"), (6e9, "int8")])
def test_policies_act_in_16_bit_floats_where_they_fit(card, free, expected):
    card((7, 5), free)
    assert act_precision("auto", "int8", GPU) == expected
    assert act_precision("nf4", "int8", GPU) == "nf4", "what is asked for is taken"


def test_policies_act_as_they_were_trained_elsewhere(card):
    card((8, 0))
    assert act_precision("auto", "fp32", GPU) == "fp32" and act_precision("auto", "int8", CPU) == "int8"
    assert act_precision("auto", "int8", GPU) == "bf16"
    assert runtime.ACTING_BYTES > 2 * 2.92e9


# --- several processes ------------------------------------------------------------------------------------------------

LEFT = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
ELASTIC = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"}


@pytest.mark.parametrize("left", [LEFT | ELASTIC, {"LOCAL_RANK": "", "WORLD_SIZE": "8", "SLURM_NTASKS": "8"}],
                         ids=["launcher", "cluster"])
def test_a_launchers_leftovers_are_ignored_with_one_sentence(left):
    """In a process of its own, because accelerate decides once; these would wait for ever, or end in a traceback."""
    code = ("from lar_core.run.runtime import group; from accelerate import Accelerator; group(); "
            "print(group().num_processes, Accelerator().num_processes)")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | left, capture_output=True, text=True, timeout=120)
    assert done.stdout == "1 1\n", done.stderr[-2000:]
    assert done.stderr.count("no launcher is at work") == 1


@pytest.fixture
def leftovers(monkeypatch):
    def leave(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    return leave


@pytest.mark.parametrize("change", [{"WORLD_SIZE": "1"}, {"RANK": "x"}, {"LOCAL_RANK": "5"}, {"MASTER_PORT": ""}, {}])
def test_variables_that_contradict_each_other_or_lead_nowhere_are_not_believed(leftovers, change):
    leftovers(**(LEFT | ELASTIC | change))
    assert not runtime._launched()


def test_something_else_that_listens_there_is_no_launcher(leftovers, monkeypatch):
    class Rude(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    monkeypatch.setattr(runtime, "ANSWER", 0.5)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Rude) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        leftovers(**LEFT | ELASTIC | {"MASTER_PORT": str(server.server_address[1])})
        assert not runtime._launched()
        server.shutdown()


def test_a_launcher_that_answers_is_believed(leftovers):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    leftovers(**LEFT | ELASTIC | {"MASTER_PORT": str(store.port)})
    assert runtime._launched()
    leftovers(TORCHELASTIC_RUN_ID="x")
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE")
    assert not runtime._launched(), "variables that were set by hand"


def test_who_leaves_a_group_passes_none_of_it_on(leftovers):
    leftovers(**LEFT | ELASTIC)
    runtime.forget_launch()
    assert not (LEFT | ELASTIC).keys() & os.environ.keys()


@pytest.mark.parametrize("asked", [None, "0", "", "-1", "all", "3", "3,1"])
def test_no_more_threads_than_a_container_grants_unless_a_number_is_asked_for(monkeypatch, asked):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(runtime, "cores", lambda: 1)
    torch.set_num_threads(3)
    try:
        runtime.use_cores()
        assert torch.get_num_threads() == (3 if asked in ("3", "3,1") else 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps other accounts")
def test_freed_memory_goes_back_to_the_system():
    """In a process of its own: what others have left decides whether there is anything to give back."""
    lines = ["import numpy, psutil", "from lar_core.run.runtime import give_back_memory",
             "resident = lambda: psutil.Process().memory_info().rss // 2**20", "freed = numpy.ones(2**21); del freed",
             "arrays = [numpy.ones(2**18) for _ in range(200)]; last = arrays[-1]; del arrays",
             "before = resident(); give_back_memory(); print(before - resident())"]
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert int(run.stdout) > 200  # MB, of 400
