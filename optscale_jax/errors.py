"""What can go wrong, as one tree, and whose it is to mend.

An `InputError` is for whoever gave the input: its message is one line that names the place, what
was wrong and what to do, so a command prints it as it is and exits with 2. A `BackendError` is one
line too, but the world's doing, or what only a model's start can tell: a server that is gone, too
little memory, an architecture that vLLM does not know. A live run turns it into a `RunError` that
says what was drawn and is kept. An `EngineError` is for whoever wrote the sampler or the verifier.
A predictor's and a checkpoint's own `InputError` are where they are raised.
"""

import contextlib
import difflib
from collections.abc import Collection, Iterator

__all__ = [
    "BackendError",
    "BadRequestError",
    "CheckpointError",
    "EngineError",
    "HubError",
    "InputError",
    "PoolError",
    "PoolWarning",
    "PredictorError",
    "ProblemError",
    "ProblemsError",
    "RecordError",
    "RunError",
    "RunWarning",
    "Terminated",
    "bad_input",
    "did_you_mean",
]


_SHOWN = 20  # names that a message lists at most
_LOOKED_AT = 100  # characters of a name


class InputError(ValueError):
    """Something given cannot be used; the message is one line that says what."""

    def __init__(self, message: str = ""):
        # Names and values that it quotes may hold line ends.
        super().__init__(" ".join(str(message).splitlines()))


class RecordError(InputError):
    """A file of records that cannot be used: one line with the file, the record and the field."""


class PoolError(InputError):
    """A pool that cannot be used: one line with the file, the array, the place and the remedy."""


class PoolWarning(UserWarning):
    """What whoever reads a pool should know of it, in one line that commands print as a note."""


class RunWarning(UserWarning):
    """What whoever waits for a live run should know, likewise."""


class HubError(InputError):
    """What a model hub does not give or take: one line that says why and what to do."""


class ProblemsError(InputError):
    """Problems that cannot be used: one line with the file or dataset and the remedy."""


class PredictorError(InputError):
    """Labels, features or a predictor that cannot be used: one line that says what and why."""


class CheckpointError(InputError):
    """A model's checkpoint that cannot be read: one line that names the file and the fault."""


class RunError(InputError):
    """A run's directory that cannot be used or written: one line with the remedy."""


class BackendError(Exception):
    """A sampler or verifier cannot go on; the message is one line that says what to do about it."""


class _Refusal(BackendError):
    """What asking again would not change.

    Attributes:
        too_long: Whether because prompt and completion do not fit the model.
        reason: Why, in the server's words.
    """

    def __init__(self, message: str, *, too_long: bool = False, reason: str = ""):
        super().__init__(message)
        self.too_long = too_long
        self.reason = reason


class ProblemError(_Refusal):
    """One problem cannot be sampled or scored, such as one longer than the context; others can."""


class BadRequestError(_Refusal):
    """A server understood a request and refuses it."""


class EngineError(RuntimeError):
    """A sampler or a verifier that does not keep its contract."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP, as an exception so that unfinished outputs are removed on the way out."""


@contextlib.contextmanager
def bad_input(
    where: str = "", errors: tuple[type[Exception], ...] = (ValueError, OSError)
) -> Iterator[None]:
    """Turns a library's errors into an `InputError` that begins with `where`, a field, say.

    Wrap only calls whose errors speak of what the user gave: a ValueError of our own making
    should keep its traceback.
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
    """The end of a message on a name that is none of those known.

    Args:
        name: What was given.
        known: The names that there are.
        otherwise: What introduces all of them, if none is near.
        prefix: What stands before each of them where it is shown.

    Returns:
        "; did you mean NAME?", or else "; there are NAME, NAME, ...".
    """
    # A client's name may have megabytes, and this takes long for them.
    close = difflib.get_close_matches(name[:_LOOKED_AT], known, 1)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    more = ", ..." if len(known) > _SHOWN else ""
    return f"; {otherwise} {', '.join(prefix + one for one in list(known)[:_SHOWN])}{more}"
