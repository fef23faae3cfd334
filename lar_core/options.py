"""What may stand behind `lar`: its steps, each with what --help says of it, and their options (cli.py runs them)."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from .run.config import CONDITIONS, PROFILES
from .run.folder import DATA, RUNS
from .run.registry import AGGREGATIONS, HEADS, MASK_SOURCES, METRICS, RECONSTRUCTORS, REGULARISERS
from .run.settings import INSTRUCTIONS, PATHS, PLACEMENTS

STEPS: dict[str, tuple[str, str]] = {
    "reproduce": ("all steps below, from nothing to report.html",
                  "Records demonstrations, trains the condition and its blind control, scores saliency, rolls out, "
                  "times the policy and writes the report. Stop it at any moment and run it again: it goes on."),
    "look": ("show what sentences look at in one picture, in seconds and before anything is trained",
             "Draws the text→image attention of the last 3 layers under every sentence, side by side, and a box where the "
             "backbone answers `detect` with one. It looks at a stored scene of the benchmark, that of the task whose "
             "instruction begins with the first sentence, or at a picture of yours. Without --run-dir the shipped miniature "
             "looks, which knows this table and the words of lar_core/scene/sentences.py only; with "
             "--backbone google/paligemma-3b-pt-224 PaliGemma does."),
    "demos": ("record demonstrations with the scripted expert",
              "Writes LIBERO's own HDF5 format to DATA/demos; what is there is kept, and a failed attempt never saved."),
    "check-demos": ("say by which conventions other people's demonstrations were made",
                    "For an HDF5 file, a folder of them or a LeRobot data set: whether rows were observed before or after "
                    "the action, how pictures lie, sense and range of the gripper, scale of the actions and order of the "
                    "state, each with the evidence for it. Where there are simulator states, one is drawn beside its "
                    "stored picture. Exit code 2 where something has to be stated: "
                    "lar check-demos PATH --set demos_conventions=gripper=1/0"),
    "pretrain": ("teach a small backbone to see, from rendered scenes",
                 "Renders random scenes (--set scenes=N; 1.3 GB for 20,000) and trains on them. --recipe places: "
                 "PaliGemma's tasks, with the simulator's boxes, as the shipped backbone `tabletop` was made; --recipe "
                 "words: hidden words and patches, no coordinate anywhere. Then measures, before and after, where it says "
                 "that bowls are and where it looks. Any condition takes the result: --set backbone=RUN_DIR/pretrained."),
    "train": ("train one condition",
              "Demonstrations are recorded first where they are missing. Checkpoints go to RUN_DIR/checkpoints, losses "
              "beside them. --condition blind trains the control that sees grey images, deaf the one that is told nothing."),
    "saliency": ("score where the trained policy looks, on held-out demonstrations",
                 "Attention overlap (AOS), pointing game, AUC and target-minus-distractor mass beside baselines that "
                 "never look at the image, and layer by layer; action error beside the mean action; reconstruction beside "
                 "interpolation."),
    "photographs": ("score where the trained policy looks on photographs with phrases",
                    "Reads RefCOCO-M, RefCOCO/+/g, Flickr30k Entities or Visual Genome as they are published "
                    "(data_manifest.yaml says where, the top of lar_core/data/phrases.py which files) and puts every "
                    "aggregation's scores beside those of the scene: `lar photographs refcoco FOLDER --run-dir DIR`."),
    "rollout": ("roll out the trained policy in the scene",
                "Evaluation init states only. --instructions chooses what the policy is told: the right sentence, a blank "
                "one, that of another of its tasks, or that of the other bowl in the same scene, which is then the one "
                "that counts. One line an episode goes to RUN_DIR/rollouts.jsonl, videos beside it."),
    "latency": ("time one policy step, and one training step",
                "Acting: median and 95th percentile in milliseconds, replans and actions a second. Training: parameters, "
                "operations, time and GPU memory of a step of this condition beside one of action_only."),
    "report": ("write results.json and report.html from what is there",
               "Steps that have not been run are named in the report with the command that fills them."),
    "study": ("compare conditions over seeds, as a YAML file says",
              "Makes every run of the study (conditions x seeds, and a blind control for each seed that all share), seed by "
              "seed, several at a time on a CPU, one after the other on a GPU, all from the same init states, and compares "
              "them in study.json and study.html: intervals, paired tests corrected for their number, effect sizes, and "
              "what was missed at most. Stopped and run again it goes on. More: docs/study.md; clusters: docs/cluster.md."),
    "serve": ("let vla-eval ask a trained policy",
              "A model server by vla-eval's protocol, which only this machine reaches unless --host says otherwise "
              "(docs/doors.md). It needs the extra `doors`."),
    "audit": ("test a policy of others that a vla-eval model server serves",
              "The served policy acts in the scene under the instructions that say whether it listens, and under grey "
              "pictures, which say whether it sees. Rollouts, results.json and report.html are as of a run of ours, without "
              "what only a policy's insides tell. Stop it and run it again: it goes on. More: docs/doors.md."),
    "push": ("give a trained policy to others, on the Hugging Face hub or as a folder",
             "Weights as safetensors, settings, normalisation and a model card with the run's numbers beside its "
             "blind control's; never an optimiser state or a token. lar_core.share.from_pretrained loads it. The token "
             "is the one of `hf auth login` or HF_TOKEN. REPO_ID stands first: `lar push me/bowls --run-dir DIR`."),
    "doctor": ("say what this machine has and what would run on it",
               "Checks Python, packages and their versions, PyTorch, caches, off-screen rendering, memory and disk, and "
               "builds and renders one scene. With --profile it plans: memory and time of the condition, part by part, "
               "before anything is loaded (--machine t4: on a free Colab T4 instead of here); then it asks weights that are "
               "here to find a bowl, which tells whether they are loaded rightly. --full-size builds "
               "PaliGemma-3B's true size with random weights, loads it in 8 bit, reads its saliency, trains one step "
               "and acts once, with time and peak memory of each."),
}

WORKING = ("reproduce", "demos", "pretrain", "train", "saliency", "rollout")  # these start processes that simulate


def build_parser() -> argparse.ArgumentParser:
    """The parser with one sub-command a step."""
    parser = argparse.ArgumentParser(prog="lar", description="LA-ReconVLA: does masking what the instruction looks at, "
                                     "and reconstructing it, make a policy act on the right object?",
                                     epilog="Start with `lar reproduce`; each step explains itself with --help.")
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True, parser_class=_Step)
    for name, (short, long) in STEPS.items():
        step = steps.add_parser(name, help=short, description=f"{short[0].upper()}{short[1:]}. {long}",
                                epilog="Fields for --set, with their meaning, are in lar_core/run/config.py.")
        if name in _OWN_OPTIONS:
            _OWN_OPTIONS[name](step)
            continue
        _add_run_options(step)
        if name == "doctor":
            step.add_argument("--machine", choices=("t4",), help="plan for this machine instead of the one at hand")
            step.add_argument("--full-size", action="store_true", help="run the true size: 6 GB of disk, 10 of memory")
        if name in WORKING:
            step.add_argument("--workers", type=int, metavar="N", help="processes that simulate (default: one a core)")
        if name == "demos":
            step.add_argument("--to", nargs=2, metavar=("lerobot", "FOLDER"), help="copy them in LeRobot's format, too")
        if name == "pretrain":
            step.add_argument("--recipe", metavar="NAME", help="places or words (default: places)")
        if name == "push":
            step.add_argument("repo_id", nargs="?", metavar="REPO_ID", help="OWNER/NAME on the hub; made where missing")
            step.add_argument("--to", type=Path, metavar="FOLDER", help="export to this folder, upload nothing")
            step.add_argument("--public", action="store_true", help="a new repository is public (default: private)")
        if name == "photographs":
            step.add_argument("set", metavar="SET", help="refcoco_m, refcoco, flickr30k or visual_genome")
            step.add_argument("folder", type=Path, metavar="FOLDER", help="where the data set lies")
            step.add_argument("--split", default="val", help="e.g. testA (default: val)")
            step.add_argument("--limit", type=int, default=500, metavar="N", help="phrases, the first N (default: 500)")
        if name == "rollout":
            _add_rollout_options(step)
            step.add_argument("--cut", metavar="PATH", choices=PATHS, default="",
                              help=f"without a path of attention (who does not see what): {', '.join(PATHS)}")
    return parser


class _Step(argparse.ArgumentParser):
    """Its help ends with the names that settings may take; only who asks for help waits for them (torch takes seconds)."""

    def format_help(self) -> str:
        """argparse's help, and the glossary."""
        return super().format_help() + ("" if self.prog.split()[-1] in _OWN_OPTIONS else _glossary())


