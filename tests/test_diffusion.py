"""The denoiser: schedule, blocks, a start that does nothing, learning, sampling, capacity, latents, nothing for others.

Regions cut out and put back: against Pillow's resampling, scipy's box filter, and by hand.
"""

import math

import numpy as np
import pytest
import torch
from conftest import reconstruct
from diffusers import AutoencoderKL
from diffusers.models.attention import BasicTransformerBlock
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import zoom
from test_house import imported, modules

from lar_core.model.diffusion import (
    DRAWS,
    Block,
    DiffusionDecoder,
    Pixels,
    count,
    crop,
    densest_boxes,
    load_vae,
    object_boxes,
    paste,
)
from lar_core.model.policy import make_decoder, make_policy
from lar_core.run.config import CONDITIONS, PROFILES, make_config
from lar_core.run.errors import LarError
from lar_core.run.runtime import Draws


def decoder():
    torch.manual_seed(0)
    return DiffusionDecoder(Pixels(4), feature_width=8, width=64, heads=2)


def share_left(step):
    """Nichol and Dhariwal (2021), equation 17: the share of the signal's variance left after `step` of 1000 steps."""
    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    return f(step) / f(0)


def test_the_schedule_is_the_cosine_one():
    left = decoder().schedule.alphas_cumprod
    assert len(left) == 1000
    assert all(float(left[step - 1]) == pytest.approx(share_left(step), rel=1e-3) for step in (1, 100, 500, 900))


def test_a_block_does_nothing_at_the_start_and_the_denoiser_names_no_noise():
    tokens, told = torch.randn(2, 16, 64), torch.randn(2, 16, 64)
    assert torch.equal(Block(64, 2)(tokens, told), tokens)
    model = decoder()
    noised = model.noised(torch.rand(3, 3, 16, 16), Draws(0))
    expected = noised.noise.square().mean(dim=(1, 2, 3))  # the error of saying nothing
    assert torch.allclose(model.errors(torch.randn(3, 16, 8), noised), expected)


def spoken_up():
    """A block whose every weight does something."""
    torch.manual_seed(0)
    block = Block(64, 2)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return block


def test_a_block_that_is_told_the_same_of_every_token_is_diffusers_dit_block():
    block, tokens, told = spoken_up(), torch.randn(2, 16, 64), torch.randn(2, 64)
    theirs = BasicTransformerBlock(64, 2, 32, num_embeds_ada_norm=1, norm_type="ada_norm_zero", attention_bias=True,
                                   norm_elementwise_affine=False, activation_fn="gelu-approximate")
    theirs.norm1.emb.forward = lambda *step_and_class, **options: told
    pairs = [(theirs.norm1.linear, block.modulation), (theirs.attn1.to_out[0], block.attention.out_proj),
             (theirs.ff.net[0].proj, block.mlp[0]), (theirs.ff.net[2], block.mlp[2])]
    for official, own in pairs:
        official.load_state_dict(own.state_dict())
    for i, official in enumerate((theirs.attn1.to_q, theirs.attn1.to_k, theirs.attn1.to_v)):
        official.weight.data = block.attention.in_proj_weight.chunk(3)[i]
        official.bias.data = block.attention.in_proj_bias.chunk(3)[i]
    ours = block(tokens, torch.nn.functional.silu(told)[:, None].expand_as(tokens))
    assert torch.allclose(ours, theirs(tokens, timestep=torch.zeros(2)), atol=1e-3)
    assert not torch.allclose(ours, tokens, atol=0.1)


def test_every_token_is_told_by_its_own_state():
    block, tokens, told = spoken_up(), torch.randn(2, 16, 64), torch.randn(2, 16, 64)
    torch.nn.init.zeros_(block.attention.out_proj.weight)  # nothing passes from token to token
    other = told.clone()
    other[:, 5] += 1
    changed = (block(tokens, told) != block(tokens, other)).any(dim=2)
    assert changed.nonzero()[:, 1].tolist() == [5, 5]


def test_every_sample_is_noised_four_times_at_its_own_steps():
    noised = decoder().noised(torch.rand(50, 3, 16, 16), Draws(0))
    assert noised.noise.shape == (50, DRAWS, 16, 48) and noised.steps.shape == (50, 4)
    assert noised.steps.min() >= 0 and noised.steps.max() < 1000 and noised.steps.unique().numel() > 150
    assert abs(float(noised.noise.mean())) < 0.01 and float(noised.noise.std()) == pytest.approx(1, abs=0.01)


def test_two_processes_draw_the_noise_that_one_would():
    whole = Draws(3).normal(8, 5)
    parts = [Draws(3, rank, 2).normal(4, 5) for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)


