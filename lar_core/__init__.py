"""LA-ReconVLA: language-driven attention masking for annotation-free visual grounding in robot policies."""

import logging

__version__ = "0.1.0"

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it reports kernels that are not needed here
