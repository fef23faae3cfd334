"""One configuration, validated in one place."""

import pytest

from lar_core.config import CONDITIONS, PROFILES, RunConfig, make_config
from lar_core.errors import LarError
from lar_core.run import Run


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_preset_is_valid_and_survives_yaml(tmp_path, condition, profile):
    config = make_config(condition, profile, seed=3)
    config.save(tmp_path / "config.yaml")
    assert RunConfig.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("arguments, message", [
    ({"condition": "atention_mask"}, "did you mean 'attention_mask'"),
    ({"profile": "tini"}, "did you mean 'tiny'"),
    ({"samplse": 5}, "did you mean 'samples'"),
    ({"tasks": (10,)}, "Unknown task '10'"),
    ({"tasks": ()}, "No task"),
    ({"mask_source": "gase"}, "did you mean 'gaze'"),
    ({"condition": "action_only", "mask_source": "random"}, "a mask needs a reconstructor"),
    ({"condition": "blind", "mask_source": "random", "reconstructor": "mae"}, "no image to reconstruct"),
    ({"execute": 9}, "between 1 and the chunk length 8"),
    ({"image_size": 100}, "multiples of the patch size"),
    ({"samples": "many"}, "must be of type int"),
    ({"mask_ratio": 1.0}, "between 0 and 1"),
    ({"saliency_layers": 5}, "has 4 layers"),
    ({"condition": "gaze_diffusion", "recon_target": "normalised"}, "raw or latent"),
    ({"condition": "gaze_diffusion", "mask_source": "none"}, "a reconstructor needs a mask"),
    ({"recon_target": "latent"}, "settings of the denoiser"),
    ({"matched_capacity": True}, "settings of the denoiser"),
    ({"denoiser_width": 130}, "multiple of 4"),
    ({"mask_ratio_start": 1.5}, "between 0 .off. and 1"),
    ({"condition": "action_only", "mask_ratio_start": 0.1}, "masks nothing"),
    ({"condition": "gaze_diffusion", "mask_ratio_start": 0.1}, "no mask that could grow"),
])
def test_nonsense_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(LarError, match=message):
        make_config(**arguments)


def test_the_mask_grows_in_a_straight_line_from_the_first_step_to_the_last():
    growing = make_config("growing_mask", samples=101 * 16)
    assert [growing.mask_ratio(step) for step in (0, 50, 100)] == pytest.approx([0.15, 0.45, 0.75])
    assert {make_config().mask_ratio(step) for step in (0, 50, 2000)} == {0.25}


def test_a_run_folder_refuses_another_configuration(tmp_path):
    Run.open(make_config(), tmp_path / "run")
    with pytest.raises(LarError, match="profile.samples is 36000 there and 100 now"):
        Run.open(make_config(samples=100), tmp_path / "run")


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LarError, match="not empty"):
        Run.open(make_config(), tmp_path)


def test_a_foreign_config_file_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(LarError, match="not a run configuration"):
        Run.open(make_config(), tmp_path)
