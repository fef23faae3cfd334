# %% [markdown]
# # 05 · Does it act on what it was told?
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/la-reconvla/blob/main/notebooks/05_libero_rollout.ipynb)
#
# *The badge's address still says OWNER, so it leads nowhere: upload this file to Colab, and type the
# repository's address into the form below.*
#
# A policy that was told nothing, or the wrong thing, should do worse. And a policy that cannot see should fail. Watch
# how often neither is true.
#
# **You will see** the policy acting in LIBERO's scene, frame by frame, with what its instruction looks at and what its
# hand is told; success rates with their intervals under the right, a blank and the other bowl's instruction; and the same
# for a control that has never seen an image.
#
# | | free Colab T4, `t4` | two CPU cores, `tiny` |
# |---|---|---|
# | after notebook 00 | 1 minute | 1 minute, 1 GiB |
# | alone, in a fresh runtime | 40 minutes (computed) | 6 minutes: a small policy is trained first |

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
# Where are we, how big shall it be, and is there a trained policy already? If an earlier notebook left one in the run
# folder, it is taken from there.

# %%
from lar_core import notebook, steps
from lar_core.notebook import show, step

profile = notebook.choose_profile(PROFILE)
run = notebook.trained_run(CONDITION, profile, drive=DRIVE)

# %% [markdown]
# ## Rolling out
#
# Ten wait steps, then at most 220 steps of 1/20 second; after every inference, eight actions are executed before the
# next one (both are settings of the profile, and both change results). Success is LIBERO's own predicate: the *named*
# bowl stands on the plate. Init states are stored ones, never those of a demonstration: profile `tiny` takes pairs of near
# placements (`near_counterfactual`), where everything stands 3.5 to 6 cm from the benchmark's own places and either bowl is
# named in turn, and PaliGemma the benchmark's. Episodes that are in the run folder already are not repeated.

# %%
with step(run, "rollouts"):
    rows = steps.roll_out_policy(run)

# %% [markdown]
# ## How often
#
# The line on each bar is the 95 % interval. With few episodes it is long, and that is the point of drawing it.

# %%
from lar_core.show import figures, findings, report

results, page = steps.make_report(run)
show(figures.success_bars(report.success_bars(results)))

# %% [markdown]
# In words, pair by pair on the same init states:

# %%
notebook.say(finding for finding in findings.findings(results, rows) if "placements)" in finding.topic)

# %% [markdown]
# ## Frame by frame
#
# Press play, or pull the slider. Left: the camera. Middle: what the instruction looks at. Right: the wrist camera. Below:
# the motion that the policy commands and the distance of its fingers; the red line is now. Watch the moment at which it
# closes its hand: where does it look?

# %%
from lar_core.show.widgets import RolloutPlayer

player = RolloutPlayer(run)
player.show()

# %% [markdown]
# The same without a click:

# %%
show(player.still())

# %% [markdown]
# ## Told nothing
#
# The instruction is a single dot. A policy that was trained on one task has never needed a sentence, so success here
# says that none was needed, and failure may only say that a dot is strange.

# %%
blank = next(row for row in player.rows if row["instruction"] == "blank")
notebook.clip(blank["film"], words=f"told “{blank['sentence']}”: {'solved' if blank['success'] else 'not solved'}")

# %% [markdown]
# ## Told something else
#
# The same scene, but the sentence names its *other* bowl. Success is now that bowl on the plate; a policy that brings the
# usual one all the same did not listen.

# %%
from lar_core.show.rates import outcome

other = next(row for row in player.rows if row["instruction"] == "other_bowl")
notebook.clip(other["film"], words=f"told “{other['sentence']}”: {outcome(other)}")

# %% [markdown]
# ## What to take along
#
# - Read a success rate beside its interval, and beside the blind control's.
# - Official placements can be passed without looking, near ones hardly. `lar rollout --on wide` moves everything; counterfactual
#   pairs name either bowl in the same scene, and are the honest test of language: a deaf policy has half of them at most.
#
# Next: **06_latency** measures what a step costs, **07_results** compares runs.