def test_it_learns_which_region_belongs_to_which_states():
    """Two images, told apart by their states alone: with the states swapped the error is larger."""
    model, images = decoder(), torch.stack([torch.full((3, 16, 16), value) for value in (-0.8, 0.8)])
    states = torch.stack([torch.full((16, 8), value) for value in (-1.0, 1.0)])
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(250):
        optimiser.zero_grad()
        model.errors(states, model.noised(images, Draws(step))).mean().backward()
        optimiser.step()
    noised = model.noised(images, Draws(10_000))
    right, swapped = model.errors(states, noised).mean(), model.errors(states.flip(0), noised).mean()
    assert right < 0.3 and swapped > 1.5 * right
    shown = model.sample(states, Draws(0)).mean(dim=(1, 2, 3))
    assert shown[0] < -0.1 and shown[1] > 0.1


def test_a_perfect_denoiser_samples_the_clean_image(monkeypatch):
    model, image = decoder(), torch.rand(1, 3, 16, 16) * 2 - 1
    clean = model.target.tokens(image)

    def perfect(noisy, steps, states):
        left = share_left(int(steps[0, 0]) + 1)
        return (noisy - left**0.5 * clean[:, None]) / (1 - left) ** 0.5
    monkeypatch.setattr(model.denoiser, "forward", perfect)
    assert torch.allclose(model.sample(torch.zeros(1, 16, 8), Draws(0)), image, atol=0.02)


@pytest.mark.parametrize("profile, tolerance", [("micro", 0.1), ("tiny", 0.05), ("full", 0.05)])
def test_the_matched_denoiser_has_as_many_parameters_as_the_mae_decoder(profile, tolerance):
    size = {"grid": 4, "patch_size": PROFILES[profile].patch_size, "feature_width": PROFILES[profile].text_width}
    with torch.device("meta"):
        mae = count(make_decoder(CONDITIONS["gaze_mask"], PROFILES[profile], **size))
    matched = count(make_decoder(CONDITIONS["gaze_diffusion_matched"], PROFILES[profile], **size))
    assert matched == pytest.approx(mae, rel=tolerance)


def test_beside_paligemma_it_has_the_64_million_parameters_of_reconvla():
    full = PROFILES["full"]
    made = make_decoder(CONDITIONS["gaze_diffusion"], full, grid=16, patch_size=14, feature_width=2048)
    assert count(made) == pytest.approx(64e6, rel=0.03)


def test_a_gaze_crop_shows_the_object(policy_of, batch):
    policy = policy_of("gaze_diffusion")
    batch["images"] = torch.zeros_like(batch["images"])
    batch["images"][:, :, 16:32, 32:48] = 255  # where the regions of this batch are
    recon = reconstruct(policy, batch)
    assert recon.boxes.tolist() == [[28 / 64, 12 / 64, 52 / 64, 36 / 64]] * 2
    region = policy.decoder.target.images(recon.noised.clean)
    assert (region[:, :, 4:12, 4:12] == 1).all() and (region[:, :, :2] == -1).all()


def test_every_kind_of_mask_has_a_region(policy_of, batch):
    policy = policy_of("attention_diffusion", mask_source="random")
    recon = reconstruct(policy, batch)
    sides = recon.boxes[:, 2:] - recon.boxes[:, :2]
    assert torch.allclose(sides, torch.full((2, 2), 0.5)) and recon.loss.isfinite()  # a quarter of the image


@pytest.fixture
def vae_folder(tmp_path):
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=4,
                  up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, sample_size=64,
                  ).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_latents_of_a_frozen_autoencoder_can_be_the_target(backbone_folder, batch, vae_folder):
    config = make_config("gaze_diffusion", "micro", recon_target="latent", vae=str(vae_folder))
    policy = make_policy(config, backbone_folder, vae=vae_folder)
    losses = policy(batch, Draws(0))
    losses["loss"].backward()
    noised = reconstruct(policy, batch).noised
    assert noised.clean.shape == (2, 16, 16)  # as many tokens as patches, of 2 x 2 latents with 4 channels
    assert all(p.grad is None for p in policy.decoder.target.parameters())
    assert not any(".vae." in name for name in policy.trained())
    states = policy.encode(batch).patches
    assert policy.decoder.sample(states, Draws(0), steps=2).shape == (2, 3, 64, 64)


def test_latents_are_diffusers_own(vae_folder):
    vae = AutoencoderKL.from_pretrained(vae_folder)
    made = make_decoder(CONDITIONS["gaze_diffusion"].replace(recon_target="latent"), PROFILES["micro"], grid=4,
                        patch_size=16, feature_width=8, vae=vae_folder)
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        assert torch.allclose(made.target.tokens(images)[0, 0].reshape(2, 2, 4), latents[0, :, :2, :2].permute(1, 2, 0))
        assert torch.allclose(made.target.images(made.target.tokens(images)), vae.decode(vae.encode(
            images).latent_dist.mean).sample, atol=1e-5)


