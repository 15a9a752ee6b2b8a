"""What an answer that cannot be read raises, and how tables of words are written."""

__all__ = ["DEEPEST", "LONGEST", "UnreadError", "pairs_in", "words_in"]

LONGEST = 1000
DEEPEST = 40


def words_in(words: str) -> list[str]:
    """The words of a table."""
    return words.split()


def pairs_in(words: str) -> dict[str, str]:
    """The pairs of a table, the first to the second."""
    return dict(zip(words.split()[::2], words.split()[1::2], strict=True))


class UnreadError(Exception):
    """The answer is not of the grammar, or its value is out of reach."""
