# %% [markdown]
# # 07 · Several runs, side by side
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/la-reconvla/blob/main/notebooks/07_results.ipynb)
#
# One run is an anecdote. This notebook reads every run folder it can find, and the results that are kept in the
# repository, and asks which differences are really there.
#
# **You will see** success rates with intervals and controls, a table of all runs, paired tests in plain words, and how
# many rollouts it would take to see a difference at all.
#
# | | free Colab T4 | two CPU cores |
# |---|---|---|
# | time | 1 minute | 1 minute |
# | memory | 1 GiB | 1 GiB |
#
# If there is no run folder yet, the kept results alone are compared.

# %% cellView="form"
# @title Settings
PROFILE = "auto"  # @param ["auto", "micro", "tiny", "small", "t4"]
CONDITION = "attention_mask"  # @param ["attention_mask", "random_mask", "inverse_mask", "gaze_mask", "action_only"]
DRIVE = True  # @param {type: "boolean"}

# %% [markdown]
# Install, if this is a fresh runtime. Colab's own PyTorch, numpy and ipywidgets are left as they are.

# %%
import importlib.util, os, subprocess, sys
if importlib.util.find_spec("lar_core") is None:
    subprocess.run(["git", "clone", "-q", "--depth", "1", "https://github.com/OWNER/la-reconvla"])
    subprocess.run(["sh", "la-reconvla/scripts/install_colab.sh", sys.executable], check=True)
    sys.path.insert(0, os.path.abspath("la-reconvla"))

# %%
from pathlib import Path
import lar_core
from lar_core import notebook
from lar_core.notebook import show, table

profile = notebook.choose_profile(PROFILE)
run = notebook.open_run(CONDITION, profile, drive=DRIVE)

# %%
from lar_core.evaluate import compare

kept = Path(lar_core.__file__).parents[1] / "results"
found = compare.find_results(run.path.parent, kept)
print(f"{len(found)} runs:", ", ".join(result.name for result in found))

# %% [markdown]
# ## Success
#
# Blue: the policy. Grey: its blind control. Where the two overlap, the rollouts do not show that seeing helped.

# %%
from lar_core.view.figures import success_bars

show(success_bars(compare.bars(found)))

# %% [markdown]
# ## Everything in one table
#
# AOS depends on how large the objects are in the picture, so compare it between runs on the same data only.

# %%
table(("run", "success", "blind control", "AOS", "named minus other bowl", "action error", "training, minutes"),
      compare.summary(found))

# %% [markdown]
# ## Which differences are there?
#
# Two policies that started from the same init states are compared pair by pair (McNemar's exact test). *Not detected*
# does not mean equal: the interval says what remains possible.

# %%
sentences = compare.differences(found)
print("\n\n".join(sentences) or "No two runs here were rolled out on the same episodes: run notebook 00 with another "
      "CONDITION, and come back.")

# %% [markdown]
# ## How many rollouts would it take?
#
# The smallest difference that paired rollouts find four times out of five, if a fifth of the pairs turn out differently.

# %%
from lar_core.evaluate.statistics import detectable_paired, detectable_unpaired

table(("rollouts an arm", "paired: points", "unpaired: points"),
      [(n, 100 * detectable_paired(n), 100 * detectable_unpaired(n)) for n in (20, 50, 150, 500)])

# %% [markdown]
# And one training seed says little about another. Before a difference between two *conditions* is believed, each needs at
# least three seeds: `lar reproduce --condition random_mask --seed 1`.
