"""Where the shipped files of the small world are."""

from pathlib import Path

__all__ = ["reasoner_path", "verifier_path"]

_HERE = Path(__file__).resolve().parent


def reasoner_path() -> Path:
    """Folder of the reasoner, a Qwen2ForCausalLM checkpoint."""
    return _HERE / "reasoner"


def verifier_path() -> Path:
    """Folder of the verifier, a Qwen2ForProcessRewardModel checkpoint."""
    return _HERE / "verifier"
