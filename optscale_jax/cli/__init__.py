"""What every command shares: its configuration, its one-line errors, its outputs, its progress.

A command's configuration is a frozen dataclass whose `Attributes:` docstring becomes the help text.
`command` reads it from `--config FILE` and dotted overrides (`--policy.alpha 0.9`) and turns bad
input into exit code 2 and one line on stderr; anything else that goes wrong keeps its traceback.
"""

import contextlib
import dataclasses
import difflib
import json
import os
import re
import shutil
import signal
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO, TypeVar

import jsonargparse
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = [
    "command",
    "output_file",
    "output_folder",
    "parse",
    "progress",
    "to_yaml",
]

from optscale_jax.errors import InputError, Terminated, bad_input

ConfigT = TypeVar("ConfigT")


def command(
    config_class: type[ConfigT],
    run: Callable[[ConfigT], None],
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    interrupted: str = "nothing was written",
) -> int:
    """Parses the arguments and runs a command.

    Args:
        config_class: The configuration, a frozen dataclass.
        run: The command itself.
        argv: Arguments; None for those of the process.
        prog: How the command is called, for its help.
        description: What it does, for its help.
        interrupted: What an interruption has left behind.

    Returns:
        The exit code: 0, 2 for bad input, 130 and 143 for an interruption. `--help` and
        `--print_config` exit by themselves.
    """
    try:
        with _terminations_unwind():
            run(parse(config_class, argv, prog=prog, description=description))
    except InputError as error:
        # Whatever a message quotes, it stays one line.
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
    except Terminated:
        print(f"terminated; {interrupted}", file=sys.stderr)
        return 143
    return 0


@contextlib.contextmanager
def _terminations_unwind() -> Iterator[None]:
    def terminate(signum: int, frame: Any) -> NoReturn:
        raise Terminated

    try:
        previous = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # only the main thread may; elsewhere there is nothing to unwind
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# Configuration ------------------------------------------------------------------------------------


def parse(
    config_class: type[ConfigT], argv: Sequence[str] | None, *, prog: str, description: str
) -> ConfigT:
    """Reads a configuration from the arguments.

    Overrides win over `--config`, wherever they stand.

    Args:
        config_class: A frozen dataclass.
        argv: Arguments; None for those of the process.
        prog: How the command is called.
        description: What it does.

    Returns:
        The configuration.

    Raises:
        InputError: An argument, key or value that cannot be used; the message names the file, the
            line and the field.
    """
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with the fields below; may be given again, the later file wins",
    )
    parser.add_class_arguments(config_class)
    given = _joined(list(sys.argv[1:] if argv is None else argv), config_class)
    arguments, files = _files_first(given)
    for file in files:
        _check_file(Path(file), config_class)
    try:
        parsed = parser.parse_args(arguments)
    except jsonargparse.ArgumentError as error:
        raise InputError(_one_line(str(error), config_class)) from error
    # The dataclasses' own checks.
    with bad_input():
        values = parser.instantiate(parsed)
        names = [field.name for field in dataclasses.fields(typing.cast(Any, config_class))]
        return config_class(**{name: values[name] for name in names})


def _joined(arguments: list[str], config_class: type) -> list[str]:
    """`--runs a b c` as one argument, which the parser takes for a list field: a list in JSON."""
    lists = {
        f"--{name}": items
        for name, kind in typing.get_type_hints(config_class).items()
        if (items := _item_types(kind)) and not dataclasses.is_dataclass(items[0])
    }
    found: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        found.append(argument)
        if argument not in lists:
            continue
        values: list[str] = []
        while remaining and not remaining[0].startswith("--"):
            values.append(remaining.pop(0))
        if len(values) == 1 and values[0].startswith("["):
            found.append(values[0])
        elif values:
            texts = str in lists[argument]
            found.append(json.dumps(values) if texts else f"[{', '.join(values)}]")
    return found


def _item_types(kind: Any) -> tuple[Any, ...]:
    """The types of the items, if a type is a list or may be one; () if not."""
    parts = (kind, *typing.get_args(kind))
    return tuple(t for p in parts if typing.get_origin(p) is list for t in typing.get_args(p))


def to_yaml(config: Any) -> str:
    """A configuration as YAML that `--config` reads back unchanged."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def _files_first(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Moves the --config arguments to the front, since a later argument replaces an earlier one."""
    files, others = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config":
            file = next(remaining, None)
            if file is None:
                raise InputError("--config: expected a file")
            files.append(file)
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            others.append(argument)
    return [part for file in files for part in ("--config", file)] + others, files


