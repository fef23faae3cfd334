# %% [markdown]
# # 02 · Loading PaliGemma in 8 bit
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/la-reconvla/blob/main/notebooks/02_load_paligemma_8bit.ipynb)
#
# *The badge's address still says OWNER, so it leads nowhere: upload this file to Colab, and type the
# repository's address into the form below.*
#
# Three billion parameters on a free GPU with 15 GiB, and room left for training. What is made smaller, what is not, and
# does it still say the same?
#
# **You will see** the model's parts with their parameters and bytes; the same model in several precisions, with its
# memory, its speed and its agreement with the original; which modules stay in floats and why; and, where real weights are
# there, what PaliGemma says about the scene.
#
# | | free Colab T4, `t4` | two CPU cores, `tiny` |
# |---|---|---|
# | time | 10 minutes, most of it download (not yet measured) | 1 minute |
# | memory | 6 GiB of the GPU (computed) | 2 GiB |
# | needed | a Hugging Face token | nothing: a random model of the same architecture stands in |

# %% cellView="form"
# @title Settings
PROFILE = "auto"  # @param ["auto", "micro", "colab", "tiny", "small", "t4"]
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
# Where are we, and are PaliGemma's own weights within reach? They are gated: a token is looked for in Colab's secrets, in
# the environment, and then asked for. Without one, a small random model of the same architecture stands in.

# %%
from lar_core import notebook
from lar_core.notebook import show, table

profile = notebook.choose_profile(PROFILE)
run = notebook.open_run("attention_mask", profile, drive=DRIVE)
real = not run.config.profile.miniature
print("PaliGemma's own weights." if real else "Random weights of the same architecture: sizes and agreement can be seen, "
      "what it says cannot.")

# %% [markdown]
# ## The parts
#
# A SigLIP vision tower turns the picture into tokens, a projector carries them over to the language model, and Gemma reads
# them together with the instruction. The language model's layers hold most of the weights; the embedding table is shared
# with the output head.

# %%
from lar_core.measure import costs
from lar_core.model.paligemma import parameter_table, quantised_modules
from lar_core.model.tiny import prepare_backbone

source = prepare_backbone(run)
backbone = costs.load(source, "int8")
table(("part", "parameters, millions", "MB in memory", "kinds of numbers"),
      [(row["part"], row["parameters"] / 1e6, row["bytes"] / 1e6, ", ".join(row["kinds"]))
       for row in parameter_table(backbone.vlm)])

# %% [markdown]
# ## What is in 8 bit, and what is not
#
# Only the linear layers of the language model. The vision tower and the projector stay in floats: they are small, and
# errors made there reach every later layer. So does the output head, because it is the embedding table seen from the
# other side. The number of converted layers is checked at every load, because a misspelt exception would silently
# convert the vision tower.

# %%
names = quantised_modules(backbone.vlm)
print(f"{len(names)} layers are in 8 bit, from {names[0]}\nto {names[-1]}")

# %% [markdown]
# ## Does it look the same?
#
# Where the instruction looks decides what is masked, so that should survive: saliency in 8 bit and in floats, on one
# picture of the scene.

# %%
from lar_core.scene.env import SpatialEnv

env = SpatialEnv(run.config.profile.tasks[0], image_size=run.config.profile.image_size, wrist_size=0)
seen, _ = env.reset(seed=0)
image, sentence = seen["agentview_rgb"], env.instruction
env.close()

# %%
from lar_core.measure.costs import precisions
from lar_core.show.pictures import heat, side_by_side

kinds = list(precisions())
maps = {"int8": costs.saliency(backbone, image, sentence)}
del backbone
maps |= {kinds[0]: costs.saliency(costs.load(source, kinds[0]), image, sentence)}
show(side_by_side([heat(image, maps[kind]) for kind in maps], list(maps)),
     words=f"largest difference between the two maps: {abs(maps['int8'] - maps[kinds[0]]).max():.1e}, of a sum of 1")

# %% [markdown]
# ## Memory, speed, agreement
#
# Each precision is loaded on its own and compared with the first one, on several sentences. *Same next token* is how often
# the most likely token is the same.

# %%
from lar_core.scene.env import instruction

rows = costs.compare_precisions(source, kinds, image, [instruction(task) for task in range(4)])
table(("precision", "MB of weights", "seconds to load", "ms a forward pass", "error of logits", "same next token"),
      [(row.name, row.bytes / 1e6, row.seconds, row.ms, row.error, f"{100 * row.agreement:.0f} %") for row in rows])

# %% [markdown]
# Eight bits buy memory, not speed. On a T4 public measurements find them slower than fp16, so this project *trains* in 8
# bit, where memory is short, and *acts* in fp16, where it is not.
#
# ## A sanity check
#
# PaliGemma was trained to caption and to detect. If it names a bowl here, weights, picture and prompt fit together.

# %%
if real:
    backbone = costs.load(source, kinds[0])
    for prompt in ("caption en", "detect black bowl"):
        print(f"{prompt}: {costs.answer(backbone, image, prompt)}")
else:
    print("Left out: random weights say random things. With a GPU and a token this cell asks PaliGemma.")

# %% [markdown]
# Next: **03_attention_saliency** looks at what the instruction attends to.
