"""`lar look`: a heatmap of one picture for every sentence, before anything is trained; and README's first picture."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lar_core import cli, options
from lar_core.data.dataset import Stats
from lar_core.model.paligemma import load_backbone
from lar_core.model.places import Answers, answers_places
from lar_core.model.policy import make_policy
from lar_core.model.tiny import TABLETOP, prepare_backbone, unheard_words
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.folder import Run
from lar_core.scene.env import tasks_by_instruction
from lar_core.scene.sentences import asked_for
from lar_core.show.look import COLUMNS, SIDE, choose, look
from lar_core.show.pictures import GAP, LINE, TITLE

ROOT = Path(__file__).resolve().parents[1]
PLATE, RAMEKIN = (f"pick up the black bowl next to the {thing}" for thing in ("plate", "ramekin"))
LONG = "pick up the black bowl next to the plate and place it on the plate"


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)).save(path)
    return path


def test_one_command_draws_two_different_maps_and_ends_with_the_path(tmp_path, capsys):
    assert cli.main(["look", PLATE, RAMEKIN, "--out", str(tmp_path / "new" / "a.png")]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path.is_absolute() and path == (tmp_path / "new" / "a.png").resolve()
    picture = np.asarray(Image.open(path))
    assert picture.shape == (SIDE + TITLE, 2 * SIDE + GAP, 3)
    left, right = picture[TITLE:, :SIDE].astype(int), picture[TITLE:, -SIDE:].astype(int)
    assert np.abs(left - right).max(axis=2).mean() > 5  # of one table, where only the heat and the boxes differ
    assert (left[-40:] == right[-40:]).all()  # the table's edge, at which neither looks


def test_a_picture_of_ones_own_may_have_any_size_and_titles_any_length(photograph):
    one = look([LONG], picture=photograph)
    assert one.shape == (SIDE + TITLE + LINE, SIDE, 3)
    assert (one[:TITLE + LINE, -2:] == 255).all(), "the title is not cut"
    many = look([PLATE] * (COLUMNS + 1), picture=photograph)
    assert many.shape == (2 * (SIDE + TITLE), COLUMNS * (SIDE + GAP) - GAP, 3)


@pytest.mark.parametrize("content, words", [(None, "not there: correct the path"), (b"no picture", "such as a JPEG or PNG")])
def test_a_picture_that_cannot_be_read_is_one_sentence(tmp_path, capsys, content, words):
    if content:
        (tmp_path / "a.jpg").write_bytes(content)
    assert cli.main(["look", PLATE, "--picture", str(tmp_path / "a.jpg")]) == 2
    error = capsys.readouterr().err
    assert words in error and "a.jpg" in error and error.count("\n") == 1


def test_a_trained_policy_looks_and_an_untrained_run_says_what_to_do(tmp_path, photograph):
    run = Run.open(make_config("attention_mask", "micro", aggregation="relative"), tmp_path / "run")
    with pytest.raises(LarError, match="no finished training: run `lar train`"):
        look([PLATE], picture=photograph, run_dir=run.path)
    run.final_checkpoint.mkdir(parents=True)
    make_policy(run.config, prepare_backbone(run)).save(run.final_checkpoint / "model.safetensors")
    Stats((-0.5,) * 7, (0.5,) * 7, (0.0,) * 8, (1.0,) * 8).save(run.stats)
    assert look([PLATE, RAMEKIN], picture=photograph, run_dir=run.path).shape == (SIDE + TITLE, 2 * SIDE + GAP, 3)


def test_the_size_is_that_of_the_backbone_and_an_untrained_one_answers_with_no_box(backbone_folder, photograph):
    assert look([PLATE], picture=photograph, backbone=str(backbone_folder)).shape == (SIDE + TITLE, SIDE, 3)
    images = torch.zeros(1, 3, 64, 64)
    assert not answers_places(load_backbone(backbone_folder).eval(), images, [f"detect {asked_for(PLATE)}"]).any()


@pytest.mark.parametrize("asked, words", [
    ({"scene": 40}, "task 8 has counterfactual scenes 0 to 39"), ({"task": 10}, "Unknown task '10'"),
    ({"placement": "wild"}, "did you mean 'wide'"), ({"task": 0, "placement": "counterfactual"}, "no counterfactual pair")])
def test_scenes_that_are_not_there(asked, words):
    with pytest.raises(LarError, match=words):
        look([PLATE], **asked)


def test_the_first_sentence_chooses_the_scene():
    assert choose(PLATE) == choose(LONG) == (8, "counterfactual") and choose(RAMEKIN, task=0) == (0, "wide")
    assert choose("pick up the black bowl") == choose("where is it ?") == (5, "counterfactual")


def test_words_that_the_miniature_never_heard_are_named():
    tokenizer = load_backbone(TABLETOP).processor.tokenizer
    assert unheard_words(tokenizer, "pick up the banana .") == ["banana", "."]
    assert not [words for words in tasks_by_instruction() if unheard_words(tokenizer, words)]


def test_what_a_sentence_wants_is_asked_for():
    assert {asked_for(words) for words in (PLATE, LONG, "move the black bowl next to the plate onto the stove")} == {
        "the black bowl next to the plate"}
    assert asked_for("take the bowl between the plate and the ramekin , then put it on the plate") == (
        "the bowl between the plate and the ramekin")
    assert asked_for("find it") is None


@pytest.mark.parametrize("size", [64, 128, 224])
def test_location_tokens_span_the_whole_edge_at_every_size(backbone_folder, size):
    backbone = load_backbone(backbone_folder)
    backbone.image_size = size
    bins = Answers(backbone).bins
    assert len(bins) == size and (bins / 1024 * size).sub(torch.arange(size) + 0.5).abs().max() < 0.25


def test_the_first_picture_of_the_readme_is_there_and_its_command_is_one():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    shown = next(number for number, line in enumerate(lines) if "docs/images/look.png" in line)
    assert shown < 12 and 10_000 < (ROOT / "docs" / "images" / "look.png").stat().st_size < 300_000
    command = next(line for line in lines[shown:] if line.startswith("    lar look"))
    arguments = options.build_parser().parse_args(shlex.split(command)[1:])
    assert len(arguments.sentences) == 2 and arguments.out == Path("docs/images/look.png")
