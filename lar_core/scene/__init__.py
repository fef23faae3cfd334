"""LIBERO-Spatial: scenes, an environment for them, and demonstrations. It needs neither torch nor transformers."""
