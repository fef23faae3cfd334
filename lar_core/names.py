"""The names that settings may take: every registry of the code has these keys, and nothing else is accepted."""

MASK_SOURCES = ("none", "random", "attention", "inverse_attention", "gaze", "blue_noise", "centre", "hint_attention",
                "sampled_attention", "frame_difference", "teacher_attention")
RECONSTRUCTORS = ("none", "mae", "diffusion")
HEADS = ("parallel", "autoregressive", "bridge", "focus")
ACTION_LOSSES = ("cross_entropy", "l1")
AGGREGATIONS = ("mean", "content_words", "sink_removal", "relative", "localisation_heads", "learned_gate", "smooth")
EVALUATION_ONLY = ("coarse_to_fine", "multi_pass")  # aggregations of many passes
REGULARISERS = ("sparsity", "consistency", "contrastive", "relational", "language")  # weights in Condition; 0: off
PLACEMENTS = ("official", "wide", "counterfactual")
INSTRUCTIONS = ("right", "blank", "other_task", "other_bowl")  # what a policy is told in a rollout: evaluate/instructions.py
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "nf4")
TUNES = ("all", "lora_all", "lora_top", "full_top")
DEMOS = ("expert", "official", "lerobot")