def _glossary() -> str:
    """What may stand behind --set, and the metrics of saliency, a line each."""
    lines = []
    for setting, registry in (("mask_source=", MASK_SOURCES), ("reconstructor=", RECONSTRUCTORS), ("head=", HEADS),
                              ("aggregation=", AGGREGATIONS), ("weights of regularisers", REGULARISERS),
                              ("metrics of saliency", METRICS)):
        lines += ["", f"{setting}" + ("NAME" if setting.endswith("=") else "")]
        lines += [textwrap.fill(f"  {name:<24}{registry.about(name).words}", 100, subsequent_indent=" " * 26)
                  for name in registry]
    return "\n".join(lines) + "\n"


def _add_study_options(step: argparse.ArgumentParser) -> None:
    step.add_argument("study", type=Path, metavar="STUDY.yaml", help="what to compare, e.g. studies/small.yaml")
    step.add_argument("--run-dir", type=Path, help=f"study folder, every run in a folder of it (default: {RUNS}/NAME)")
    step.add_argument("--data-dir", type=Path, default=DATA, help=f"where demonstrations are kept (default: {DATA})")
    step.add_argument("--workers", type=int, metavar="N", help="runs at the same time (default: what the machine has)")
    step.add_argument("--engine", choices=("local", "ray"), default="local", help="this machine (default), or a Ray cluster")
    step.add_argument("--address", metavar="WHERE",
                      help="of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT (default: a Ray of this machine's own)")
    step.add_argument("--so-far", action="store_true", help="make no run, compare those that are finished")


