"""Doors to vla-eval (docs/doors.md): `PolicyServer` serves a policy of ours to its benchmarks, `LarSpatial` is our scene as
one of its benchmarks, `Asked` asks any of its model servers.

Over the wire go, one environment a session, what vla-eval's own LIBERO benchmark sends and takes:

    images            agentview, wrist: uint8 (256, 256, 3), raw OpenGL rotated by 180 degrees, the robot at the top
    task_description  the sentence
    states            (8,) hand position 3 (m), axis-angle 3 (rad), finger positions 2 (m), world frame; the angle is at most
                      pi, or with quat_no_antipodal as the simulator's quaternion says it, up to 2 pi (ours)
    actions           (7,) change of position and rotation in the controller's units, gripper: -1 opens, +1 closes, rounded

wrist and states are sent to servers that ask for them in their observation_params; servers of ours also ask for pictures of
their own size there, which other benchmarks do not give: those are resized.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .data.dataset import Stats, proprio
from .data.episode import resize
from .measure.robustness import GREY
from .measure.rollout import observation_batch
from .model.policy import Policy
from .run.errors import LarError, say_once
from .run.settings import Profile
from .scene.env import instruction
from .scene.episode import EpisodeEnv, kinds, told
from .scene.placements import tasks_with

try:
    from anyio.from_thread import start_blocking_portal
    from vla_eval.api import serve_background
    from vla_eval.benchmarks.base import StepBenchmark, StepResult
    from vla_eval.connection import Connection
    from vla_eval.model_servers.predict import PredictModelServer
    from vla_eval.specs import (
        GRIPPER_CLOSE_POS,
        IMAGE_RGB,
        LANGUAGE,
        POSITION_DELTA,
        ROTATION_AA,
        STATE_EEF_POS_AA_GRIP,
        DimSpec,
        check_specs,
    )
    from websockets.exceptions import ConnectionClosed
except ImportError as error:
    raise LarError(f"This needs vla-eval, which cannot be imported ({error}): pip install vla-eval.") from error

SIZE = 256  # pixels of vla-eval's LIBERO pictures
BEGINNING = {"suite": "libero_spatial"}  # of what a server is told when an episode begins
ACTION_SPEC = {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}


def sent(observation: dict, sentence: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What a server gets of one environment's observation (SpatialEnv's); asked: its observation_params."""
    seen: dict[str, Any] = {"images": {"agentview": observation["agentview_rgb"]}, "task_description": sentence}
    if asked.get("send_wrist_image"):
        seen["images"]["wrist"] = observation["eye_in_hand_rgb"]
    if asked.get("send_state"):
        turn = observation["ee_ori"] if asked.get("quat_no_antipodal") else _shortest(observation["ee_ori"])
        seen["states"] = proprio(observation["ee_pos"], turn.astype(np.float32), observation["gripper_states"])
    return seen


