"""The client of a served policy: one connection an environment, one observation there and one action back a step.

The protocol is vla-eval's: msgpack messages {type, payload, seq, timestamp} over a websocket. HELLO is answered by HELLO,
OBSERVATION (upright pictures, state, sentence) by ACTION or ERROR, EPISODE_START by nothing.
"""

from __future__ import annotations

import time
from typing import Any

import msgpack
import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from lar_core.run.errors import LarError

from .configuration_lar import LarConfig

PROTOCOL = 1
CAMERAS = {"agentview": "observation.images.image", "wrist": "observation.images.image2"}


class LarPolicy(PreTrainedPolicy):
    """Asks the server for every step's action; which of them it computes anew is the run's `execute`."""

    config_class, name = LarConfig, "lar"

    def __init__(self, config: LarConfig, **_: Any) -> None:
        super().__init__(config)
        self.sessions: list[Session] = []

    def reset(self) -> None:
        """Leave the episodes: the next observations open connections of their own."""
        while self.sessions:
            self.sessions.pop().close()

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Actions (n, 7) as commanded. Raises LarError where no policy answers, and with what it objects to."""
        seen = observations(batch)
        self.sessions += [Session(self.config.server) for _ in seen[len(self.sessions):]]
        for session, observation in zip(self.sessions, seen):
            session.send("observation", observation)
        return torch.from_numpy(np.stack([session.action() for session in self.sessions]))

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The same as a chunk of one, (n, 1, 7): the server keeps the others."""
        return self.select_action(batch)[:, None]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict | None]:
        """Raise LarError: nothing is trained here."""
        return self.config.get_optimizer_preset()

    def get_optim_params(self) -> dict:
        """Raise LarError: nothing is trained here."""
        return self.config.get_optimizer_preset()


def observations(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """LeRobot's batch, pictures (n, 3, H, W) in [0, 1], as one of the protocol's observations an environment."""
    pictures = {name: (batch[key] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
                for name, key in CAMERAS.items()}
    states = batch["observation.state"].cpu().numpy()
    return [{"images": {name: frames[i] for name, frames in pictures.items()}, "task_description": sentence,
             "states": states[i]} for i, sentence in enumerate(batch["task"])]


class Session:
    """One connection, which is one episode."""

    def __init__(self, server: str) -> None:
        self.server, self.number = server, 0
        try:
            self.socket: ClientConnection = connect(server, compression=None, max_size=None, ping_interval=None)
        except (OSError, WebSocketException) as error:
            raise self._silent(error) from error
        self.send("hello", {"harness_version": "lerobot_policy_lar", "protocol_version": PROTOCOL})
        self._receive("hello")
        self.send("episode_start", {})

    def send(self, kind: str, payload: dict[str, Any]) -> None:
        """One message; LarError where the server has gone."""
        self.number += 1
        message = {"type": kind, "payload": payload, "seq": self.number, "timestamp": time.time()}
        try:
            self.socket.send(msgpack.packb(message, default=_pack))
        except WebSocketException as error:
            raise self._silent(error) from error

    def action(self) -> np.ndarray:
        """The answer to the last observation: float32 (7,)."""
        payload = self._receive("action")
        return np.asarray(payload["actions"], dtype=np.float32).reshape(7)

    def close(self) -> None:
        """End the connection."""
        self.socket.close()

    def _receive(self, kind: str) -> dict[str, Any]:
        try:
            message = msgpack.unpackb(self.socket.recv(), object_hook=_unpack)
        except WebSocketException as error:
            raise self._silent(error) from error
        if message["type"] != kind:
            raise LarError(f"The policy at {self.server} answered with {message['type']}: "
                           f"{message['payload'].get('error', message['payload'])}")
        return message["payload"]

    def _silent(self, error: Exception) -> LarError:
        return LarError(f"No policy answers at {self.server} ({error}): start one with `lar serve --run-dir RUN` in the "
                        "environment of lar_core's models, and name its address with --policy.server.")


def _pack(value: Any) -> Any:
    array = np.ascontiguousarray(value)
    return {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}


def _unpack(value: dict) -> Any:
    if "__ndarray__" not in value:
        return value
    return np.frombuffer(value["data"], np.dtype(value["dtype"])).reshape(value["shape"])
