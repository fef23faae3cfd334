"""Where the code runs: device, number type, threads, the processes that share a training, quiet libraries."""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import sys
import warnings
from datetime import timedelta
from functools import cache

import torch
import transformers
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from .errors import LarError
from .files import library_caches
from .folder import provenance
from .processes import cores

LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher tells each of its processes
LAUNCHER = "TORCHELASTIC_"  # `accelerate launch` and `torchrun` leave such variables too
ANSWER = 5.0  # seconds that a launcher has to answer
ACTING_BYTES = 8 * 10**9  # PaliGemma-3B in 16 bit with room for one policy step


def give_back_memory() -> None:
    """Return freed memory to the system: glibc keeps what a thousand arrays of some megabytes have left."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None  # other C libraries have none
    if trim is not None:
        trim(0)


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def native_bf16(on: torch.device) -> bool:
    """Whether bf16 runs in hardware; a T4 emulates it, slowly, and `torch.cuda.is_bf16_supported()` says yes there."""
    return on.type == "cuda" and torch.cuda.get_device_capability(on) >= (8, 0)


def float_dtype(precision: str, on: torch.device) -> torch.dtype:
    """The floats of a model at this precision: what is not quantised, and what activations are.

    Raises LarError for bf16 on a GPU that has none.
    """
    if precision in ("int8", "nf4"):
        return torch.float32 if on.type == "cpu" else torch.bfloat16 if native_bf16(on) else torch.float16
    if precision == "bf16" and on.type == "cuda" and not native_bf16(on):
        raise LarError(f"{torch.cuda.get_device_name(on)} has no bf16 in hardware and would emulate it slowly: "
                       "set precision=fp16.")
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def act_precision(asked: str, trained: str, on: torch.device) -> str:
    """Precision for acting. "auto": quantised weights become 16-bit floats on a GPU with room for them, because 8 bit
    saves memory and costs time; elsewhere what the policy was trained with."""
    if asked != "auto":
        return asked
    if trained not in ("int8", "nf4") or on.type == "cpu" or torch.cuda.mem_get_info(on)[0] < ACTING_BYTES:
        return trained
    return "bf16" if native_bf16(on) else "fp16"


def mixed_precision(precision: str, on: torch.device) -> str:
    """What accelerate is told: the number type of matrix products in training; weights that learn stay in fp32."""
    kinds = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}
    return kinds[float_dtype(precision, on)] if on.type == "cuda" else "no"


def use_cores() -> None:
    """Let PyTorch compute on no more cores than this process may load: it does not see a container's quota.

    OMP_NUM_THREADS is obeyed where it is a number of threads; OpenMP takes all cores where it is anything else.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not (asked.isdecimal() and int(asked)):
        torch.set_num_threads(min(torch.get_num_threads(), cores()))


@cache
def group() -> PartialState:
    """The processes that share a training: those of `accelerate launch` or `torchrun`, or else this one alone.

    Clusters and notebooks leave a launcher's variables behind, and with these a training would wait for processes that
    never come: they are believed only where the launcher is there and answers.
    """
    found = [name for name in LAUNCH if name in os.environ]
    if found and _launched():
        return PartialState(cpu=device().type == "cpu")  # accelerate does not see by itself that there is no GPU
    if found:
        forget_launch()
        tqdm.write(f"lar: {', '.join(found)}: set, but no launcher is at work, so ignored. To share a training among "
                   "processes, start it with `accelerate launch` (GPUs) or `torchrun`.", file=sys.stderr)
    return PartialState()


def forget_launch() -> None:
    """Leave the group of a launcher: in a process that was started by a member of one, or finds what is left of it."""
    for name in [name for name in os.environ if name in (*LAUNCH, "LOCAL_WORLD_SIZE") or name.startswith(LAUNCHER)]:
        del os.environ[name]


def _launched() -> bool:
    """Whether the variables agree with each other and a launcher's store answers where they say."""
    try:
        rank, local, size, port = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"))
        address, agent = os.environ["MASTER_ADDR"], os.environ[f"{LAUNCHER}USE_AGENT_STORE"]
        if agent == "True" and 0 <= local <= rank < size:  # else process 0 opens a store later
            socket.create_connection((address, port), timeout=ANSWER).close()  # refuses without torch's warnings
            torch.distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=ANSWER))
    except (KeyError, ValueError, OSError, RuntimeError):  # torch's errors of the network are RuntimeErrors
        return False
    return 0 <= local <= rank < size


class Draws:
    """Random numbers of one training step, the same whatever the number of processes that share its batch.

    Draws for the whole batch from one seed, on the CPU, and gives this process the rows of its own samples.

    seed: of the step; rank, ranks: this process and how many share the batch, in equal parts.
    """

    def __init__(self, seed: int, rank: int = 0, ranks: int = 1):
        self.generator = torch.Generator().manual_seed(seed)
        self.rank, self.ranks = rank, ranks

    def uniform(self, batch: int, *shape: int) -> Tensor:
        """Numbers in [0, 1), (batch, *shape), for the `batch` samples of this process."""
        return self._share(torch.rand((batch * self.ranks, *shape), generator=self.generator))

    def normal(self, batch: int, *shape: int) -> Tensor:
        """Numbers of mean 0 and variance 1, (batch, *shape), likewise."""
        return self._share(torch.randn((batch * self.ranks, *shape), generator=self.generator))

    def _share(self, whole: Tensor) -> Tensor:
        batch = len(whole) // self.ranks
        return whole[self.rank * batch : (self.rank + 1) * batch]


def device_name() -> str:
    """The name that goes with every absolute time."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else provenance()["machine"]


def quiet() -> None:
    """Silence progress bars and notices of libraries that a reader of our output cannot act on, such as those on caches."""
    library_caches()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every call with inputs that are not fp16
    for said in ("gradient_checkpointing_enable", "MatMul8bitLt", "enable_nested_tensor"):  # the first until 5.2x
        warnings.filterwarnings("ignore", message=f".*{said}.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="transformers")
