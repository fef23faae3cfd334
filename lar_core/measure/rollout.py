"""Rollouts: the trained policy acts in the scene, on the init states kept for evaluation.

Protocol: 10 wait steps, at most 220 control steps at 20 Hz, `execute` actions of each predicted chunk before the next
inference, success by LIBERO's own predicate; what the policy is told, and which bowl then counts, is in `instructions`.
Several environments run at once, one process each; one JSON line an episode. An exception stops the evaluation with its
traceback (it is never counted as a failure); what was done is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.util import Finalize

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from tqdm import tqdm

from ..data.dataset import Stats, proprio
from ..model.policy import Policy
from ..run.errors import LarError, say_once
from ..run.files import append_jsonl
from ..run.folder import Run
from ..run.processes import processes
from ..run.settings import Profile
from ..scene.episode import check_kinds, episode_env, kinds, kinds_of, told
from ..scene.placements import episode_count, evaluation_scenes, tasks_with
from ..scene.reference import MEANING
from ..scene.setup import prepare
from .film import Film
from .results import episodes_of

# Observation, sentences, step (0: episodes begin) -> actions (n, K, 7), saliency of each (P,) or None where it shows none
Plan = Callable[[dict, list[str], int], tuple[np.ndarray, Sequence[np.ndarray | None]]]


@dataclass(frozen=True)
class Trial:
    """One policy under one instruction at one task: a row of the results table."""

    policy: str
    instruction: str  # one of config.INSTRUCTIONS
    placement: str
    task: int


def roll_out(run: Run, policy: Policy, stats: Stats, *, instructions: tuple[str, ...] = ("right",),
             placement: str | None = None, workers: int | None = None, cut: str = "") -> list[dict]:
    """Roll out `policy` over all tasks of the run under each kind of instruction; finished episodes are not repeated.

    cut: a path of attention that is cut in every layer (one of PATHS). Else as `roll_out_plan`.
    """
    if cut and policy.condition.guidance:
        raise LarError("guidance compares answers to two sentences, and a path of attention is cut for one: set guidance=0.")
    return roll_out_plan(run, partial(_plan, policy, stats, cut), instructions=instructions, placement=placement,
                         workers=workers)


def roll_out_plan(run: Run, plan: Plan, *, instructions: tuple[str, ...], placement: str | None = None,
                  workers: int | None = None) -> list[dict]:
    """Roll out whatever `plan` answers, as the policy of the run; finished episodes are not repeated.

    Tasks without a counterfactual pair are left out there, beside tasks that have one; a placement that is not the run's own
    has as many episodes as scenes where those are fewer than the run's.
    workers: environments that run at the same time, one process each; None: one a core.
    Returns all rows of `rollouts.jsonl`. Raises LarError while another process rolls out in the same folder, and for a
    kind of instruction that no task of the run has.
    """
    profile = run.config.profile
    check_kinds(instructions, profile.tasks)
    placement = placement or profile.placement
    for task in tasks_with(placement, profile.tasks):
        scenes = evaluation_scenes(task, placement)
        if episode_count(profile, task, placement) > len(scenes):
            raise LarError(f"episodes_per_task is {profile.episodes_per_task}, but task {task} has {len(scenes)} "
                           f"evaluation scenes with {placement} placements: ask for at most that many.")
        with run.alone():
            if not (todo := _todo(run, instructions, placement, task)):
                continue
            with vector_env(task, placement, profile, workers) as envs:
                for trial, episodes in todo:
                    _run_trial(run, plan, envs, trial, scenes, episodes)
    return episodes_of(run)


def rolled_out(run: Run, instructions: tuple[str, ...], placement: str | None = None) -> bool:
    """Whether `roll_out` would find nothing left to do, and nothing to refuse."""
    profile, placement = run.config.profile, placement or run.config.profile.placement
    missing = (_todo(run, instructions, placement, task) for task in tasks_with(placement, profile.tasks))
    return set(instructions) <= set(kinds_of(profile.tasks)) and not any(missing)


def missing_episodes(run: Run, trial: Trial) -> list[int]:
    """Episode numbers of `trial` that the run does not have yet, or not with its success."""
    key = vars(trial)
    done = {row["episode"] for row in episodes_of(run) if key.items() <= row.items() and row["success"] is not None}
    asked = range(episode_count(run.config.profile, trial.task, trial.placement))
    return [episode for episode in asked if episode not in done]


def _todo(run: Run, instructions: tuple[str, ...], placement: str, task: int) -> list[tuple[Trial, list[int]]]:
    """Trials of the kinds of instruction that the scene of `task` has, each with the episodes that it lacks."""
    trials = (Trial(run.config.condition.name, kind, placement, task) for kind in instructions
              if kind in kinds(task, run.config.profile.tasks))
    return [(trial, episodes) for trial in trials if (episodes := missing_episodes(run, trial))]


_kept: dict[tuple, AsyncVectorEnv] = {}


@contextmanager
def vector_env(task: int, placement: str, profile: Profile, workers: int | None = None) -> Iterator[AsyncVectorEnv]:
    """`workers` EpisodeEnvs, one process each; None: as many as there are cores. Never more than there are episodes.

    The last ones are kept for the next rollout of this process, because starting takes longer than a short episode; an
    exception closes them.
    """
    count = min(processes(workers), profile.episodes_per_task)
    key = (task, placement, profile, count)
    if key not in _kept:
        close_envs()
        prepare()
        _kept[key] = AsyncVectorEnv([partial(episode_env, task, placement, profile)] * count, context="spawn",
                                    autoreset_mode=AutoresetMode.DISABLED)
        # At the end of this process, also where it is another one's worker (whose `atexit` comes too late), and before
        # multiprocessing asks what is left to terminate, which these ignore.
        Finalize(None, close_envs, exitpriority=1)
    try:
        yield _kept[key]
    except BaseException:
        close_envs(at_once=True)
        raise


def close_envs(at_once: bool = False) -> None:
    """End the processes that `vector_env` has kept; at once, in the middle of a step: they hold nothing to save."""
    while _kept:
        envs = _kept.popitem()[1]
        for process, pipe in zip(envs.processes, envs.parent_pipes) if at_once else ():
            process.kill()
            if pipe is not None:  # of an environment that raised
                pipe.close()
        envs.close(terminate=at_once)


def _plan(policy: Policy, stats: Stats, cut: str, observation: dict, sentences: list[str],
          step: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predict for n environments: actions as commanded (n, K, 7), saliency (n, P)."""
    batch = observation_batch(observation, sentences, stats, policy)
    with policy.without(batch, cut) if cut else nullcontext():
        actions, saliency = policy.act(batch)
    return stats.denormalise_actions(actions.cpu().numpy()), saliency.cpu().numpy()