def in_grey(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The observation of one environment or of several, its pictures uint8 (..., H, W, 3) replaced by grey ones."""
    return {name: np.full_like(value, GREY) if name.endswith("_rgb") else value for name, value in observation.items()}


def _shortest(turn: np.ndarray) -> np.ndarray:
    """The same rotation (3,) by at most pi."""
    angle = np.linalg.norm(turn)
    return turn if angle <= np.pi else turn * (1 - 2 * np.pi / angle)


def sizes(asked: dict[str, Any]) -> dict[str, int]:
    """image_size and wrist_size (0: none) in pixels that a server asks for."""
    return {"image_size": asked.get("image_size", SIZE),
            "wrist_size": asked.get("wrist_size", SIZE) if asked.get("send_wrist_image") else 0}


def commanded(answer: Any) -> np.ndarray:
    """The action (7,) that a server's answer commands, gripper rounded as vla-eval's LIBERO benchmark rounds it.

    Raises LarError for anything but seven finite numbers.
    """
    found = answer.get("actions", answer.get("action")) if isinstance(answer, dict) else None
    try:
        action = np.array(found, dtype=np.float64)
    except (TypeError, ValueError):
        action = np.empty(0)
    if action.shape != (7,):
        chunk = " It sends whole chunks: start it with its chunk_size set." if action.ndim == 2 else ""
        raise LarError(f"The model server answered an observation with actions of shape {action.shape}, but a LIBERO step "
                       f"takes 7 numbers: serve a policy for this robot.{chunk}")
    if not np.isfinite(action).all():
        raise LarError(f"The model server answered an observation with {action.tolist()}, which are not 7 finite "
                       "numbers: look into its weights and its normalisation.")
    action[6] = -1.0 if action[6] < 0 else 1.0
    return action


class PolicyServer(PredictModelServer):
    """Serves a policy of ours; a chunk is answered action by action, `execute` of them before the next inference."""

    def __init__(self, policy: Policy, stats: Stats) -> None:
        super().__init__(chunk_size=policy.profile.execute, max_batch_size=16)
        self.policy, self.stats = policy, stats

    def predict_batch(self, obs_batch: list[dict], ctx_batch: list[Any]) -> list[dict]:
        """One chunk (K, 7) as commanded for each observation, whichever sessions they are of."""
        profile = self.policy.profile
        seen = {"agentview_rgb": self._pictures(obs_batch, "agentview", profile.image_size)}
        if profile.wrist_size:
            seen["eye_in_hand_rgb"] = self._pictures(obs_batch, "wrist", profile.wrist_size)
        states = np.stack([np.asarray(obs["states"], dtype=np.float64) for obs in obs_batch])
        seen |= {"ee_pos": states[:, :3], "ee_ori": states[:, 3:6], "gripper_states": states[:, 6:]}
        sentences = [obs["task_description"] for obs in obs_batch]
        actions, _ = self.policy.act(observation_batch(seen, sentences, self.stats, self.policy))
        return [{"actions": chunk} for chunk in self.stats.denormalise_actions(actions.cpu().numpy())]

    @staticmethod
    def _pictures(obs_batch: list[dict], camera: str, size: int) -> np.ndarray:
        return np.concatenate([resize(obs["images"][camera][None], size) for obs in obs_batch])

    def get_observation_params(self) -> dict[str, Any]:
        """What a benchmark is to send; image_size and wrist_size are heard by ours alone."""
        profile = self.policy.profile
        return {"send_wrist_image": profile.wrist_size > 0, "send_state": True, "quat_no_antipodal": True,
                "image_size": profile.image_size, "wrist_size": profile.wrist_size}

    def get_action_spec(self) -> dict[str, DimSpec]:
        """Changes of pose, the gripper's closing positive."""
        return ACTION_SPEC

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """Camera or two, sentence and state."""
        return observation_spec(self.get_observation_params())


def observation_spec(asked: dict[str, Any]) -> dict[str, DimSpec]:
    """What goes to a server with these observation_params, in vla-eval's words."""
    parts = {"agentview": IMAGE_RGB, "language": LANGUAGE}
    return parts | ({"wrist": IMAGE_RGB} if asked.get("send_wrist_image") else {}) | (
        {"state": STATE_EEF_POS_AA_GRIP} if asked.get("send_state") else {})


@contextmanager
def serving(policy: Policy, stats: Stats, host: str, port: int) -> Iterator[str]:
    """Serve while inside; yields the address. port 0: any free one. Raises LarError where the port is taken."""
    try:
        handle = serve_background(PolicyServer(policy, stats), host=host, port=port)
    except (OSError, BaseExceptionGroup) as error:
        cause = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
        raise LarError(f"Nothing can listen on {host}:{port} ({cause}): choose another --port.") from error
    with handle:
        yield handle.url


class Asked:
    """A plan for `roll_out_plan` that asks a vla-eval model server, one session an environment.

    grey: show it grey pictures. info: what the server said of itself. Raises LarError for all that a server can do wrong.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout, self.grey = url, timeout, False
        self._sessions: list[Connection] = []

    def __enter__(self) -> Asked:
        self._portal = start_blocking_portal()
        self._call = self._portal.__enter__().call
        try:
            self._call(self._connect, 1)
            self.info = self._sessions[0].server_info
            self.asked = self.info.get("observation_params") or {}
            self._check()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._each, Connection.close, self._sessions)
        self._portal.__exit__(None, None, None)

    def __call__(self, observation: dict, sentences: list[str], step: int) -> tuple[np.ndarray, Sequence[None]]:
        """One action each (n, 1, 7)."""
        if step == 0:
            self._call(self._begin, sentences)
        if self.grey:
            observation = in_grey(observation)
        seen = [sent({name: value[i] for name, value in observation.items()}, sentence, self.asked)
                for i, sentence in enumerate(sentences)]
        answers = self._call(self._each, self._act, self._sessions[: len(seen)], seen)
        return np.stack([commanded(answer) for answer in answers])[:, None], [None] * len(seen)

    async def _connect(self, count: int) -> None:
        while len(self._sessions) < count:
            session = Connection(self.url, timeout=self.timeout, max_retries=1)
            with self._said(connecting=True):
                await session.connect(benchmark="lar_spatial")
            self._sessions.append(session)

    async def _begin(self, sentences: list[str]) -> None:
        await self._connect(len(sentences))
        told = [{"task": BEGINNING | {"name": sentence}} for sentence in sentences]
        with self._said():
            if self._begun:
                await self._each(Connection.end_episode, self._sessions, [{}] * len(self._sessions))
            await self._each(Connection.start_episode, self._sessions[: len(told)], told)
        self._begun = True

    _begun = False

    async def _act(self, session: Connection, seen: dict) -> Any:
        with self._said():
            if not session.is_connected:  # it would connect again, to a server that knows of no episode
                raise ConnectionError("the connection was closed")
            return await session.act(seen)

    @staticmethod
    async def _each(work: Callable[..., Awaitable], *of_each: Sequence) -> list:
        return await asyncio.gather(*(work(*one) for one in zip(*of_each, strict=True)))

    @contextmanager
    def _said(self, connecting: bool = False) -> Iterator[None]:
        """What can go wrong with a server, as a sentence."""
        kept = "Then run the same command again; finished episodes are kept."
        try:
            yield
        except TimeoutError as error:
            raise LarError(f"The model server at {self.url} did not answer in {self.timeout:g} seconds: look at what "
                           f"it prints, or give it longer with --timeout. {kept}") from error
        except (ConnectionError, ConnectionClosed, RuntimeError, ValueError, AttributeError, TypeError) as error:
            cause = error.__cause__ or error
            if connecting and isinstance(cause, TimeoutError):
                raise LarError(f"{self.url} did not answer in {self.timeout:g} seconds: start the model server, or correct "
                               f"--server. {kept}") from error
            if connecting and isinstance(cause, OSError):
                raise LarError(f"Nobody listens at {self.url} ({cause}): start the model server, or correct --server. "
                               f"{kept}") from error
            if connecting:
                raise LarError(f"What listens at {self.url} is no model server of vla-eval ({_first_line(cause)}): give the "
                               "address that one prints, ws://HOST:PORT.") from error
            if isinstance(error, ConnectionError | ConnectionClosed):
                raise LarError(f"The model server at {self.url} went away in the middle of an episode "
                               f"({_first_line(cause)}): start it again. {kept}") from error
            raise LarError(f"The model server at {self.url} failed ({_first_line(cause)}): look at what it prints. "
                           f"{kept}") from error

    def _check(self) -> None:
        """Refuse what this scene cannot give, and say what the two sides' own descriptions disagree on."""
        if self.asked.get("absolute_action"):
            raise LarError(f"The model server at {self.url} commands absolute poses, and this scene is moved by changes of "
                           "pose: serve it with absolute_action off, or another policy.")
        specs = [{name: DimSpec.from_dict(spec) for name, spec in self.info.get(part, {}).items()}
                 for part in ("action_spec", "observation_spec")]
        for sentence in check_specs(specs[0], ACTION_SPEC, specs[1], observation_spec(self.asked)):
            say_once(f"By its own description the model server does not fit ({sentence}): check what it was trained on.")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


class LarSpatial(StepBenchmark):
    """The scene as a benchmark of vla-eval: `import: lar_core.vla:LarSpatial`, all below as its params.

    instruction: a kind of `scene/episode.py`; grey: every picture is grey. The rest is as in a profile, or what a
    server asks for.
    """

    render_backends = frozenset({"gpu", "cpu"})

    def __init__(self, tasks: Sequence[int] = tuple(range(10)), placement: str = "official", instruction: str = "right",
                 grey: bool = False, bench: str = "embedded", max_steps: int = 220, send_wrist_image: bool = False,
                 send_state: bool = False, quat_no_antipodal: bool = False, image_size: int = SIZE,
                 wrist_size: int = SIZE) -> None:
        super().__init__()
        self.asked = {"send_wrist_image": send_wrist_image, "send_state": send_state, "quat_no_antipodal": quat_no_antipodal,
                      "image_size": image_size, "wrist_size": wrist_size}
        self.profile = Profile(tasks=tuple(tasks), placement=placement, bench=bench, max_steps=max_steps,
                               **sizes(self.asked))
        self.kind, self.grey, self.env = instruction, grey, None

    @classmethod
    def configure_render(cls, mode: str) -> dict[str, str]:
        """Nothing: the scene finds what this machine can render with by itself (`scene/gl.py`)."""
        return {}

    def get_tasks(self) -> list[dict]:
        """Those that have scenes with the placement and the kind of instruction; an episode's sentence is its scene's."""
        return [{**BEGINNING, "name": instruction(task), "task_id": task}
                for task in tasks_with(self.profile.placement, self.profile.tasks)
                if self.kind in kinds(task, self.profile.tasks)]

    def reset(self, task: dict) -> dict:
        """Set up evaluation scene number episode_idx."""
        if self.env is None or self.env.env.task != task["task_id"]:
            self.cleanup()
            self.env = EpisodeEnv(task["task_id"], self.profile.placement, self.profile)
        seen, _ = self.env.reset(seed=task.get("episode_idx", 0), options={"other_bowl": self.kind == "other_bowl"})
        self.sentence = told(self.kind, self.env.scene, self.profile.tasks)
        return seen

    def step(self, action: dict) -> StepResult:
        """Move as the server's answer commands."""
        seen, reward, done, _, _ = self.env.step(commanded(action))
        return StepResult(seen, reward, done, {})

    def make_obs(self, raw_obs: dict, task: dict) -> dict:
        """What the server gets."""
        return sent(in_grey(raw_obs) if self.grey else raw_obs, self.sentence, self.asked)

    def get_step_result(self, step_result: StepResult) -> dict:
        """Success, whether the named bowl was touched first, and what happened in words (`watch.HAPPENED`)."""
        happened = self.env.happened
        return {"success": step_result.reward > 0, "followed": happened["first_touched"] == "named", **happened}

    def get_metric_keys(self) -> dict[str, str]:
        """What vla-eval averages."""
        return {"success": "mean", "followed": "mean"}

    def get_metadata(self) -> dict[str, Any]:
        """Limits that its runner asks for."""
        return {"max_steps": self.profile.max_steps, "max_episodes_per_task": 50, "suite": "lar_spatial"}

    def get_action_spec(self) -> dict[str, DimSpec]:
        """As vla-eval's LIBERO."""
        return ACTION_SPEC

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """As vla-eval's LIBERO."""
        return observation_spec(self.asked)

    def render(self) -> np.ndarray | None:
        """The agentview picture."""
        return self.env and self.env.env.render()

    def cleanup(self) -> None:
        """Free the scene."""
        if self.env is not None:
            self.env.close()
            self.env = None
