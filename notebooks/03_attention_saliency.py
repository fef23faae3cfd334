# %% [markdown]
# # 03 · What the instruction looks at
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/la-reconvla/blob/main/notebooks/03_attention_saliency.ipynb)
#
# *The badge's address still says OWNER, so it leads nowhere: upload this file to Colab, and type the
# repository's address into the form below.*
#
# *Pick up the black bowl on the ramekin.* Two black bowls stand on the table. Does the policy look at the right one?
#
# **You will see** an explorer in which image, heatmap, mask and scores change together while you move through a
# demonstration and rewrite its instruction; what every word and every attention head looks at; which way of
# aggregating them finds the object best, by fourteen measures; how little a good-looking heatmap proves; and what the
# actions really depend on.
#
# | | free Colab T4, `t4` | two CPU cores, `tiny` |
# |---|---|---|
# | after notebook 00 or 04 | 5 minutes, 7 GiB (computed) | 1 minute, 2 GiB |
# | alone, in a fresh runtime | 30 minutes (computed) | 5 minutes: a small policy is trained first |

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
from lar_core import notebook
from lar_core.notebook import show, table

profile = notebook.choose_profile(PROFILE)
run = notebook.trained_run(CONDITION, profile, drive=DRIVE)

# %% [markdown]
# ## The explorer
#
# The policy, and demonstrations that it has *not* been trained on. The solid cyan outline is the bowl that the
# instruction names, the dashed white one is the other bowl. Try this:
#
# - Move **frame** through the episode. Does the heat follow the bowl, or the arm?
# - Choose **the other bowl**. A policy that listens should change its mind about where to look.
# - Choose **blank**. Whatever heat is left has nothing to do with what was said.
# - Mark a single **word**, **layer** or **head**. No mark at all means the policy's own choice.
# - Choose another **aggregation**: a recipe with a name, which makes its own choice of words, layers and heads.
# - Pull **mask ratio**: what is grey on the right is what the decoder would have to fill in.

# %%
from lar_core.run.runtime import device
from lar_core.model.policy import load_policy
from lar_core.show.widgets import HeatmapExplorer

policy, stats = load_policy(run, device())
episodes = notebook.heldout_episodes(run)
explorer = HeatmapExplorer(policy, episodes, notebook.localisation_heads(run, policy))
explorer.show()

# %% [markdown]
# The same story without a click, for readers on a page that runs no code: three moments of one episode (rows) under
# three instructions (columns). If the columns look alike, the sentence does not decide where the policy looks.

# %%
show(explorer.still())

# %% [markdown]
# ## Where a heatmap comes from
#
# PaliGemma puts image tokens and words into one sequence in which everything sees everything. Cut the rows of the words
# and the columns of the image patches out of its self-attention, and you have, for every layer, head and word, a map of
# the image. Nothing has to be decoded for it, and nothing else of the attention matrix is ever computed.

# %%
episode = episodes[0]
frame = len(episode) // 3
image = episode.agentview_rgb[frame]
attention = explorer.reader.read(image, episode.instruction)
print("attention: layers, heads, words, patches =", attention.values.shape)
print("words:", " | ".join(attention.words))

# %% [markdown]
# One map for every token, averaged over the policy's layers and heads. The first and the last one are no words at all
# but the beginning of the sequence and the line break that ends PaliGemma's prompt.

# %%
from lar_core.measure.attention import regions_of
from lar_core.show.pictures import by_head, by_name, by_word, maps, sinks

regions = regions_of(episode, frame)
show(maps(image, attention, by_word(attention), regions))

# %% [markdown]
# ## Sinks
#
# How much of its attention does a token spend on the image at all? The softmax makes every token spend all of it
# somewhere, and what has nowhere better to go collects in a few places that mean nothing: *sinks*. The first token and
# line breaks are well-known ones. They say nothing themselves either, so the method leaves them out of the instruction.
# Compare their maps above with those of the words, and their lines in the table.

