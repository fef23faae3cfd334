# %% [markdown]
# # 01 · Set-up, and a first look at the scene
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/la-reconvla/blob/main/notebooks/01_setup.ipynb)
#
# *The badge's address still says OWNER, so it leads nowhere: upload this file to Colab, and type the
# repository's address into the form below.*
#
# Before anything is trained: does everything work here, and what does the robot see?
#
# **You will see** what this machine is and what on it is missing, with the line that mends it; a scene of
# LIBERO-Spatial from two cameras, with every object's outline; and a scripted expert doing the task.
#
# | | free Colab T4 | two CPU cores |
# |---|---|---|
# | time | 4 minutes, most of it installation (not yet measured) | 1 minute |
# | memory | 2 GiB | 2 GiB |

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
# ## This machine
#
# The same notebooks run on a free Colab GPU with PaliGemma-3B and on a laptop's CPU with a small model of the same
# architecture. They find out where they are, say so, and can be overruled in the form above.

# %%
from lar_core import notebook
from lar_core.notebook import show, table

profile = notebook.choose_profile(PROFILE)
run = notebook.open_run(CONDITION, profile, drive=DRIVE)

# %% [markdown]
# Is everything there? Off-screen rendering is the part that most often is not.

# %%
from lar_core.doctor import examine

fine = examine()

# %% [markdown]
# Every result names the versions it was made with:

# %%
from lar_core.run.folder import provenance

table(("what", "version"), list(provenance().items()))

# %% [markdown]
# ## A token, for PaliGemma only
#
# PaliGemma's weights are gated. `huggingface_hub` looks for a token in the environment, in what `hf auth login` left, and in
# Colab's secrets, and asks the hub whether it may read them; one that is typed in is kept in the memory of this process and
# nowhere else. Without one, everything works with the small model.

# %%
import torch

if torch.cuda.is_available():
    notebook.sign_in()
else:
    print("No GPU, so PaliGemma would be too slow here and no token is needed.")

# %% [markdown]
# ## The scene
#
# LIBERO-Spatial: a Panda arm, two black bowls, a plate, a ramekin, a box of cookies, a stove and a cabinet. The ten
# tasks differ in which bowl is to be put on the plate. Unless LIBERO's own assets are found, this project draws the
# objects itself, with the same names, sizes and tasks but not the same look; every result says which.

# %%
from lar_core.scene.env import SpatialEnv, official_init_states

task = run.config.profile.tasks[0]
env = SpatialEnv(task, image_size=288, wrist_size=288, segmentation=True)
seen, _ = env.reset(seed=0, options={"init_state": official_init_states(task)[0]})
print(f"Task {task}: {env.instruction}\nAssets: {env.assets['name']}")

# %%
from lar_core.show.pictures import colours, side_by_side

show(side_by_side([seen["agentview_rgb"], seen["eye_in_hand_rgb"], colours(seen["agentview_segmentation"])],
                  ["agentview, what the policy sees", "the wrist camera", "which pixel is which object"]))
print("objects:", ", ".join(env.objects))

# %% [markdown]
# ## An expert
#
# The demonstrations are made by a script that knows where everything is: approach, grasp, carry, let go. A policy learns
# from its actions, and has to find out from pictures what the script was told.

# %%
from lar_core.scene.expert import run_expert
from lar_core.scene.placements import sample_scene

episode = run_expert(env, sample_scene(env, "official", 0))
env.close()
notebook.film(episode.agentview_rgb, run.path / "expert.mp4", words=f"{len(episode)} steps of 1/20 second")

# %% [markdown]
# The same as stills:

# %%
from lar_core.show.pictures import filmstrip

show(filmstrip(episode.agentview_rgb))

# %% [markdown]
# Next: **00_reproduce_condition** runs everything in one go; **03_attention_saliency** shows what a policy looks at.
