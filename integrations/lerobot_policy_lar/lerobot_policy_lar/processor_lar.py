"""LeRobot's hooks before and after a policy: the server normalises, so nothing happens here."""

from __future__ import annotations

from typing import Any

from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from .configuration_lar import LarConfig


def make_lar_pre_post_processors(config: LarConfig, dataset_stats: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Two pipelines without a step."""
    after = {"to_transition": policy_action_to_transition, "to_output": transition_to_policy_action}
    return PolicyProcessorPipeline(steps=[]), PolicyProcessorPipeline(steps=[], **after)