def observation_batch(observation: dict, sentences: list[str], stats: Stats, policy: Policy) -> dict:
    """Observations of n environments -> the policy's batch (see `lar_core.model.policy`)."""
    def pixels(name: str) -> torch.Tensor:
        return torch.from_numpy(observation[name]).permute(0, 3, 1, 2).to(policy.device)
    own = proprio(observation["ee_pos"], observation["ee_ori"], observation["gripper_states"])
    batch = {"images": pixels("agentview_rgb"), "instructions": sentences,
             "proprio": torch.from_numpy(stats.normalise_proprio(own)).to(policy.device)}
    if "eye_in_hand_rgb" in observation:
        batch["wrist"] = pixels("eye_in_hand_rgb")
    return batch


def _run_trial(run: Run, plan: Plan, envs: AsyncVectorEnv, trial: Trial, scenes: list, episodes: list[int]) -> None:
    label = f"{trial.policy}, {trial.instruction} instruction, task {trial.task}"
    with tqdm(total=len(episodes), desc=label, unit="episode") as bar:
        for start in range(0, len(episodes), envs.num_envs):
            wave = episodes[start : start + envs.num_envs]
            for row in _run_wave(run, plan, envs, trial, scenes, wave):
                append_jsonl(run.path / "rollouts.jsonl", row)
                bar.update()


def _run_wave(run: Run, plan: Plan, envs: AsyncVectorEnv, trial: Trial, scenes: list, wave: list[int]) -> list[dict]:
    """Run up to `num_envs` episodes side by side; surplus environments repeat the last one and are not counted."""
    began, profile = time.perf_counter(), run.config.profile
    padded = wave + wave[-1:] * (envs.num_envs - len(wave))
    made = envs.get_attr("record")
    _warn(made[0]["picture"])
    sentences = [told(trial.instruction, scenes[episode], profile.tasks) for episode in padded]
    observation, _ = envs.reset(seed=padded, options={"other_bowl": trial.instruction == "other_bowl"})
    begun, steps = envs.get_attr("begun"), np.full(len(padded), profile.max_steps)
    finished, solved = np.zeros((2, len(padded)), dtype=bool)
    films, filmed = [Film() for _ in padded], any(episode < profile.videos_per_task for episode in wave)
    for step in range(profile.max_steps):
        place = step % profile.execute
        if place == 0:
            chunk, saliency = plan(observation, sentences, step)
        if not filmed and place in (0, profile.execute - 1):
            envs.set_attr("drawn", place == profile.execute - 1)  # only what the next plan sees
        observation, reward, done, _, _ = envs.step(chunk[:, place])
        steps[done & ~finished] = step + 1
        for i, episode in enumerate(wave):
            if episode < profile.videos_per_task and not finished[i]:
                films[i].add(observation, i, chunk[i, place], saliency[i], sentences[i])
        finished |= done
        solved |= reward > 0
        if finished[: len(wave)].all():
            break
    seconds = (time.perf_counter() - began) / len(wave)
    happened = envs.get_attr("happened")
    return [{**vars(trial), "episode": episode, "init_seed": scenes[episode].seed, "begun": begun[i],
             "success": bool(solved[i]),
             **({"did_not_listen": bool(finished[i] & ~solved[i])} if trial.instruction == "other_bowl" else {}),
             "steps": int(steps[i]), **happened[i], "seconds": round(seconds, 2), "sentence": sentences[i], **made[i],
             "video": _save_film(run, trial, episode, films[i])} for i, episode in enumerate(wave)]


def _warn(picture: dict) -> None:
    if picture["check"] == "other":
        say_once(f"This machine {MEANING['other']} for task {picture['task']}: success rates made here do not compare with "
                 "others. `lar doctor` looks into it.")


def _save_film(run: Run, trial: Trial, episode: int, film: Film) -> str | None:
    if not len(film):
        return None
    name = f"rollouts/{trial.policy}-{trial.instruction}-{trial.placement}-task{trial.task}-{episode:02d}.mp4"
    film.save(run.path / name)
    return name
