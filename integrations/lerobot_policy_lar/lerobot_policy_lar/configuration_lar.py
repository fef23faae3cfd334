"""The settings of `--policy.type=lar`."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs.policies import PreTrainedConfig

from lar_core.run.errors import LarError

_ELSEWHERE = "A policy of lar is trained with `lar train`, not with lerobot-train."


@PreTrainedConfig.register_subclass("lar")
@dataclass
class LarConfig(PreTrainedConfig):
    """server: where `lar serve` answers."""

    server: str = "ws://127.0.0.1:8000"
    device: str | None = "cpu"  # of the tensors that pass through here; the policy computes where it is served
    push_to_hub: bool = False

    observation_delta_indices = action_delta_indices = reward_delta_indices = None

    def validate_features(self) -> None:
        """Nothing to check: the server says what it misses."""

    def get_optimizer_preset(self) -> None:
        """Raise LarError: nothing is trained here."""
        raise LarError(_ELSEWHERE)

    def get_scheduler_preset(self) -> None:
        """Raise LarError: nothing is trained here."""
        raise LarError(_ELSEWHERE)
