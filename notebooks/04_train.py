# %% [markdown]
# # 04 · Training: hide what is looked at, and learn to see it
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/la-reconvla/blob/main/notebooks/04_train.ipynb)
#
# *The badge's address still says OWNER, so it leads nowhere: upload this file to Colab, and type the
# repository's address into the form below.*
#
# `L = L_action + λ · L_recon`. The policy learns to act; and it learns to fill in what was hidden where its own
# instruction looks.
#
# **You will see** mask, reconstruction and loss *before* a single step of training; the losses falling live; how the
# reconstructions sharpen from checkpoint to checkpoint; two gates that a policy has to pass before anything it does is
# worth discussing; and the rivals: what else could be hidden, reconstructed, or put in the place of the action head.
#
# | | free Colab T4, `t4` | two CPU cores, `tiny` |
# |---|---|---|
# | time | 1 to 3 hours (computed, not yet measured) | 10 to 15 minutes |
# | memory | 9 GiB of the GPU (computed) | 4 GiB |

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
# Where are we, and how big shall it be? What earlier notebooks have left in the run folder is used; what is missing is
# made.

# %%
from lar_core import notebook, steps
from lar_core.notebook import show, step, table

profile = notebook.choose_profile(PROFILE)
run = notebook.open_run(CONDITION, profile, drive=DRIVE)

# %%
with step(run, "demonstrations"):
    demos = steps.make_demos(run.config)

# %% [markdown]
# ## Before training
#
# One batch through an untrained policy. First the saliency, which for now is whatever random weights make of it.

# %%
from lar_core.measure.costs import untrained

heldout = notebook.heldout_dataset(run)
batch = heldout.batch([10, 30])
policy = untrained(run).eval()
encoding = policy.encode(batch)
print("saliency", tuple(encoding.saliency.shape), "sums to", [round(float(s), 3) for s in encoding.saliency.sum(1)])

# %% [markdown]
# The most salient quarter of the patches is hidden, and a small transformer predicts the hidden pixels from the features
# of the visible patches. *Pasted* puts the prediction into the picture. (A decoder of normalised patches does not predict
# a patch's brightness; for these pictures it is borrowed from the original, so even a bad guess has the right shade.)

# %%
from lar_core.run.runtime import Draws
from lar_core.measure.probes import reconstruction_panels
from lar_core.show.figures import reconstruction_panels as draw

if policy.decoder is not None:
    mask = policy.mask(batch, encoding.saliency, Draws(0))
    show(draw(reconstruction_panels(policy, policy.reconstruct(batch, encoding, mask, Draws(0)))))

# %% [markdown]
# And the loss. Actions are 7 numbers in 256 bins each: guessing evenly costs log 256 = 5.55 nats.

# %%
losses = policy(batch, Draws(0))
table(("part", "loss before training"), [(name, value.item()) for name, value in losses.items()])

# %% [markdown]
# ## Training
#
# The curves are redrawn every few seconds. The third one is the leakage probe: how much gradient each loss sends into the
# backbone. The decoder can cheat, because the backbone has seen the whole image; a reconstruction loss that sends nothing
# back teaches the backbone nothing. The blind control is trained beside it.
#
# Stop this cell whenever you like. Run it again, and it goes on from the last checkpoint.

# %%
with step(run, "training"), notebook.live_curves(run):
    notebook.train_all(run)

# %% [markdown]
# ## What the decoder learned
#
# The same two held-out frames at some moments of training. Watch the mask too: it moves as the policy's attention does.

# %%
from lar_core.measure.probes import snapshots
from lar_core.show.pictures import over_time

if moments := snapshots(run):
    show(over_time(moments))

# %% [markdown]
# ## Two gates
#
# 1. On demonstrations that it has not seen, the policy must predict actions better than *always the same mean action*.
# 2. It should do so better than a policy that has never seen an image. If it does not, it has learned the task's routine,
#    not to look; that is a finding, and a common one.

# %%
from lar_core.run.folder import Run

with step(run, "saliency"):
    seeing = notebook.scores(run)["action"]
    blind = notebook.scores(Run.load(run.control))["action"]

# %%
from lar_core.show.findings import estimate

table(("on held-out demonstrations", "mean absolute action error (95 % interval)"),
      [(CONDITION, estimate(seeing["l1"])), ("blind control", estimate(blind["l1"])),
       ("always the mean action", estimate(seeing["l1_mean_action"]))])

# %% [markdown]
# ## The rivals: what is hidden
#
# Whether it matters *where the instruction looks* can only be said beside masks that do not listen. All of them hide the
# same number of patches. `random`, `blue_noise` (random, but spread out) and `centre` never look at the image;
# `frame_difference` hides what has just moved; `gaze` is told the object's place by the simulator; `hint_attention` leaves
# the very top visible, and `sampled_attention` draws patches with the probability that attention gives them.

# %%
from lar_core.run.runtime import device
from lar_core.model.policy import load_policy
from lar_core.show import pictures

trained = load_policy(run, device())[0].eval()
one = heldout.batch([40])
show(pictures.masks(trained, one), words=one["instructions"][0])

# %% [markdown]
# ## The rivals: what is reconstructed
#
# ReconVLA, the work that this one answers to, reconstructs a *gaze region*, the named object's box, with a *diffusion*
# model. Two things differ at once, the region and the reconstructor, so there is a condition for each of the four
# combinations. An MAE fills in the grey patches in one pass. A denoiser is shown a crop under noise and must name the
# noise, told only by the backbone's image tokens; with attention, the crop is the square that holds most of its mask.

# %%
if "regions" in one:
    show(pictures.regions(trained, one))

# %% [markdown]
# ## The rivals: all of them
#
# Every line can be typed into `CONDITION` above. Action heads: `parallel` predicts a whole chunk in one pass,
# `autoregressive` one token after another as OpenVLA does, `bridge` follows VLA-Adapter and `focus` FocusVLA, both with a
# small policy of their own that reads every layer. The lines with a weight add a loss: on the attention map itself, on
# words that were hidden from the instruction, or on what the sentence changes in the actions. `…_matched` gives the denoiser no
# more parameters than the MAE has.

# %%
table(("condition", "hides", "reconstructs with", "action head", "and changes", "decoder, million parameters"),
      pictures.conditions(run.config.profile))

# %% [markdown]
# Where each comes from and how it differs from its source stands in `docs/rivals.md`; what each costs, in **06_latency**;
# how to compare several with several seeds, in **07_results**.
#
# ## What to take along
#
# - A falling reconstruction loss is not yet learning to see: read the gradient curve beside it.
# - Action error does not predict success. It is a gate, not a goal.
#
# Next: **05_libero_rollout** lets the policy act.
