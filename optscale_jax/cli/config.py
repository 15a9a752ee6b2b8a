"""A command's configuration: a frozen dataclass, read from a YAML file and dotted overrides.

The dataclass's `Attributes:` docstring becomes the help text. Whatever cannot be read is said in
one line with the file, the line and the field; for a name that is nearly right, the right one.
"""

import contextlib
import dataclasses
import itertools
import json
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonargparse
import yaml

from optscale_jax.errors import InputError, bad_input, did_you_mean
from optscale_jax.shipped import shipped_config

__all__ = ["parse", "to_yaml"]

ConfigT = TypeVar("ConfigT")


def parse(
    config_class: type[ConfigT],
    argv: Sequence[str],
    *,
    prog: str = "",
    description: str = "",
    configs: str = "",
) -> ConfigT:
    """Reads a configuration from the arguments.

    Overrides win over `--config`, wherever they stand.

    Args:
        config_class: A frozen dataclass.
        argv: The arguments.
        prog: How the command is called.
        description: What it does.
        configs: Folder of `configs/` whose files `--config` knows by name; a file wins.

    Returns:
        The configuration.

    Raises:
        InputError: An argument, key or value that cannot be used; the message names the file, the
            line and the field.
    """
    names, options = _config_names(argv)
    files = [name if Path(name).is_file() else str(shipped_config(name, configs)) for name in names]
    if own := _own_rules(options, files):
        # Not before it is needed, since it imports JAX.
        from optscale_jax.study.registry import with_own_rules

        config_class = with_own_rules(config_class, own)
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with the fields below, or the name of a shipped one; may be given again, "
        "the later file wins",
    )
    parser.add_class_arguments(config_class)
    for file in files:
        _check_file(Path(file), config_class)
    # First, since a later argument replaces an earlier one.
    arguments = [part for file in files for part in ("--config", file)]
    arguments += _joined(options, config_class)
    try:
        parsed = parser.parse_args(arguments)
    except jsonargparse.ArgumentError as error:
        raise InputError(_one_line(str(error), config_class)) from error
    # The dataclasses' own checks.
    with bad_input():
        values = parser.instantiate(parsed)
        fields = [field.name for field in dataclasses.fields(typing.cast(Any, config_class))]
        config = config_class(**{name: values[name] for name in fields})
    if getattr(config, "out", None) == "":
        raise InputError("--out: empty; give a folder or a file to write")
    return config


def _own_rules(options: Sequence[str], files: Sequence[str]) -> list[str]:
    """Rules of one's own, `module:function`, that the configuration names; they bring arguments.

    What cannot be read is passed over here, and refused where the whole is read.
    """
    found, documents = [], []
    for file in files:
        with contextlib.suppress(OSError):
            documents.append(Path(file).read_text(encoding="utf-8", errors="replace"))
    for option, following in itertools.zip_longest(options, options[1:], fillvalue=""):
        name, equals, value = option.partition("=")
        value = value if equals else following
        if name.endswith(".name"):
            found.append(value)
        elif name.startswith("--") and value.startswith(("{", "[")):
            documents.append(value)
    for document in documents:
        with contextlib.suppress(yaml.YAMLError):
            found += _values_of("name", yaml.compose(document, Loader=yaml.SafeLoader))
    return list(dict.fromkeys(name for name in found if ":" in name))


def _values_of(key: str, node: Any) -> list[str]:
    """The texts that a key has anywhere in a document."""
    if isinstance(node, yaml.SequenceNode):
        return [value for child in node.value for value in _values_of(key, child)]
    if not isinstance(node, yaml.MappingNode):
        return []
    found = []
    for name, value in node.value:
        if name.value == key and isinstance(value, yaml.ScalarNode):
            found.append(value.value)
        found += _values_of(key, value)
    return found


def _joined(arguments: Sequence[str], config_class: type) -> list[str]:
    """`--runs a b c` as one argument, which the parser takes for a list field: a list in JSON."""
    found: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        found.append(argument)
        option, equals, _ = argument.partition("=")
        if not option.startswith("--") or option in ("--config", "--help", "--print_config"):
            continue
        kind = _option_type(option, config_class)
        if equals or not (items := _item_types(kind)):
            continue
        values: list[str] = []
        while remaining and not remaining[0].startswith("--"):
            values.append(remaining.pop(0))
        # One value for a field that is a number or a list of them is the number.
        alone = len(values) == 1 and (values[0].startswith("[") or _is_scalar(kind))
        if alone:
            found += values
        elif values:
            found.append(json.dumps(values) if str in items else f"[{', '.join(values)}]")
    return found


def _option_type(option: str, config_class: type) -> Any:
    """The type of the field that an option such as --policy.alpha names.

    Raises:
        InputError: If there is no such field.
    """
    expected: Any = config_class
    path = ""
    for name in option.removeprefix("--").removesuffix("+").split("."):
        if not dataclasses.is_dataclass(expected):
            return None  # a key of a mapping, which knows its own
        fields = typing.get_type_hints(expected)
        if name not in fields:
            near = did_you_mean(name, fields, prefix=f"--{path}")
            raise InputError(f"{option}: no such option{near}")
        expected, path = fields[name], f"{path}{name}."
    return expected


def _parts(kind: Any) -> tuple[Any, ...]:
    """The types that a union is of; of any other type itself."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def _item_types(kind: Any) -> tuple[Any, ...]:
    """The types of the items, if a type is a list or may be one; () if not."""
    lists = [part for part in _parts(kind) if typing.get_origin(part) is list]
    items = tuple(item for part in lists for item in typing.get_args(part))
    return () if items and dataclasses.is_dataclass(items[0]) else items


def _is_scalar(kind: Any) -> bool:
    """Whether a type that may be a list may also be something else."""
    return any(typing.get_origin(p) is not list and p is not type(None) for p in _parts(kind))


def to_yaml(config: Any) -> str:
    """A configuration as YAML that `--config` reads back unchanged."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def _config_names(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What --config is given, and all other arguments."""
    names, others = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config":
            name = next(remaining, None)
            if name is None:
                raise InputError("--config: expected a file")
            names.append(name)
        elif argument.startswith("--config="):
            names.append(argument.removeprefix("--config="))
        else:
            others.append(argument)
    return names, others


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
                near = did_you_mean(name, fields, "the keys are")
                raise InputError(f"{line}: {where}: no such key{near}")
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


def _one_line(message: str, config_class: type) -> str:
    """The parser's message, several lines for a union of types, as one that says the same."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    given = re.search(r"(?:Given value|Got value): (.*)", message)
    expected = _option_type(keys[0], config_class) if len(keys) == 1 else None
    if expected is not None and given and not dataclasses.is_dataclass(expected):
        return f"--{keys[0]}: {_wrong_type(keys[0], given.group(1), expected)}"
    if keys and given:
        return f"--{'.'.join(keys)}: {given.group(1)!r} cannot be used here"
    return message
