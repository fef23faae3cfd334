# %% [markdown]
# # 06 · What it costs
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/la-reconvla/blob/main/notebooks/06_latency.ipynb)
#
# How long does one policy step take, and what does each condition cost in training? And why you will find no claim of
# "five times faster control" here.
#
# **You will see** milliseconds per policy step, per precision and per action head, measured side by side on this machine;
# and what masking and reconstructing add to a step of training.
#
# | | free Colab T4, `t4` | two CPU cores, `tiny` |
# |---|---|---|
# | time | 10 minutes, most of it loading (not yet measured) | 1 minute |
# | memory | 9 GiB of the GPU (computed) | 2 GiB |
#
# Weights do not matter for time, so nothing needs to be trained for this notebook.

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
from lar_core import notebook, reproduce
from lar_core.notebook import show, step, table

profile = notebook.choose_profile(PROFILE)
run = notebook.open_run(CONDITION, profile, drive=DRIVE)

# %% [markdown]
# ## One policy step
#
# Picture and instruction in, a chunk of actions out, saliency included. *Replans per second* is how often the policy can
# look again; *actions per second* multiplies that by how many actions of a chunk are executed. Papers quote either one:
# read which.
#
# The heads: all actions of a chunk at once; one token after another, as a language model speaks; and two with a small
# policy of their own that reads every layer.
#
# Whatever else this machine is doing counts too: trust ratios more than milliseconds.

# %%
from lar_core.evaluate import costs

head = ("action head", "p50, ms", "p95, ms", "actions a second")
heads = costs.policy_steps(run, costs.HEADS)
table(head, heads, words=f"One after another takes {heads[1][1] / heads[0][1]:.1f} times as long on this machine.")

# %% [markdown]
# ## Precision
#
# Eight bits buy memory, not speed: on small matrices and on a T4, packing and unpacking costs more than it saves.

# %%
table(("precision", *head[1:]), costs.policy_steps(run, costs.precisions()))

# %% [markdown]
# ## What looking costs
#
# The saliency is read beside the fused attention kernel, for the rows of the instruction only.

# %%
with_it, without = costs.saliency_cost(run)
print(f"forward pass: {without:.1f} ms, with saliency {with_it:.1f} ms ({100 * (with_it / without - 1):+.0f} %)")

# %% [markdown]
# ## What each condition costs in training
#
# One forward and backward pass on one batch of real frames.

# %%
with step(run, "demonstrations"):
    heldout = notebook.heldout_dataset(run)

# %%
from lar_core.runtime import device
from lar_core.train import to_device

batch = to_device(heldout.batch(range(run.config.profile.batch_size)), device())
rows = costs.training_steps(run, batch)
table(("condition", "ms a step", "millions of parameters that learn"), rows)

# %%
from lar_core.view.figures import cost_bars

show(cost_bars([(name, ms) for name, ms, _ in rows], "one training step, ms"))

# %% [markdown]
# ## Why no "five times faster control" is claimed
#
# ReconVLA reconstructs with a diffusion model, this method with one pass of a small transformer. That makes *training*
# cheaper, and it makes *showing* a reconstruction cheaper. But neither method reconstructs anything while the robot
# moves: the decoder is not part of a policy step at all. A faster decoder therefore cannot make control faster.
#
# What does make it faster is above: the head, the precision, and how many actions are executed before the next look.
#
# Next: **07_results** compares runs.
