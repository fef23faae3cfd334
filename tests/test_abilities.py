"""What a backbone says of one picture tells whether it was loaded rightly: here the shipped one, whole and damaged."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

from lar_core import doctor
from lar_core.data.dataset import channels_first
from lar_core.measure import abilities
from lar_core.model.backbone import normalise_pixels
from lar_core.model.paligemma import load_backbone
from lar_core.model.places import spoken
from lar_core.model.tiny import TABLETOP
from lar_core.run.config import make_config

BASE, MIX = "google/paligemma-3b-pt-224", "google/paligemma-3b-mix-224"


@pytest.fixture(scope="module")
def whole():
    return load_backbone(TABLETOP).eval()


@pytest.fixture(scope="module")
def picture(whole):
    return abilities._picture(abilities.evaluation_scenes(abilities.TASK, abilities.PLACEMENT)[0], whole.image_size)


@pytest.fixture
def verdict(picture, monkeypatch):
    monkeypatch.setattr(abilities, "_picture", lambda *_: picture)
    return lambda eyes, base=False: abilities.verdict(*abilities.ask(eyes), base)


def damaged(whole, change):
    other = copy.deepcopy(whole)
    with torch.no_grad():
        for layer in other.vlm.model.language_model.layers:
            change(layer.mlp.down_proj.weight)
    return other


def test_the_shipped_backbone_answers_and_looks_rightly(whole, verdict):
    (detect, segment), seen = abilities.ask(whole)
    assert detect.question == "detect the black bowl next to the plate" and detect.words.endswith("> bowl")
    assert detect.iou > 0.7 and segment.iou is not None and seen > 0.8
    assert verdict(whole).startswith("It finds a bowl")


def test_damage_is_told_apart_from_a_base_model_that_cannot_answer(whole, verdict):
    wrong = damaged(whole, lambda weight: weight.copy_(weight.flip(0)))
    assert verdict(wrong).startswith("Broken: it was tuned to say where things are")
    overflown = damaged(whole, lambda weight: weight.fill_(float("nan")))
    assert verdict(overflown).startswith("Broken: what it computes is not finite")
    mute = [abilities.Answer("detect", "the table", None, 0)]
    assert "so it is not broken" in abilities.verdict(mute, 0.8, base=True)
    assert "can tell" in abilities.verdict(mute, 0.5, base=True)
    assert "is no place" in abilities.verdict(mute, 0.8, base=False)


def test_a_box_is_scored_by_the_bowl_that_it_fits_better():
    bowls = np.zeros((2, 64, 64), dtype=bool)
    bowls[0, 8:16, 8:16], bowls[1, 32:48, 32:48] = True, True
    assert abilities._iou("<loc0512><loc0512><loc0768><loc0768> bowl ; <loc0000>", bowls) == 1
    assert abilities._iou(" <loc0128><loc0128><loc0256><loc0192> bowl", bowls) == pytest.approx(0.5)
    assert abilities._iou("bowl <loc0128><loc0128><loc0256><loc0192>", bowls) is None


def test_what_is_spoken_is_what_transformers_generates(whole, picture):
    model, processor = (kind.from_pretrained(TABLETOP) for kind in (PaliGemmaForConditionalGeneration, AutoProcessor))
    sentence = "detect the plate ; the stove"
    inputs = processor(images=Image.fromarray(picture[0]), text=f"<image>{sentence}", return_tensors="pt")
    with torch.no_grad():
        written = model.eval().generate(**inputs, max_new_tokens=24, do_sample=False)
    theirs = processor.decode(written[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    pixels = normalise_pixels(channels_first(picture[0][None]))
    assert spoken(whole, pixels, sentence).split() == theirs.split()


@pytest.mark.parametrize("there, asked", [({MIX, BASE}, MIX), ({BASE}, BASE), (set(), None)])
def test_the_mix_is_asked_before_the_base_and_nothing_is_downloaded(monkeypatch, there, asked):
    monkeypatch.setattr("lar_core.data.hub.here", lambda key: f"google/{key}" in there)
    assert doctor._to_ask(BASE) == asked


def test_the_doctor_asks_what_is_here_and_says_what_is_not(verdict, monkeypatch, capsys):
    monkeypatch.setattr("lar_core.data.hub.here", lambda key: False)
    doctor.ask(make_config(profile="t4"))
    doctor.ask(make_config(profile="micro"))
    assert capsys.readouterr().out == f"  {BASE} was not asked to find a bowl: neither it nor {MIX} is here.\n"
    doctor.ask(make_config(profile="tiny"))
    said = capsys.readouterr().out
    assert "what tabletop says" in said and "IoU 0.8" in said and "It finds a bowl" in said
