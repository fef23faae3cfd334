"""One configuration, validated in one place."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lar_core import cli, options
from lar_core.run.config import CONDITIONS, PROFILES, RunConfig, make_config
from lar_core.run.errors import LarError


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
    ({"samples": "many"}, "must be a valid integer"),
    ({"mask_ratio": 1.0}, "mask_ratio is 1.0, but must be less than 1"),
    ({"saliency_layers": 5}, "has 4 layers"),
    ({"condition": "gaze_diffusion", "recon_target": "normalised"}, "raw or latent"),
    ({"condition": "gaze_diffusion", "mask_source": "none"}, "a reconstructor needs a mask"),
    ({"recon_target": "latent"}, "settings of the denoiser"),
    ({"matched_capacity": True}, "settings of the denoiser"),
    ({"denoiser_width": 130}, "multiple of 4"),
    ({"mask_ratio_start": 1.5}, "must be less than 1"),
    ({"condition": "action_only", "mask_ratio_start": 0.1}, "masks nothing"),
    ({"condition": "gaze_diffusion", "mask_ratio_start": 0.1}, "no mask that could grow"),
    ({"sparsiti": 0.1}, "did you mean 'sparsity'"),
    ({"regularisers": {"sparsiti": 0.1}}, "Unknown regulariser 'sparsiti': did you mean 'sparsity'"),
    ({"sparsity": "much"}, "weight of sparsity is 'much'"),
    ({"proprio": 1}, "proprio is 1, but must be a valid boolean"),
    ({"tasks": 5}, "tasks is 5"),
    ({"tune": None}, "Unknown tune 'None'.*lora_top"),
    ({"aggregation": "multi_pass"}, "evaluation only"),
    ({"condition": "attention_mask", "deaf": True, "contrastive": 1.0, "language": 1.0, "cache": False},
     "deaf policy is told nothing, and contrastive, language works on the words"),
    ({"condition": "blind_deaf", "mask_source": "random", "reconstructor": "mae"}, "no image to reconstruct"),
    ({"condition": "autoregressive_head", "guidance": 1.0}, "autoregressive head writes its tokens one after another"),
    ({"condition": "deaf", "guidance": 1.0}, "its answer under a blank sentence is its own.*guidance=0"),
    ({"guidance": -1.0}, "guidance is -1.0"),
    ({"saliency_rows": "words"}, "Unknown saliency rows 'words'.*text"),
    ({"saliency_rows": "action", "head": "autoregressive"}, "the autoregressive head has none"),
    ({"saliency_rows": "bos", "aggregation": "content_words"}, "compares words, but saliency_rows=bos reads none"),
    ({"saliency_rows": "action", "aggregation": "sink_removal"}, "compares words, but saliency_rows=action reads none"),
    ({"saliency_rows": "action", "aggregation": "relative", "cache": False}, "generic prompt, which is run without"),
    ({"saliency_rows": "action", "consistency": 1.0, "cache": False}, "consistency compares maps of passes without"),
])
def test_nonsense_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(LarError, match=message):
        make_config(**arguments)


def test_the_mask_grows_in_a_straight_line_from_the_first_step_to_the_last():
    growing = make_config("growing_mask", samples=101 * 16)
    assert [growing.mask_ratio(step) for step in (0, 50, 100)] == pytest.approx([0.15, 0.45, 0.75])
    assert {make_config().mask_ratio(step) for step in (0, 50, 2000)} == {0.25}


def test_regularisers_are_set_by_name_and_one_of_weight_0_is_off():
    config = make_config("contrastive_attention", sparsity=0.1, contrastive=0)
    assert config.condition.regularisers == {"sparsity": 0.1}
    assert config == make_config("contrastive_attention", regularisers={"sparsity": 0.1})
    assert config.condition.model_dump()["sparsity"] == 0.1


def test_a_configuration_saved_with_every_weight_loads(tmp_path):
    """As versions did that had a field for each."""
    make_config("sparse_attention").save(tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    saved["condition"] |= {"consistency": 0.0, "contrastive": 0.0, "relational": 0.0, "language": 0.0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    assert RunConfig.load(tmp_path / "config.yaml") == make_config("sparse_attention")


def test_a_configuration_of_another_version_is_refused_by_name(tmp_path):
    make_config().save(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text((tmp_path / "config.yaml").read_text().replace("mask_ratio:", "mask_share:"))
    with pytest.raises(LarError, match="config.yaml is no configuration of this version: Unknown setting 'mask_share'"):
        RunConfig.load(tmp_path / "config.yaml")


def test_a_replaced_field_is_checked_and_the_rest_stays():
    config = make_config("gaze_mask", samples=100)
    assert config.replace(mask_ratio=0.5, seed=3, chunk=9) == make_config("gaze_mask", seed=3, mask_ratio=0.5, samples=100,
                                                                          chunk=9)
    with pytest.raises(LarError, match="between 1 and the chunk length 4"):
        config.replace(chunk=4)


def test_nothing_of_torch_is_needed_before_a_configuration_is_made():
    code = ("import sys, lar_core.run.config, lar_core.run.registry as r; r.MASK_SOURCES; "
            "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_command_of_the_parity_page_is_one():
    page = (Path(__file__).parents[1] / "docs/parity.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if " lar reproduce " in line).split()
    arguments = options.build_parser().parse_args(command[command.index("lar") + 1:])
    profile = cli.config_of(arguments).profile
    assert (profile.episodes_per_task, profile.execute, profile.max_steps, len(profile.tasks)) == (50, 5, 220, 10)
