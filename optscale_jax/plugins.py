"""Parts by name: those that are shipped, and one's own as `module:name` or `./file.py:name`.

A policy, a law, a head or a loss that a configuration names is found here, and so is one that a
saved file names. What a part has to be is its user's knowledge.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from optscale_jax.errors import InputError, did_you_mean

__all__ = ["PluginError", "load_object", "make_part"]

PartT = TypeVar("PartT")


class PluginError(InputError):
    """A part that cannot be found or used: one line with its name, what is wrong and the remedy."""


def load_object(
    name: str, *, what: str, shipped: Mapping[str, Any] | None = None, must_call: bool = True
) -> Any:
    """Finds a part by its name; nothing is called.

    A file is run once for as long as its text stays the same, so that asking for the same name
    again gives the same object. Modules are looked for where Python looks for them, then in the
    working directory; a file may import those beside it.

    Args:
        name: A shipped name; `module:name` for anything that can be imported; or `file.py:name`
            with a slash before the file or without, relative to the working directory.
        what: What the part is, such as "head", for messages.
        shipped: The shipped parts by name.
        must_call: Whether the part has to be a function or a class.

    Raises:
        PluginError: If there is no such name, module or file, if it raises when it is imported, or
            if what it has there cannot be called.
    """
    shipped = shipped or {}
    if name in shipped:
        return shipped[name]
    place, colon, attribute = name.rpartition(":")
    if not colon:
        near = did_you_mean(name, shipped, "those shipped are") if shipped else ""
        raise PluginError(
            f"{what} {name!r}: no such {what}, and one of your own is module:name or "
            f"./file.py:name{near}"
        )
    message = f"{what} {name}"
    if not place or not attribute.isidentifier():
        raise PluginError(f"{message}: expected module:name or ./file.py:name")
    module = _of_file(place, message) if _is_file(place) else _of_module(place, message)
    if not hasattr(module, attribute):
        public = [each for each in vars(module) if not each.startswith("_")]
        near = did_you_mean(attribute, public, "it has") if public else ""
        raise PluginError(f"{message}: {place} has no {attribute}{near}")
    found = getattr(module, attribute)
    if must_call and not callable(found):
        raise PluginError(
            f"{message}: {attribute} is of type {type(found).__name__}, which cannot be called; "
            f"expected a function or class that gives the {what}"
        )
    return found


def make_part(value: Any, kind: type[PartT], *, what: str, shipped: Mapping[str, PartT]) -> PartT:
    """A part given as a value or by name.

    Args:
        value: A part; or a name, as `load_object` takes it, of one or of what makes one without
            arguments.
        kind: What the part has to be.
        what: What it is called in messages, such as "law".
        shipped: The shipped parts by name.

    Raises:
        PluginError: If the name is of none, or what it is of is no `kind`.
    """
    part: Any = value
    if isinstance(value, str):
        part = load_object(value, what=what, shipped=shipped, must_call=False)
        if callable(part) and not isinstance(part, kind):
            part = part()
    if not isinstance(part, kind):
        raise PluginError(
            f"{what}: {value!r} is no {kind.__module__.rpartition('.')[0]}.{kind.__name__}; give "
            f"one, or its name: {', '.join(shipped)}, or module:name"
        )
    return cast(PartT, part)


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def _of_module(place: str, message: str) -> ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise PluginError(f"{message}: {place!r} is no module's name; a file's ends with .py")
    try:
        with _folder_on_path(Path.cwd()):
            importlib.invalidate_caches()
            return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if place != missing and not place.startswith(f"{missing}."):
            raise _raised(error, place, message) from error
        raise PluginError(
            f"{message}: no module {missing}, neither installed nor in {Path.cwd()}; give a file "
            "as ./file.py:name"
        ) from error
    except (Exception, SystemExit) as error:
        raise _raised(error, place, message) from error


def _of_file(place: str, message: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file() or path.suffix != ".py":
        found = "no file" if not path.exists() else "not a Python file (.py)"
        raise PluginError(f"{message}: {found}: {path}")
    # Named by its text: a file that was changed is another module, as in a notebook's next cell.
    text = path.read_bytes()
    digest = hashlib.sha256(bytes(path) + b"\0" + text).hexdigest()
    name = f"{path.stem}_{digest[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses and pickles expect of a class's module
    try:
        with _folder_on_path(path.parent):
            # Not by the loader, whose kept bytecode goes by the second of the last change.
            exec(compile(text, path, "exec"), vars(module))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (Exception, SystemExit)):
            raise _raised(error, place, message) from error
        raise
    return module


@contextlib.contextmanager
def _folder_on_path(folder: Path) -> Iterator[None]:
    """Lets imports look into a folder after all others, so that its files hide no package."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _raised(error: BaseException, place: str, message: str) -> PluginError:
    """The error of a part's own code, with the line of it that was running."""
    if isinstance(error, SyntaxError):
        where, text = f"{error.filename}, line {error.lineno}", error.msg
    else:
        machinery = (__file__, importlib.__file__)
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename not in machinery and not frame.filename.startswith("<frozen ")
        ]
        # The part's own file comes first; what it calls may be someone else's.
        lines = [frame.lineno for frame in frames if frame.filename == frames[0].filename]
        where = f"{frames[0].filename}, line {lines[-1]}" if frames else place
        text = str(error)
    text = " ".join(text.split())
    return PluginError(
        f"{message}: {place} cannot be imported: {where}: {type(error).__name__}"
        + (f": {text}" if text else "")
    )
