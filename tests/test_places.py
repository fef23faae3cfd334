"""Pre-training with places, beside transformers' own processor, loss and generation."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

from lar_core.model import places
from lar_core.model.paligemma import load_backbone
from lar_core.model.places import LOCS, Answers, Places, boxes_of, covered, soft
from lar_core.model.policy import make_policy
from lar_core.model.tiny import build_tiny
from lar_core.pretrain import pretraining_config
from lar_core.scene.sentences import THINGS, Facts, Said, detect, instruct, question

SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places") / "backbone"
    build_tiny(pretraining_config(profile="micro").profile, folder)
    return folder


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(folder)


@pytest.fixture
def policy(folder):
    return make_policy(pretraining_config(profile="micro"), folder, kind=Places)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    facts = Facts((1, 7), (2, 4, -1, 3, 1))
    said = [instruct(facts, 0, rng), detect(facts, 1, rng), question(facts, 1, rng), instruct(facts, 1, rng)]
    corners = torch.rand(4, 7, 2, generator=torch.Generator().manual_seed(0)) * 40
    pixels = torch.Generator().manual_seed(1)
    return {"images": torch.randint(0, 255, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=pixels),
            "wrist": torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8, generator=pixels),
            "labels": torch.randint(0, 8, (4, 32, 32), dtype=torch.uint8, generator=pixels),
            "wrist_labels": torch.randint(0, 8, (4, 16, 16), dtype=torch.uint8, generator=pixels),
            "boxes": torch.cat([corners, corners + 12], dim=-1), "said": said, "instructions": [one.text for one in said]}


def test_answers_are_what_the_official_processor_makes_of_paligemmas_form(backbone, folder):
    processor = AutoProcessor.from_pretrained(folder)
    said = Said("detect the bowl ; the plate", ((7, 15, 1), (18, 27, 4)))
    boxes = torch.zeros(1, 7, 4)
    boxes[0, 1], boxes[0, 4] = torch.tensor([3.2, 10.9, 20.0, 63.0]), torch.tensor([0.0, 1.0, 2.0, 3.0])
    tokens, _ = Answers(backbone)([said], boxes)
    step = LOCS // SIZE
    form = ["".join(f"<loc{int(edge) * step + step // 2:04d}>" for edge in box) for box in boxes[0, [1, 4]].tolist()]
    inputs = processor(images=torch.zeros(3, SIZE, SIZE, dtype=torch.uint8), text="<image>" + said.text,
                       suffix=f"{form[0]} bowl ; {form[1]} plate", return_tensors="pt")
    assert tokens[0].tolist() == inputs["labels"][0][inputs["labels"][0] != -100].tolist()


def test_the_answer_loss_is_transformers_own(policy, batch, folder, monkeypatch):
    """With hard targets; the mask, the shift and the padding are theirs."""
    monkeypatch.setattr(places, "soft", lambda values, bins: torch.nn.functional.one_hot(
        (values[..., None] - bins).abs().argmin(-1), len(bins)).float())
    official = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    processor = AutoProcessor.from_pretrained(folder)
    tokens, _ = policy.answers(batch["said"], batch["boxes"])
    with torch.no_grad():
        ours = policy.eval()(batch, None)["answer"]
        total = count = 0
        for image, one, row in zip(batch["images"], batch["said"], tokens):
            inputs = processor(images=image, text="<image>" + one.text, return_tensors="pt")
            answer = row[row >= 0][None]
            ids = torch.cat([inputs["input_ids"], answer], dim=1)
            kinds = torch.cat([torch.zeros_like(inputs["input_ids"]), torch.ones_like(answer)], dim=1)
            labels = ids.masked_fill(kinds == 0, -100)
            loss = official(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=kinds, labels=labels,
                            pixel_values=inputs["pixel_values"]).loss
            total, count = total + loss * answer.shape[1], count + answer.shape[1]
    assert ours == pytest.approx(float(total / count), rel=1e-4)


def test_boxes_are_read_as_generate_would_write_them(backbone, folder, batch):
    official = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    first, bins = Answers(backbone).first, Answers(backbone).bins
    allowed = (first + bins).tolist()
    images = batch["images"].float() / 127.5 - 1
    found = boxes_of(backbone.eval(), images, batch["instructions"])
    for image, sentence, box in zip(batch["images"], batch["instructions"], found):
        inputs = processor(images=image, text="<image>" + sentence, return_tensors="pt")
        written = official.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False,
                                    prefix_allowed_tokens_fn=lambda *_: allowed)[0, -4:]
        assert ((written - first) // (LOCS // SIZE) + 0.5).tolist() == box.tolist()


def test_every_loss_falls_and_none_touches_the_head(policy, batch):
    optimiser = torch.optim.Adam(policy.trained().values(), lr=3e-3)
    before = policy(batch, None)
    for _ in range(25):
        loss = policy(batch, None)["loss"]
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    after = policy(batch, None)
    for name in ("answer", "words", "segment", "vision"):
        assert after[name] < 0.9 * before[name], name
    assert not any(name.startswith("head.") for name in policy.trained())


def test_words_point_at_what_they_name(backbone):
    said = Said("pick up the bowl and place it on the plate", ((8, 16, 1), (33, 42, 4)))
    rows, at, things = Answers(backbone).named([said, said])
    tokens = backbone.processor.tokenizer.tokenize(said.text)
    assert [tokens[place - 1].strip("Ġ") for place in at[rows == 0]] == ["the", "bowl", "the", "plate"]
    assert things[rows == 1].tolist() == [1, 1, 4, 4] and THINGS[4] == "plate"


def test_soft_targets_have_their_mean_where_the_value_is():
    bins = torch.arange(64) + 0.5
    shares = soft(torch.tensor([20.3, 40.0]), bins)
    assert torch.allclose((shares * bins).sum(-1), torch.tensor([20.3, 40.0]), atol=1e-2)
    assert torch.allclose(shares.sum(-1), torch.ones(2))


def test_covered_is_the_share_of_a_patch():
    region = torch.zeros(1, 8, 8, dtype=torch.bool)
    region[0, :2, :4] = True
    assert covered(region, 4).tolist() == [[0.5, 0, 0, 0]]
