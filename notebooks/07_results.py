# %% [markdown]
# # 07 · Several runs, side by side
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/la-reconvla/blob/main/notebooks/07_results.ipynb)
#
# *The badge's address still says OWNER, so it leads nowhere: upload this file to Colab, and type the
# repository's address into the form below.*
#
# One run is an anecdote. This notebook reads every run folder it can find, and the results that are kept in the
# repository, and asks which differences are really there.
#
# **You will see** success rates with intervals and controls, a table of all runs, paired tests in plain words, a study
# with several seeds from its file to its page, and how many rollouts it would take to see a difference at all.
#
# | | free Colab T4 | two CPU cores |
# |---|---|---|
# | time | 3 minutes (not yet measured) | 2 minutes, nearly all of it the study |
# | memory | 2 GiB | 3 GiB |
#
# If there is no run folder yet, the kept results alone are compared.

# %% cellView="form"
# @title Settings
PROFILE = "auto"  # @param ["auto", "micro", "colab", "tiny", "small", "t4"]
CONDITION = "attention_mask"  # @param ["attention_mask", "random_mask", "inverse_mask", "gaze_mask", "gaze_diffusion", "attention_diffusion", "blue_noise_mask", "language_mask", "joint_mask", "bridge_head", "focus_head", "action_only"] {allow-input: true}
STUDY = "first"  # @param ["first", "small"] {allow-input: true}
KEPT = "modality"  # @param ["modality", "answer/answer"] {allow-input: true}
ARMS = "action_only, deaf, blind, blind_deaf"  # @param {type: "string"}
PLACEMENT = "official"  # @param ["official", "wide", "counterfactual", "near_counterfactual", "near"] {allow-input: true}
DRIVE = True  # @param {type: "boolean"}
REPOSITORY = "https://github.com/OWNER/la-reconvla"  # @param {type: "string"}

# %% [markdown]
# Install, if this is a fresh runtime. Colab's own PyTorch, numpy and ipywidgets are left as they are.

# %%
import importlib.util, os, subprocess, sys
if importlib.util.find_spec("lar_core") is None:
    if "/OWNER/" in REPOSITORY:
        sys.exit("This notebook does not know its repository: type its address into REPOSITORY, above, and run all again.")
    clone = ["git", "clone", "-q", "--depth", "1", REPOSITORY, "la-reconvla"]
    if not os.path.isdir("la-reconvla") and subprocess.run(clone).returncode:
        sys.exit(f"git could not bring {REPOSITORY}: correct REPOSITORY in the form above, and run all again.")
    subprocess.run(["sh", "la-reconvla/scripts/install_colab.sh", sys.executable], check=True)
    sys.path.insert(0, os.path.abspath("la-reconvla"))

# %% [markdown]
# Where are we, and which runs are there? On Colab those on your Drive are brought back first.

# %%
from pathlib import Path
import lar_core
from lar_core import notebook
from lar_core.notebook import show, table

profile = notebook.choose_profile(PROFILE)
run = notebook.open_run(CONDITION, profile, drive=DRIVE)

# %%
from lar_core.measure import results

kept = Path(lar_core.__file__).parents[1] / "results"
found = results.find_results(run.path.parent, kept)
print(f"{len(found)} runs:", ", ".join(result.name for result in found))

# %% [markdown]
# ## Success
#
# Blue: the policy. Grey: its blind control. Where the two overlap, the rollouts do not show that seeing helped.

# %%
from lar_core.show.figures import success_bars

show(success_bars(results.bars(found)))

# %% [markdown]
# ## Everything in one table
#
# AOS depends on how large the objects are in the picture, so compare it between runs on the same data only.

# %%
table(("run", "success", "blind control", "AOS", "named minus other bowl", "action error", "training, minutes"),
      results.summary(found))

# %% [markdown]
# ## Which differences are there?
#
# Two policies that started from the same init states are compared pair by pair (McNemar's exact test). *Not detected*
# does not mean equal: the interval says what remains possible.

# %%
notebook.tell(results.differences(found) or ["No two runs here were rolled out on the same episodes: run notebook 00 "
                                             "with another CONDITION, and come back."])

# %% [markdown]
# ## How many rollouts would it take?
#
# The smallest difference that paired rollouts find four times out of five, if a fifth of the pairs turn out differently.

# %%
from lar_core.measure.statistics import detectable_paired, detectable_unpaired

table(("rollouts an arm", "paired: points", "unpaired: points"),
      [(n, 100 * detectable_paired(n), 100 * detectable_unpaired(n)) for n in (20, 50, 150, 500)])

# %% [markdown]
# ## A study
#
# And one training seed says little about another. A *study* makes every run that a comparison needs: conditions × seeds,
# all from the same init states, with a blind control for each seed. It is a small file:

# %%
from lar_core.measure.study import Study

file = kept.parent / "studies" / f"{STUDY}.yaml"
print(file.read_text())

# %% [markdown]
# `first` is as small as a study can be, so that you can watch one: models that are trained for seconds and solve
# nothing. Put `small` into the form above (or type `lar study studies/small.yaml`) for one that means something; it takes
# many hours on two cores. Stopped at any moment and started again, it goes on.

# %%
from lar_core.studies import run_study

study, page = run_study(Study.load(file))
print(f"The whole page: {page}")

# %% [markdown]
# Success of every arm, all seeds together, and the difference of each from the reference. Its interval draws seeds and
# rollouts; its test is corrected for the number of comparisons (Holm).

# %%
from lar_core.show import figures, findings, report

show(success_bars(report.study_bars(study)))
show(figures.differences(study["comparisons"], study["study"]["reference"]))

# %% [markdown]
# In words, and with what so few rollouts could have missed:

# %%
notebook.tell(row["sentence"] for row in study["comparisons"])
notebook.tell(findings.caveats(study))

# %% [markdown]
# ## A study that is kept
#
# `modality` asks what LIBERO-Spatial needs: the same recipe with eyes and ears, deaf, blind, and blind and deaf, on all ten tasks.
# `answer/answer` is the planned study of masking (`docs/plan.md`), as far as it has been run: for it choose, say,
# `action_only, random_mask, attention_mask, blind` and `near_counterfactual` in the form above.

# %%
from lar_core.measure.study import STUDY
from lar_core.show.answer import answer_figure, chosen

some = chosen(STUDY.load(kept / f"{KEPT}.json"), ARMS.split(", "), PLACEMENT)
show(success_bars(report.study_bars(some)))
show(answer_figure(some) if some["answers"] else
     figures.differences(some["comparisons"], some["study"]["reference"]))

# %%
notebook.tell(row["sentence"] for row in some["answers"] or some["comparisons"])
notebook.tell(findings.caveats(some))

# %% [markdown]
# ## What to take along
#
# - A success rate without the blind control's beside it says nothing about seeing.
# - *Not detected* with an interval is an answer; *equal* is not.
# - Three seeds, paired init states, and the comparisons decided upon before looking: `docs/study.md`.