def test_a_folder_without_an_autoencoder_is_named(tmp_path):
    with pytest.raises(LarError, match="no autoencoder"):
        make_decoder(CONDITIONS["gaze_diffusion"].replace(recon_target="latent"), PROFILES["micro"], grid=4,
                     patch_size=16, feature_width=8, vae=tmp_path)


@pytest.mark.parametrize("spoil, sentence", [
    (lambda saved: {name: t for name, t in saved.items() if "decoder.conv_in" not in name}, "lacks 2 of .*conv_in.bias"),
    (lambda saved: {f"module.{name}": t for name, t in saved.items()}, "lacks .*, and holds .*, module.decoder"),
    (lambda saved: saved | {"decoder.conv_in.bias": torch.full((8,), float("nan"))}, "NaN or infinity in decoder.conv_in")])
def test_an_autoencoder_that_is_partly_random_is_refused(vae_folder, spoil, sentence):
    path = vae_folder / "diffusion_pytorch_model.safetensors"
    save_file(spoil(load_file(path)), path)
    with pytest.raises(LarError, match=sentence):
        load_vae(vae_folder)


def test_diffusers_is_imported_only_by_functions_that_need_it():
    """So that conditions without a denoiser do not wait for it, nor fail where it is missing."""
    with_it = [name for name in modules() if "diffusers" in {other.split(".")[0] for other in imported(name)}]
    assert with_it == ["lar_core.model.diffusion"]
    assert "diffusers" not in {other.split(".")[0] for other in imported(*with_it, everywhere=False)}


# --- regions ---------------------------------------------------------------------------------------------------------

def test_an_objects_box_is_padded_by_a_quarter_of_its_sides_and_cut_at_the_border():
    pixels = torch.zeros(2, 100, 100, dtype=torch.uint8)
    pixels[0, 40:60, 20:60] = 1
    pixels[1, 0:10, 90:] = 1
    expected = [[0.10, 0.35, 0.70, 0.65], [0.875, 0.0, 1.0, 0.125]]
    assert torch.allclose(object_boxes(pixels), torch.tensor(expected))


def test_an_object_out_of_view_gives_the_whole_image():
    assert object_boxes(torch.zeros(1, 8, 8, dtype=torch.uint8)).tolist() == [[0, 0, 1, 1]]


def test_the_box_of_a_mask_holds_the_most_masked_patches():
    mask = torch.rand(20, 64, generator=torch.Generator().manual_seed(0)).argsort(1) < 16
    windows = np.lib.stride_tricks.sliding_window_view(mask.reshape(20, 8, 8).numpy(), (4, 4), axis=(1, 2))
    for image, box in zip(mask.reshape(20, 8, 8), densest_boxes(mask) * 8):
        left, top, right, bottom = box.int().tolist()
        assert (right - left, bottom - top) == (4, 4)
    counts = [image[int(y):int(y2), int(x):int(x2)].sum() for image, (x, y, x2, y2) in
              zip(mask.reshape(20, 8, 8).numpy(), (densest_boxes(mask) * 8).tolist())]
    assert np.array_equal(counts, windows.sum(axis=(3, 4)).max(axis=(1, 2)))


def test_stretching_is_pillows_bilinear_resizing_of_the_box():
    image = zoom(np.random.default_rng(0).random((8, 8)), 4, order=1).astype(np.float32)  # smooth, 32 x 32
    box = (0.25, 0.125, 0.75, 0.5)
    theirs = np.asarray(Image.fromarray(image).resize((64, 64), Image.BILINEAR, box=tuple(32 * side for side in box)))
    ours = crop(torch.from_numpy(image).expand(1, 3, 32, 32), torch.tensor([box]), 64)[0, 0].numpy()
    assert np.abs(ours - theirs)[4:-4, 4:-4].max() < 1e-4  # at its border Pillow does not look beyond the box


def test_a_whole_image_is_itself_and_what_is_put_back_is_what_was_there():
    images = torch.rand(2, 3, 16, 16)
    whole = torch.tensor([[0.0, 0, 1, 1]] * 2)
    assert torch.allclose(crop(images, whole, 16), images, atol=1e-5)
    boxes = torch.tensor([[0.25, 0.0, 0.75, 0.5], [0.5, 0.5, 1.0, 1.0]])
    grey = paste(images, torch.zeros(2, 3, 8, 8), boxes)
    assert (grey[0, :, :8, 4:12] == 0).all() and torch.equal(grey[0, :, 8:], images[0, :, 8:])
    assert torch.allclose(paste(grey, crop(images, boxes, 8), boxes), images, atol=1e-5)


@pytest.mark.parametrize("size", [8, 31])
def test_a_slope_stays_a_slope(size):
    slope = ((torch.arange(32) + 0.5) / 32).expand(1, 3, 32, 32)
    cut = crop(slope, torch.tensor([[0.25, 0.25, 0.75, 0.75]]), size)[0, 0, 0]
    assert torch.allclose(cut, 0.25 + 0.5 * (torch.arange(size) + 0.5) / size, atol=1e-5)