# %%
from lar_core.measure.attention import image_share

share = image_share(attention)[list(attention.tapped)].mean(axis=(0, 1))  # over the policy's layers and heads
table(("token", "its attention that goes to the image", "part of the instruction"),
      [(word, float(s), "yes" if own else "no") for word, s, own in zip(attention.words, share, attention.own)])

# %% [markdown]
# Patches can be sinks too: a piece of table, or an empty corner, that is bright whatever the sentence says. The first
# picture is the mean over the words, the second the same frame when nothing was said: what is bright in both has little
# to do with the instruction. The third is what `sink_removal` goes by, how much *every* token gives a patch at least, BOS
# and newline too; full colour, four times a token's mean, would be a sink. The fourth is what is left without them. Large
# pre-trained models have such patches; where a small one has none, the first and the last picture are the same.

# %%
show(sinks(explorer.reader, image, episode.instruction, regions))

# %% [markdown]
# ## Heads disagree
#
# The mean hides a lot. Look for heads that follow the arm, heads that hold on to an edge of the table whatever happens,
# and heads that mark one of the bowls. Which bowl?

# %%
heads = by_head(attention, attention.tapped)
show(maps(image, attention, heads, regions, columns=max(4, len(heads) // len(attention.tapped)), side=200))

# %% [markdown]
# ## Which way to aggregate?
#
# The literal recipe is the mean over instruction words, heads and the last layers. Others are easily made by hand. Here
# are some of them on the frame from above, …

# %%
from lar_core.measure.attention import Choice, compare

nouns = tuple(i for i in attention.own_words if attention.words[i] in ("bowl", "ramekin", "plate", "box", "cookie"))
choices = {"mean, as published": Choice(), "max instead of mean": Choice(reduce="max"),
           "last layer only": Choice(layers=(explorer.reader.layers - 1,)), "nouns only": Choice(words=nouns or None),
           "smoothed by a patch": Choice(smoothing=1.0)}
show(maps(image, attention, choices, regions))

# %% [markdown]
# … and here is what they score on all held-out episodes. **AOS** is the overlap (intersection over union) of the 25 %
# most salient patches with the named object's patches.

# %%
handmade = compare(explorer.reader, episodes, choices)
table(("aggregation", "AOS", "named minus other bowl", "AUC, chance 0.5"),
      [(name, score["aos"], score["target_minus_distractor"], score["auc"]) for name, score in handmade.items()])

# %% [markdown]
# ## Recipes from the literature
#
# Each changes one thing: *content words* asks no stop words; *sink removal* you have seen; *relative* divides by the map
# of a prompt that names nothing; *localisation heads* takes only the few heads that are attentive and concentrated,
# chosen once on training frames; *smooth* blurs. The last two need several passes and are for evaluation only: *coarse
# to fine* looks again, closer, where it looked most, and *multi pass* averages over passes in which other patches were
# hidden. Where each comes from, and how it differs, stands in `docs/rivals.md`.

# %%
show(by_name(explorer.reader, image, episode.instruction, regions))

# %%
from lar_core.notebook import step
from lar_core.run.registry import METRICS
from lar_core.show.findings import estimate
from lar_core.show.report import beside_baselines

with step(run, "saliency"):
    scores = notebook.scores(run)
some = ("aos", "target_minus_distractor", "auc", "pointing_15px", "energy", "nss", "box_iou")
table(("aggregation", *(METRICS.about(metric).label for metric in some)),
      [(row["name"].replace("_", " "), *(estimate(row["metrics"][metric]) for metric in some))
       for row in scores["aggregations"]],
      words="Choosing the best row after looking is choosing a favourable accident: fix the recipe on training frames.")

# %% [markdown]
# ## Is that much?
#
# A score means nothing alone. A bowl covers a patch or two, so even a perfect map has an AOS far below 1; and a
# map that has never seen the image, but knows where the bowl stood in training, gets most of what can be had. A policy
# has shown that it *looks* only where its bar lies above all grey ones.

# %%
from lar_core.show.figures import grounding_bars

grounding = scores["grounding"]
show(grounding_bars(grounding), words=f"The highest AOS that any map could reach here: {grounding['aos']['best']['mean']:.2f}.")

# %% [markdown]
# The literature measures heatmaps in many ways, and a map can win by one and lose by another. All of them, on the same
# frames, for this policy and for the three maps that never look:

# %%
table(("metric", "what it asks", "this policy", "uniform map", "image centre", "where it was in training"),
      beside_baselines(grounding))

# %% [markdown]
# ## Looking is not acting
#
# A heatmap is a claim about cause: *it acts because of what it looks at*. The claim can be tested. Below the heat, for the
# same frames, stands what the action depends on: block by block the picture is covered with the colour of what is around,
# and the brighter a block, the more the action changes without it. Where both rows show the same place, looking and
# acting agree; where the lower one lights up the arm, or the other bowl, the heatmap above tells half of the story.

# %%
from lar_core.show import causes
from lar_core.show.figures import gallery, layer_lines

cause, pictures = scores["cause"], gallery(run)
show(causes.looks_and_acts(pictures))

# %% [markdown]
# The same question as a curve. Cover the blocks in the order of a map, the highest first (left): the sooner the action
# changes, the better the map says what it depends on. Or show them alone, in the same order (right): the sooner the action
# is what it was, the better. A map must lie clear of the dashed lines, which never looked, to be worth its colours.

# %%
show(causes.curve_lines(cause), words="Rank correlation with what mattered: where the policy looks "
     f"{estimate(cause['agreement']['model'])}, the image's centre {estimate(cause['agreement']['centre'])}.")

# %% [markdown]
# Which way does the picture take to the action, and which way the sentence? For one pass, some tokens may not attend to
# others. If nothing happens when the *words* no longer see the image, then nothing was carried there, however good the
# map of those rows looks: then they show where the words look, and the action has its picture from elsewhere.

# %%
show(causes.knockout_lines(cause))

# %% [markdown]
# And layer by layer: who knows of the named object, and whose map agrees with what mattered?

# %%
show(layer_lines(scores["layers"]))

# %% [markdown]
# The last test changes the scene itself: without the named bowl, without its twin, and with the two exchanged, each with
# what it stands on or next to. The sentence stays. A policy that goes for what is *named* now heads for the other place; one
# that has learned a place heads where it always did.

# %%
from lar_core.show.report import changed_scenes

table(("rendered again", "frames", "change of the chunk (mm)", "(degrees)", "points to the named bowl", "before the change"),
      changed_scenes(cause["pixels"]))

# %% [markdown]
# ## Your eyes against the score
#
# Numbers can miss what a person sees at once. Below are pairs of heatmaps of the same frame, *mean* and *max*, without
# their names and in random order. Vote as long as you like; the votes are kept in the run folder.

# %%
from lar_core.show.widgets import HeatmapRating, pairs_of

rating = HeatmapRating(pairs_of(explorer.reader, episodes, {"mean": Choice(), "max": Choice(reduce="max")}),
                       run.path / "ratings.jsonl")
rating.show()

# %% [markdown]
# The first question, for readers on a page that runs no code (here a vote is not counted), and the votes so far:

# %%
show(rating.still())

# %%
from lar_core.show.widgets import preference

notebook.tell([preference(run.path / "ratings.jsonl", ("mean", "max"))])

# %% [markdown]
# ## What to take along
#
# - A heatmap is a choice of layers, heads and words; another choice is another picture.
# - Read AOS beside its ceiling and beside maps that do not look.
# - Looking at *a* bowl is not grounding. Preferring the *named* one is: watch "named minus other bowl".
# - Looking is not acting. Take something away, and see what the action does.
#
# Next: **04_train** masks what is looked at and makes the policy reconstruct it.
