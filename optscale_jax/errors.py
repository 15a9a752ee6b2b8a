"""The root of all errors that say: what you gave cannot be used.

    InputError             anything given to a function or a command
      PoolError            a pool, or a file of completions
      ProblemsError        a file or a benchmark of problems
      PredictorError       labels, features, or a saved predictor
      CheckpointError      a checkpoint of a language model

Every message is one line that names the place, what was wrong and what to do, so that a command can
print it as it is and exit with 2.
"""

import contextlib
import difflib
from collections.abc import Collection, Iterator

__all__ = ["InputError", "Terminated", "bad_input", "did_you_mean"]


_SHOWN = 20  # names that a message lists at most


class InputError(ValueError):
    """Something given cannot be used; the message is one line that says what."""


class Terminated(BaseException):
    """SIGTERM, as an exception so that unfinished outputs are removed on the way out."""


@contextlib.contextmanager
def bad_input(
    where: str = "", errors: tuple[type[Exception], ...] = (ValueError, OSError)
) -> Iterator[None]:
    """Turns a library's errors into `InputError`.

    Wrap only calls whose errors speak of what the user gave: a ValueError of our own making
    should keep its traceback.

    Args:
        where: What the message begins with, such as the configuration's field.
        errors: Which errors.

    Yields:
        Nothing.

    Raises:
        InputError: For one of `errors`.
    """
    try:
        yield
    except errors as error:
        if type(error) is InputError and InputError not in errors:
            raise  # in words already
        message = str(error)
        if isinstance(error, OSError) and error.strerror:
            message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        raise InputError(f"{where}: {message}" if where else message) from error


def did_you_mean(
    name: str, known: Collection[str], otherwise: str = "there are", *, prefix: str = ""
) -> str:
    """The end of a message on a name that there is not.

    Args:
        name: What was given.
        known: The names that there are.
        otherwise: What introduces all of them, if none is near.
        prefix: What stands before each of them where it is shown.

    Returns:
        "; did you mean NAME?", or else "; there are NAME, NAME, ...".
    """
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    more = ", ..." if len(known) > _SHOWN else ""
    return f"; {otherwise} {', '.join(prefix + one for one in list(known)[:_SHOWN])}{more}"
