"""A small world that is real: problems, a reasoner and a verifier that two CPU cores can run.

The models are ordinary Hugging Face checkpoints, trained by `train/tiny.py`; transformers and vLLM
load them as they load the big ones.
"""

from pathlib import Path

from optscale_jax.tiny.arithmetic import SYSTEM_PROMPT, Chain, check_steps, draw_chains

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

_HERE = Path(__file__).resolve().parent


def reasoner_path() -> Path:
    """Folder of the reasoner, a Qwen2ForCausalLM checkpoint."""
    return _HERE / "reasoner"


def verifier_path() -> Path:
    """Folder of the verifier, a Qwen2ForProcessRewardModel checkpoint."""
    return _HERE / "verifier"


def pool_path() -> Path:
    """Pool of 400 problems x 64 completions of the reasoner, scored by the verifier."""
    return _HERE / "pool.npz"


def labels_path() -> Path:
    """Score statistics of 3,000 other problems, for a predictor to learn from."""
    return _HERE / "labels.jsonl"