def _add_check_options(step: argparse.ArgumentParser) -> None:
    step.add_argument("path", type=Path, metavar="PATH", help="an HDF5 file, a folder of them, or a LeRobot data set")
    step.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", dest="changes",
                      help="demos_conventions=NAME=VALUE,...: what the demonstrations do not show")
    step.add_argument("--picture-dir", type=Path, default=Path("."), metavar="FOLDER", help="where the picture goes")


def _add_look_options(step: argparse.ArgumentParser) -> None:
    step.add_argument("sentences", nargs="*", metavar="SENTENCE", help='"pick up the black bowl next to the plate", or more')
    step.add_argument("--picture", type=Path, metavar="FILE", help="look at this instead of a scene; resized to a square")
    step.add_argument("--task", type=int, metavar="N", help="0 to 9 (default: that of the first sentence, or 5)")
    step.add_argument("--placement", metavar="NAME",
                      help=f"{', '.join(PLACEMENTS)} (default: counterfactual; wide for task 0, which has none)")
    step.add_argument("--scene", type=int, metavar="K", help="number of the stored evaluation scene (default: 0)")
    step.epilog = 'Example: lar look "pick up the black bowl next to the plate" "pick up the black bowl next to the ramekin"'
    eyes = step.add_mutually_exclusive_group()
    eyes.add_argument("--run-dir", type=Path, metavar="DIR", help="the trained policy of this run folder looks")
    eyes.add_argument("--backbone", default="tabletop", metavar="NAME", help="tabletop (default), a hub id or a folder")
    step.add_argument("--out", type=Path, default=Path("look.png"), metavar="FILE.png", help="(default: look.png)")


def _add_serve_options(step: argparse.ArgumentParser) -> None:
    step.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="the trained policy of this run folder")
    step.add_argument("--port", type=int, default=8000, metavar="N", help="0: any that is free (default: 8000)")
    step.add_argument("--host", default="127.0.0.1", metavar="NAME", help="whom it listens to (default: this machine alone)")


def _add_audit_options(step: argparse.ArgumentParser) -> None:
    step.add_argument("--server", required=True, metavar="ws://HOST:PORT", help="the address of the model server")
    step.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="where results go, a folder a policy")
    step.add_argument("--tasks", type=int, nargs="+", metavar="N", help="LIBERO-Spatial tasks, 0 to 9 (default: all)")
    _add_rollout_options(step)
    step.add_argument("--pictures", nargs="+", choices=("seen", "grey"), metavar="KIND", default=["seen", "grey"],
                      help="seen, grey (default: both)")
    step.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", dest="changes",
                      help="fields of the evaluation, e.g. --set episodes_per_task=50 max_steps=280 bench=libero")
    step.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="for one answer (default: 60)")
    step.add_argument("--workers", type=int, metavar="N", help="scenes at the same time (default: one a core)")


def _add_rollout_options(step: argparse.ArgumentParser) -> None:
    own = step.prog.split()[-1] == "rollout"
    step.add_argument("--instructions", nargs="+", choices=INSTRUCTIONS, metavar="KIND", default=["right"] if own else None,
                      help=f"{', '.join(INSTRUCTIONS)} (default: {'right' if own else 'all'})")
    step.add_argument("--on", metavar="PLACEMENT", choices=PLACEMENTS,
                      help=("evaluate on other placements than in training: " if own else "placements (default: official): ")
                      + ", ".join(PLACEMENTS))


_OWN_OPTIONS = {"study": _add_study_options, "check-demos": _add_check_options, "look": _add_look_options,
                "serve": _add_serve_options, "audit": _add_audit_options}


def _add_run_options(step: argparse.ArgumentParser) -> None:
    step.add_argument("--condition", metavar="NAME", help=f"{', '.join(CONDITIONS)} (default: attention_mask)")
    step.add_argument("--profile", metavar="NAME", help=f"how big: {', '.join(PROFILES)} (default: tiny)")
    step.add_argument("--seed", type=int, help="of weights, batches and masks (default: 0)")
    step.add_argument("--tasks", type=int, nargs="+", metavar="N",
                      help="LIBERO-Spatial tasks, 0 to 9 (default: the profile's)")
    step.add_argument("--placement", metavar="NAME",
                      help=f"where objects stand: {', '.join(PLACEMENTS)} (default: the profile's)")
    step.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", dest="changes",
                      help="change single fields of the condition or profile, e.g. --set samples=48000 execute=4")
    step.add_argument("--run-dir", type=Path,
                      help=f"run folder (default: {RUNS}/CONDITION-PROFILE-sSEED); one that exists brings its settings")
    step.add_argument("--data-dir", type=Path, default=DATA, help=f"where demonstrations are kept (default: {DATA})")
