"""Number types that suit the device, whatever torch says it supports."""

import pytest
import torch

from lar_core import runtime
from lar_core.errors import LarError
from lar_core.runtime import act_precision, float_dtype, mixed_precision, native_bf16

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
