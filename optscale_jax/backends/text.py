"""Texts of errors and of templates, for samplers and verifiers of all kinds."""

from pathlib import Path

from optscale_jax.errors import BackendError

__all__ = ["one_line", "read_template"]


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """What an error says, in one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_template(given: str) -> str:
    """A chat template as it was given, or out of the file that was named.

    Args:
        given: The template, which has braces, or the path of a file that holds it.

    Returns:
        The template.

    Raises:
        BackendError: If the file cannot be read.
    """
    if "{" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise BackendError(f"prompt.chat_template: {given}: {error.strerror}") from error
