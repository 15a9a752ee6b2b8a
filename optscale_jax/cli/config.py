"""A command's configuration: a frozen dataclass, read from a YAML file and dotted overrides.

The dataclass's `Attributes:` docstring becomes the help text. Whatever cannot be read is said in
one line with the file, the line and the field; for a name that is nearly right, the right one.
"""

import contextlib
import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Iterator, Sequence
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
    """Reads a configuration from the arguments; overrides win over `--config`, wherever they stand.

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
    options = _options(argv)
    given = [values for option, values in options if option == "--config"]
    for values in given:
        if len(values) != 1:
            raise InputError(f"--config: expected a file, found {', '.join(values) or 'nothing'}")
    options = [(option, values) for option, values in options if option != "--config"]
    files = [
        Path(name) if Path(name).is_file() else shipped_config(name, configs) for (name,) in given
    ]
    roots = [_composed(file) for file in files]
    if own := _own_rules(options, roots, config_class):
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
    for file, root in zip(files, roots, strict=True):
        _check_node(root, config_class, "", str(file))
    # First, since a later argument replaces an earlier one.
    arguments = [f"--config={file}" for file in files]
    arguments += _dropped(options, roots, config_class)
    for option, values in options:
        arguments += _argument(option, values, config_class)
    try:
        parsed = parser.parse_args(arguments)
    except (jsonargparse.ArgumentError, RecursionError) as error:
        raise InputError(" ".join(str(error).split())) from error
    # The dataclasses' own checks.
    with bad_input():
        values = parser.instantiate(parsed)
        fields = [field.name for field in dataclasses.fields(typing.cast(Any, config_class))]
        config = config_class(**{name: values[name] for name in fields})
    if getattr(config, "out", None) == "":
        raise InputError("--out: empty; give a folder or a file to write")
    return config


def to_yaml(config: Any) -> str:
    """A configuration as YAML that `--config` reads back unchanged."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


# Options ------------------------------------------------------------------------------------------

Options = list[tuple[str, list[str]]]


def _options(argv: Sequence[str]) -> Options:
    """The options with the values that follow each."""
    found: Options = []
    for argument in argv:
        option, equals, value = argument.partition("=")
        if argument == "-h" or option.startswith("--"):
            found.append((option, [value] if equals else []))
        elif found:
            found[-1][1].append(argument)
        else:
            found.append((argument, []))  # which the parser refuses
    return found


def _own_rules(options: Options, roots: Sequence[yaml.Node], config_class: type) -> list[str]:
    """Rules of one's own, `module:function`, that the configuration names; they bring arguments."""
    found = [name for root in roots for name in _policies_in(root, config_class)]
    for option, values in options:
        # What cannot be read is refused where it is.
        with contextlib.suppress(InputError, yaml.YAMLError, RecursionError):
            held, _, last = option.rpartition(".")
            if last == "name" and _is_policy(_option_type(held, config_class)):
                found += values[:1]
            elif values and values[0].startswith(("{", "[")):
                kind = _option_type(option, config_class)
                for value in values:
                    found += _policies_in(yaml.compose(value, yaml.SafeLoader), kind)
    return [name for name in dict.fromkeys(found) if ":" in name]


