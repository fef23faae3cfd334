"""LA-ReconVLA: language-driven attention masking for annotation-free visual grounding in robot policies."""

__version__ = "0.1.0"
