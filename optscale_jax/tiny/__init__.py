"""A small world that is real: problems, a reasoner and a verifier that two CPU cores can run.

The models are ordinary Hugging Face checkpoints, trained by `train/tiny.py`; transformers and vLLM
load them as they load the big ones.
"""

from optscale_jax.tiny.arithmetic import SYSTEM_PROMPT, Chain, check_steps, draw_chains
from optscale_jax.tiny.assets import labels_path, pool_path, reasoner_path, verifier_path

__all__ = [
    "SYSTEM_PROMPT",
    "Chain",
    "check_steps",
    "draw_chains",
    "labels_path",
    "pool_path",
    "reasoner_path",
    "verifier_path",
]
