"""A trained policy of this project in lerobot-eval: `--policy.type=lar --policy.server=ws://127.0.0.1:8000`.

The policy itself runs in its own environment, where `lar serve --run-dir RUN` answers: its models need transformers 5, whose
tokenizer files LeRobot's pins (huggingface_hub below 0.36, so transformers 4) cannot read.
"""

from __future__ import annotations

import lerobot_env_lar  # noqa: F401  (so that --env.type=lar_spatial is known without another option)

from .configuration_lar import LarConfig

__all__ = ["LarConfig"]
