# %% [markdown]
# # 06 · What it costs
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/la-reconvla/blob/main/notebooks/06_latency.ipynb)
#
# *The badge's address still says OWNER, so it leads nowhere: upload this file to Colab, and type the
# repository's address into the form below.*
#
# How long does one policy step take, and what does each condition cost in training? And why you will find no claim of
# "five times faster control" here.
#
# **You will see** milliseconds per policy step, per precision and per action head, measured side by side on this machine;
# and what each kind of condition adds to a step of training: time, parameters, operations and memory.
#
# | | free Colab T4, `t4` | two CPU cores, `tiny` |
# |---|---|---|
# | time | 30 minutes, most of it loading (computed, not yet measured) | 2 minutes |
# | memory | 9 GiB of the GPU (computed) | 2 GiB |
#
# Neither weights nor pictures matter for time, so nothing is trained or recorded for this notebook.

# %% cellView="form"
# @title Settings
PROFILE = "auto"  # @param ["auto", "micro", "colab", "tiny", "small", "t4"]
CONDITION = "attention_mask"  # @param ["attention_mask", "random_mask", "inverse_mask", "gaze_mask", "gaze_diffusion", "attention_diffusion", "blue_noise_mask", "language_mask", "joint_mask", "bridge_head", "focus_head", "action_only"] {allow-input: true}
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
# Where are we, and how big shall it be? On a GPU with PaliGemma's weights these are the times that matter; elsewhere those
# of the small model, in which Python itself takes a large part.

# %%
from lar_core import notebook
from lar_core.notebook import show, table

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
from lar_core.measure import costs

head = ("action head", "p50, ms", "p95, ms", "actions a second")
heads = costs.policy_steps(run, costs.heads())
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
# One whole step of the trainer, optimiser included, on made-up frames. One condition of each kind: no reconstruction at
# all; one pass of an MAE; the same with a second look that cannot see the mask; denoisers, as large as ReconVLA's and as
# small as the MAE; a teacher that chooses the mask; losses on the map and on hidden words; other heads. Which patches are
# hidden costs nothing, so the other masks are not repeated.

# %%
from lar_core.measure.costs import BASE, compare_training
from lar_core.show.report import cost_rows

training = compare_training(run.config)
table(("condition", "ms a step", "times action_only", "million parameters that learn", "GFLOP a sample", "GB of GPU memory"),
      cost_rows(training, BASE))

# %% [markdown]
# Operations are counted by PyTorch and do not depend on this machine, so they are the fairest column; those of 8-bit
# layers are not counted. Memory is measured on GPUs only. Conditions that show the frozen layers something new at every
# step cannot use the feature cache of profile `t4`, and pay for that there.

# %%
from lar_core.show.figures import cost_bars

show(cost_bars([(name, cost["step_ms"]) for name, cost in training.items() if cost], "one training step, ms"))

# %% [markdown]
# ## Why no "five times faster control" is claimed
#
# ReconVLA reconstructs with a diffusion model, this method with one pass of a small transformer. That makes *training*
# cheaper, by as much as the bars say, and it makes *showing* a reconstruction cheaper. But neither method reconstructs anything while the robot
# moves: the decoder is not part of a policy step at all. A faster decoder therefore cannot make control faster.
#
# What does make it faster is above: the head, the precision, and how many actions are executed before the next look.
#
# Next: **07_results** compares runs.
