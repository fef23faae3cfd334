"""A vla-eval model server of a policy that never moves; `python still_server.py N` dies at its observation N + 1."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
from vla_eval.api import serve_background
from vla_eval.model_servers.predict import PredictModelServer


class Still(PredictModelServer):
    """Never moves, unless `answer` says otherwise; sees a small agentview picture alone. seen: what it was sent."""

    def __init__(self, answer=lambda: np.array([0, 0, 0, 0, 0, 0, -1.0])):
        super().__init__()
        self.answer, self.seen = answer, []

    def predict(self, obs, ctx):
        self.seen.append(obs)
        return {"actions": self.answer()}

    def get_observation_params(self):
        return {"image_size": 32}


if __name__ == "__main__":
    server = Still()
    server.answer = lambda usual=server.answer: usual() if len(server.seen) <= int(sys.argv[1]) else os._exit(1)
    with serve_background(server) as handle:
        print(handle.url, flush=True)
        threading.Event().wait()