def _policies_in(node: Any, kind: Any) -> Iterator[str]:
    """The names of the policies in a node of so typed a field."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _policies_in(child, next(iter(typing.get_args(kind)), None))
    elif isinstance(node, yaml.MappingNode) and dataclasses.is_dataclass(kind):
        fields = typing.get_type_hints(kind)
        for key, value in node.value:
            if key.value == "name" and _is_policy(kind) and isinstance(value, yaml.ScalarNode):
                yield value.value
            elif isinstance(key, yaml.ScalarNode):
                yield from _policies_in(value, fields.get(key.value))


def _is_policy(kind: Any) -> bool:
    # By its name, since the module that makes it imports JAX.
    return getattr(kind, "__name__", None) == "PolicyConfig"


def _dropped(options: Options, roots: Sequence[yaml.Node], config_class: type) -> Iterator[str]:
    """Takes back what was said of a policy before another was named, and that one does not take.

    Files count in their order, then the options: whichever names another policy, the arguments of
    the earlier one that it has no use for are not held against it.
    """
    given = [_policy_in(root) for root in roots]
    for option, values in options:
        field = option.removeprefix("--policy.").removesuffix("+")
        if option == "--policy" and len(values) == 1:
            with contextlib.suppress(InputError):  # refused as a value
                given.append(_fields_of(_node(values[0], option)))
        elif field != option:
            given.append({field.partition(".")[0]: values[0] if len(values) == 1 else None})
    names = [(at, each["name"]) for at, each in enumerate(given) if each.get("name")]
    before = [at for at, name in names if name != names[-1][1]]
    if not before:
        return
    from optscale_jax.study.registry import find_rule

    with contextlib.suppress(InputError):  # there is none, as its user will say
        kept = {"name", *inspect.signature(find_rule(str(names[-1][1]))).parameters}
        kept |= {field for each in given[before[-1] + 1 :] for field in each}
        fields = dataclasses.fields(_option_type("--policy", config_class))
        others = {f.name: f.default for f in fields if f.name not in kept}
        yield f"--policy={json.dumps(others, default=dataclasses.asdict)}"


def _argument(option: str, values: list[str], config_class: type) -> list[str]:
    """An option, once checked, as the parser takes it: several values of a list as one, in JSON."""
    if not option.startswith("--") or option in ("--help", "--print_config"):
        return [option, *values] if not values else [f"{option}={values[0]}", *values[1:]]
    kind = _option_type(option, config_class)
    items = _item_types(kind)
    # One value for a field that is a number or a list of them is the number.
    scalar = any(part in _WORDS for part in _parts(kind))
    single = len(values) == 1 and (scalar or values[0].startswith("["))
    if items and values and not single:
        values = [json.dumps(values) if str in items else f"[{', '.join(values)}]"]
    if len(values) != 1:
        return [option, *values]
    if kind is not None and str not in _parts(kind) and not option.endswith("+"):
        path = option.removeprefix("--")
        _check_node(_node(values[0], option), kind, path, option)
    return [f"{option}={values[0]}"]


def _option_type(option: str, config_class: type) -> Any:
    """The type of the field that an option such as --policy.alpha names, which there has to be."""
    expected, path = config_class, ""
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


# Values -------------------------------------------------------------------------------------------


def _composed(file: Path) -> yaml.Node:
    """A file's document, whose nodes know their lines, which the parser cannot give."""
    with bad_input():
        try:
            root = _node(file.read_text(encoding="utf-8"), str(file))
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not a text file in UTF-8") from error
    if root is None:
        raise InputError(f"{file}: empty; a configuration is a mapping of fields to values")
    return root


def _node(text: str, place: str) -> Any:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{mark.line + 1}" if mark else "?"
        raise InputError(f"{place}:{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{place}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{place}: not valid YAML: nested too deeply") from error


def _fields_of(node: Any) -> dict[str, str | None]:
    """A mapping's fields with their values, None for those that are no scalars."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return {
        key.value: value.value if isinstance(value, yaml.ScalarNode) else None
        for key, value in pairs
        if isinstance(key, yaml.ScalarNode)
    }


def _policy_in(root: yaml.Node) -> dict[str, str | None]:
    """What a document says of its policy."""
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return _fields_of(next((value for key, value in pairs if key.value == "policy"), None))


def _check_node(node: yaml.Node, expected: Any, path: str, source: str) -> None:
    """Refuses what a file, or an option's value, says of a field, with the place of the fault."""

    def wrong(says: str, at: yaml.Node = node) -> InputError:
        line = "" if source.startswith("--") else f":{at.start_mark.line + 1}"
        return InputError(f"{source}{line}: {says}")

    item = next(iter(typing.get_args(expected)), None)
    if dataclasses.is_dataclass(expected):
        if not isinstance(node, yaml.MappingNode):
            what = path or "the configuration"
            raise wrong(f"{what} must be a mapping of fields to values")
        fields = typing.get_type_hints(expected)
        seen = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else yaml.serialize(key).strip()
            where = f"{path}.{name}" if path else name
            if name not in fields:
                near = did_you_mean(name, fields, "the keys are")
                raise wrong(f"{where}: no such key{near}", key)
            if name in seen:
                raise wrong(f"{where}: given twice", key)
            seen.add(name)
            _check_node(value, fields[name], where, source)
    elif isinstance(node, yaml.SequenceNode) and dataclasses.is_dataclass(item):
        for index, child in enumerate(node.value):
            _check_node(child, item, f"{path}[{index}]", source)
    else:
        # The parser's own reading of a scalar (1e-3 is a number to it, and a string to YAML 1.1).
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=expected)
        try:
            value = jsonargparse.get_loader("yaml")(yaml.serialize(node))
            parser.parse_object({"value": value})
        except jsonargparse.ArgumentError as error:
            raise wrong(f"{path} is {value!r}; it must be {_in_words(expected)}") from error
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise wrong(f"not valid YAML: {error}") from error
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, int) and abs(item) >= 2**63 for item in items):
            raise wrong(f"{path} is {value}; the largest number is 2^63 - 1")


_WORDS = {float: "a number", int: "an integer", bool: "true or false", str: "text"}


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
    return "null" if expected is type(None) else _WORDS.get(expected, str(expected))