def _check_file(file: Path, config_class: type) -> None:
    """Refuses a configuration with the line of what is wrong, which the parser cannot give."""
    with bad_input():
        try:
            root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not a text file in UTF-8") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f"{mark.line + 1}" if mark else "?"
            raise InputError(f"{file}:{line}: not valid YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise InputError(f"{file}: not valid YAML: {error}") from error
    if root is None:
        raise InputError(f"{file}: empty; a configuration is a mapping of fields to values")
    _check_node(root, config_class, "", file)


def _check_node(node: yaml.Node, expected: Any, path: str, file: Path) -> None:
    place = f"{file}:{node.start_mark.line + 1}"
    item = _item_class(expected)
    if dataclasses.is_dataclass(expected):
        if not isinstance(node, yaml.MappingNode):
            what = path or "the configuration"
            raise InputError(f"{place}: {what} must be a mapping of fields to values")
        fields = typing.get_type_hints(expected)
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            where = f"{path}.{name}" if path else name
            line = f"{file}:{key.start_mark.line + 1}"
            if name not in fields:
                raise InputError(f"{line}: {where}: no such key{_did_you_mean(name, fields)}")
            if name in seen:
                raise InputError(f"{line}: {where}: given twice")
            seen.add(name)
            _check_node(value, fields[name], where, file)
    elif item is not None and isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _check_node(child, item, f"{path}[{index}]", file)
    else:
        value = _constructed(node, place)
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=expected)
        try:
            parser.parse_object({"value": value})
        except jsonargparse.ArgumentError as error:
            raise InputError(f"{place}: {_wrong_type(path, value, expected)}") from error


def _constructed(node: yaml.Node, place: str) -> Any:
    # The parser's own reading of a scalar (1e-3 is a number to it, and a string to YAML 1.1).
    try:
        return jsonargparse.get_loader("yaml")(yaml.serialize(node))
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{place}: not valid YAML: {error}") from error


def _item_class(expected: Any) -> Any:
    """The dataclass that a list type holds, or None."""
    (item, *_) = typing.get_args(expected) or (None,)
    is_list = typing.get_origin(expected) is list
    return item if is_list and dataclasses.is_dataclass(item) else None


def _did_you_mean(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else f"; the keys are {', '.join(known)}"


def _wrong_type(path: str, value: Any, expected: Any) -> str:
    return f"{path} is {value!r}; it must be {_in_words(expected)}"


def _in_words(expected: Any) -> str:
    origin, parts = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_in_words(part) for part in parts)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is list:
        return f"a list, each {_in_words(parts[0])}" if parts else "a list"
    if dataclasses.is_dataclass(expected):
        return "a mapping of fields to values"
    names = {
        float: "a number",
        int: "an integer",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }
    return names.get(expected, str(expected))


def _field_type(config_class: Any, path: str) -> Any:
    """The type of a field such as policy.alpha, or None if there is none."""
    for name in path.split("."):
        if not dataclasses.is_dataclass(config_class):
            return None
        config_class = typing.get_type_hints(config_class).get(name)
    return config_class


def _one_line(message: str, config_class: type) -> str:
    """The parser's message, several lines for a union of types, as one that says the same."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    given = re.search(r"(?:Given value|Got value): (.*)", message)
    expected = _field_type(config_class, keys[0]) if len(keys) == 1 else None
    if expected is not None and given and not dataclasses.is_dataclass(expected):
        return f"--{keys[0]}: {_wrong_type(keys[0], given.group(1), expected)}"
    if keys and given:
        return f"--{'.'.join(keys)}: {given.group(1)!r} cannot be used here"
    return message


# Outputs ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def output_folder(out: Path, owned: Collection[str]) -> Iterator[Path]:
    """A folder to write a command's files into, which appear in `out` only when all are complete.

    Args:
        out: Where the files go; made if it does not exist. Other files in it are left alone.
        owned: All names that the command may write; patterns such as `*/figure.png` for files in
            folders of any name. Those that this run does not write are removed from `out`, so that
            no file of an earlier run stands beside this one's.

    Yields:
        An empty folder beside `out`. On any error it is removed, and `out` is as it was.

    Raises:
        InputError: If `out` is not a folder, or files cannot be made there.
    """
    out = out.expanduser().resolve()
    # A sibling, because os.replace is atomic only within one file system.
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with bad_input("--out", (OSError,)):
        if out.exists() and not out.is_dir():
            raise InputError(f"--out: {out} is a file; give a folder")
        unfinished.mkdir(parents=True)
    try:
        yield unfinished
        with bad_input("--out", (OSError,)):
            out.mkdir(exist_ok=True)
            written = sorted(file for file in unfinished.rglob("*") if file.is_file())
            names = {file.relative_to(unfinished) for file in written}
            for file in written:
                target = out / file.relative_to(unfinished)
                target.parent.mkdir(exist_ok=True)
                os.replace(file, target)
            for pattern in owned:
                for file in list(out.glob(pattern)):
                    if file.relative_to(out) not in names and not file.is_dir():
                        file.unlink()
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def output_file(out: Path) -> Iterator[TextIO]:
    """A text file to write, which appears as `out` only when it is complete.

    Args:
        out: The file; its folder is made if it does not exist.

    Yields:
        A file beside `out`. On any error it is removed, and `out` is as it was.

    Raises:
        InputError: If a file cannot be made there.
    """
    out = out.expanduser().resolve()
    # A sibling, because os.replace is atomic only within one file system.
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with bad_input("--out", (OSError,)):
        if out.is_dir():
            raise InputError(f"--out: {out} is a folder; give a file")
        out.parent.mkdir(parents=True, exist_ok=True)
        file = open(unfinished, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    try:
        with file:
            yield file
        with bad_input("--out", (OSError,)):
            os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def progress() -> Progress:
    """A progress bar on stderr, which vanishes when it is done; nothing where no one is looking."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
