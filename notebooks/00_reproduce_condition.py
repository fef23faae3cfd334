# %% [markdown]
# # 00 · Reproduce one condition, from set-up to report
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/la-reconvla/blob/main/notebooks/00_reproduce_condition.ipynb)
#
# *The badge's address still says OWNER, so it leads nowhere: upload this file to Colab, and type the
# repository's address into the form below.*
#
# *Does masking what the instruction looks at, and reconstructing it, make a robot policy look at, and act on, the right
# object?* This notebook runs one experimental condition from nothing to a report: demonstrations, training, saliency,
# rollouts, latency. Press **Runtime → Run all**. If the runtime is lost on the way, press it again: every step goes on
# where it was.
#
# **You will see** a demonstration, losses falling while the policy learns, where it looks, videos of it acting, and a
# table in which every number stands beside the one that keeps it honest.
#
# | | free Colab T4, `t4` | two CPU cores: `colab` on Colab, elsewhere `tiny` |
# |---|---|---|
# | time | 3½ of the 4 hours that a session usually lasts (computed, not yet measured) | `colab`: 11 minutes after the installation, which takes 2 to 3 (measured on another machine with two cores); `tiny`, more demonstrations and samples: about 20 minutes after the installation |
# | memory | 9 GiB of the GPU (computed) | 4 GiB |
# | needed | a Hugging Face token for PaliGemma's weights | nothing |

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
# Where are we, and how big shall it be? With a GPU and a token it is PaliGemma-3B in 8 bit; without them a small model
# of the same architecture, from a shipped backbone that was pre-trained on rendered scenes. The run folder keeps everything
# that is made below; on Colab it is copied to your Drive, so that a disconnect costs a minute of work at most.

# %%
from lar_core import estimate, notebook, steps
from lar_core.notebook import show, step, table

profile = notebook.choose_profile(PROFILE)
run = notebook.open_run(CONDITION, profile, drive=DRIVE)

# %% [markdown]
# ## Before anything is trained
#
# One table, two identical bowls. What do two sentences look at, in a miniature of PaliGemma that was pre-trained on rendered
# scenes? The box is its answer to `detect the black bowl …`. Write sentences of your own.

# %%
from lar_core.show.look import look

show(look(["pick up the black bowl next to the plate", "pick up the black bowl next to the ramekin"]))

# %% [markdown]
# ## What it will cost
#
# Estimates for this machine, of what is still to be done; downloads are part of the step that needs them. Each step repeats
# its own line when it begins, and says what it really took when it ends. A free Colab session usually lasts four hours; what
# does not fit into one goes on in the next.

# %%
expected = estimate.expected(run)
table(("step", "time", "peak memory, GiB"), [(name, estimate.duration(cost.seconds), cost.gib)
                                             for name, cost in {**expected, "in all": estimate.together(expected)}.items()])

# %% [markdown]
# ## 1. Demonstrations
#
# Profiles `t4` and `full` take LIBERO's human demonstrations and draw them again, with LIBERO's own assets; where those cannot be
# had, a sentence above says so. Elsewhere a scripted expert plays each task of the profile, with a little noise on its hand so
# that the policy also sees how to recover; only successes are kept. They are written in LIBERO's own file format, next to which
# objects are where in the picture.

# %%
with step(run, "demonstrations"):
    demos = steps.make_demos(run.config)

# %% [markdown]
# One of them, from beginning to end:

# %%
from lar_core.data.demos import read_episode
from lar_core.show.pictures import filmstrip

episode = read_episode(demos[0], 0)
show(filmstrip(episode.agentview_rgb), words=f"“{episode.instruction}”, {len(episode)} steps of 1/20 second")

# %% [markdown]
# ## 2. Training
#
# `L = L_action + λ · L_recon`: the action head predicts chunks of actions, the decoder reconstructs the patches that the
# condition masks. Beside it, the **blind control** is trained: the same recipe, with every image replaced by grey. It is
# not optional. On LIBERO-Spatial's own placements the bowl hardly moves, so that a policy without eyes can succeed.

# %%
with step(run, "training"), notebook.live_curves(run):
    notebook.train_all(run)

# %% [markdown]
# ## 3. Where it looks
#
# Attention from the instruction's words to the image, on demonstrations that were held out. Solid outline: the bowl that
# is named. Dashed: the other one.

# %%
with step(run, "saliency"):
    heldout = notebook.scores(run)

# %%
from lar_core.show.pictures import panels, saliency

show(saliency(run))

# %% [markdown]
# What the decoder makes of the masked patches. A sharp reconstruction is no proof of understanding: the backbone has
# seen the whole image, so the visible patches may carry what is hidden.

# %%
if (pictures := panels(run)) is not None:
    show(pictures)

# %% [markdown]
# ## 4. Does it act?
#
# Rollouts from init states that no demonstration began from, with the right instruction, a blank one and the other bowl's.

# %%
with step(run, "rollouts"):
    rows = steps.roll_out_policy(run)

# %%
from lar_core.show import figures, report

results, page = steps.make_report(run)
show(figures.success_bars(report.success_bars(results)))

# %%
notebook.clip(run.path / next(row["video"] for row in rows if row.get("video")),
              words="camera | what the instruction looks at | wrist camera")

# %% [markdown]
# ## 5. How fast is it?
#
# One policy step: picture and instruction in, a chunk of actions out. Nothing is reconstructed here, in this method or
# in any of its rivals, so the decoder makes *training* dearer or cheaper, never control: one step of training is timed
# too, beside one of `action_only`.

# %%
with step(run, "latency"):
    notebook.times(run)

# %% [markdown]
# ## The report

# %%
results, page = steps.make_report(run)
print(report.summary_table(results))

# %% [markdown]
# In words. *Detected* means that a test or an interval supports the claim; *not detected* means that these data do not,
# and never that there is no effect.

# %%
from lar_core.show import findings

notebook.say(findings.findings(results, rows))
print(f"The whole page, with pictures and clips: {page}")

# %% [markdown]
# ## What it really cost
#
# What was expected before each step was first begun, and what it took in all sessions together. A session that was
# killed in the middle of a step is not counted.

# %%
table(("step", "expected", "took"), notebook.spent(run))

# %% [markdown]
# Next: **03_attention_saliency** looks inside the heatmaps, **05_libero_rollout** plays the episodes frame by frame, and
# **07_results** compares several runs. Run this notebook again with another `CONDITION` to have something to compare:
# besides those in the form, every name in the README's table of conditions can be typed in. **04_train** shows what they
# are.
