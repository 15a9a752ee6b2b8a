"""Files on a model hub: `hf://OWNER/NAME` in the place of a path, and how they come there.

    local("hf://owner/name", kind="model", files=["calibration.json"])       its folder, downloaded
    push({"calibration.json": data, "README.md": card}, "owner/name", kind="model")

huggingface_hub does the work, and is imported only where a hub is named. HF_ENDPOINT names another
hub than huggingface.co, HF_TOKEN or `hf auth login` gives the token.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from optscale_jax.errors import HubError
from optscale_jax.shipped import located

__all__ = ["POOL_FILE", "Kind", "Pushed", "is_name", "local", "owner", "push"]

POOL_FILE = "pool.npz"
"""The name of a pool in a repository of its own."""

Kind = Literal["model", "dataset"]
"""What a repository of the hub holds: predictors and calibrations, or pools and data sets."""

# A Path has made one slash of two.
_NAME = re.compile(r"hf:/{1,2}(datasets/)?([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")
_LOGIN = "give one that it takes: hf auth login, or HF_TOKEN"


def is_name(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the name of something on a hub."""
    return _NAME.fullmatch(os.fspath(path)) is not None


def local(path: str | os.PathLike[str], *, kind: Kind, files: Sequence[str]) -> Path:
    """Finds what a path names: a file or folder, one inside a package, or one on the hub.

    Args:
        path: A path; `package:NAME/PATH`; or `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION/FILES`,
            of which REVISION is a branch, a tag or a commit, and FILES what to take of the
            repository, a beginning or a pattern of names; `hf://datasets/OWNER/NAME` is one of data
            sets whatever `kind` says.
        kind: Of the repository.
        files: Patterns of what to take of a repository where the path names no FILES. A single one
            is a file's name, and the path is then this file's.

    Returns:
        The path; of what is on the hub, where huggingface_hub keeps it.

    Raises:
        HubError: If the hub does not give it.
        InputError: If the package is not installed.
    """
    text = os.fspath(path)
    if (named := _NAME.fullmatch(text)) is None:
        return Path(located(text))
    data, name, revision, inside = named.groups()
    kind = "dataset" if data else kind
    with _in_words(text, "cannot be had from the hub"):
        from huggingface_hub import snapshot_download

        # Of what is not there it warns, and below it is an error.
        logging.getLogger("huggingface_hub._snapshot_download").setLevel(logging.ERROR)
        wanted = [f"{inside}*", f"{inside}/*"] if inside else list(files)
        found = snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=wanted)
    alone = files[0] if len(files) == 1 else ""
    place = Path(found, inside or alone)
    if not place.exists() and not any(place.parent.glob(place.name)):
        raise HubError(
            f"{text}: the repository has no {inside or alone}; name what you mean: hf://{name}/FILE"
        )
    return place


class Pushed(NamedTuple):
    """What is on the hub now."""

    url: str  # the repository's page
    name: str  # hf://OWNER/NAME@COMMIT, these very files


def owner(repository: str) -> str:
    """The full name of a repository, OWNER/NAME, with the token's user where it has no owner.

    Raises:
        HubError: If there is no token, or the hub refuses it.
    """
    where = f"hf://{repository}"
    with _in_words(where, "cannot be pushed to"):
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise HubError(f"{where}: the hub wants a token; {_LOGIN}")
        user = HfApi().whoami()["name"]
    return repository if "/" in repository else f"{user}/{repository}"


def push(
    files: Mapping[str, bytes],
    repository: str,
    *,
    kind: Kind,
    private: bool = False,
    message: str = "Pushed by optscale",
) -> Pushed:
    """Puts files into a repository of the hub in one commit; it is made if it does not exist.

    Args:
        files: Their contents by name.
        repository: OWNER/NAME.
        kind: Of the repository.
        private: Whether a new repository is for its owner alone.
        message: Of the commit.

    Raises:
        HubError: If the hub does not take them; nothing of them is there then.
    """
    with _in_words(f"hf://{repository}", "cannot be pushed to"):
        from huggingface_hub import CommitOperationAdd, HfApi

        hub = HfApi()
        url = hub.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        added = [CommitOperationAdd(name, data) for name, data in files.items()]
        done = hub.create_commit(repository, added, commit_message=message, repo_type=kind)
    return Pushed(str(url), f"hf://{repository}@{done.oid}")


@contextlib.contextmanager
def _in_words(where: str, what: str) -> Iterator[None]:
    try:
        yield
    except HubError:
        raise
    except ImportError as error:
        raise HubError(f"{where}: pip install 'optscale-jax[hub]' to use a hub") from error
    # What it raises offline differs from one version and one way of being offline to another.
    except Exception as error:
        raise HubError(f"{where}: {what}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """What went wrong and what to do. Never in the hub's words where a token may be in them."""
    from huggingface_hub import constants, errors, get_token

    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    token = get_token()
    answers = [getattr(cause, "response", None) for cause in causes]
    status = next((answer.status_code for answer in answers if answer is not None), None)

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if any_is(errors.GatedRepoError):
        return "access has to be asked for, on the repository's page"
    if any_is(errors.RevisionNotFoundError):
        return "there is no such revision"
    if any_is(errors.RepositoryNotFoundError):
        hidden = "this token may not see it" if token else f"it is private; then {_LOGIN}"
        return f"there is no such repository (check the name), or {hidden}"
    if status == 401:
        return f"the hub refuses the token (401); {_LOGIN}"
    if status == 403:
        return "the token may not do this (403); give one that may write there (HF_TOKEN)"
    if status is None and constants.HF_HUB_OFFLINE:
        return "it is not among what was downloaded, and HF_HUB_OFFLINE forbids more; unset it"
    if (status is None and any_is(ConnectionError)) or "Connect" in type(causes[-1]).__name__:
        return f"{constants.ENDPOINT} cannot be reached; connect, or give the path of a copy"
    while error.__cause__ is not None:
        error = error.__cause__
    told = " ".join(str(error).split())[:200]
    told = told.replace(token, "***") if token else told
    return f"{type(error).__name__}: {told}"
