"""Policies as a configuration names them, and the grid of settings that a configuration stands for.

A policy is named as it is shipped, or as `module:function` or `./file.py:function` for a rule of
one's own. Its arguments are those of the factory: the configuration's class is made from the
factories' signatures and docstrings, so a new argument is one edit. A list in place of a value
means one setting for each, and several lists their product.
"""

import dataclasses
import inspect
import itertools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING
from typing import Any, Literal

import docstring_parser
import jax

from optscale_jax.errors import InputError, bad_input
from optscale_jax.estimation import Prior
from optscale_jax.laws import LAWS, Law
from optscale_jax.normal_inverse_gamma import NormalInverseGamma
from optscale_jax.plugins import load_object
from optscale_jax.policies import RULES, SELECTORS, Policy, Selector, stack

__all__ = [
    "Entry",
    "PolicyConfig",
    "PriorConfig",
    "describe",
    "expand",
    "find_rule",
    "policy_config",
    "prior_of",
    "with_own_rules",
    "words_of",
]


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """What is known of a problem's scores: one prior for all problems, or a file with one for each.

    OptScale's is loc, scale, loc_sd and scale_sd; hit_or_gain's is loc, strength, shape and rate.

    Attributes:
        loc: Mean of the prior on the law's loc, in units of score. null: no prior.
        scale: Mean of the prior on the law's scale, in units of score, above 0.
        loc_sd: Standard deviation of the prior on loc, above 0.
        scale_sd: Standard deviation of the prior on scale, above 0.
        file: JSON lines file with a prior for each problem, as eval.predict writes it, instead of
            the numbers; the tokens that predicting took are counted. null: the numbers hold.
        strength: How many scores the belief about loc is worth, above 0.
        shape: Half of how many scores the belief about the variance is worth, above 1/2.
        rate: Shape times the variance that is believed, above 0.
    """

    loc: float | None = None
    scale: float | None = None
    loc_sd: float = 0.1
    scale_sd: float = 0.1
    file: str | None = None
    strength: float | None = None
    shape: float | None = None
    rate: float | None = None

    def build(self, kind: type = Prior) -> Any:
        """The library's prior; None without one, or if it is in a file (`study.priors`).

        Args:
            kind: `Prior` or `NormalInverseGamma`, the factory's.

        Raises:
            ValueError: If only some of its numbers are given, a file beside them or another kind's,
                or a number is outside its domain.
        """
        if self.file is not None and self != PriorConfig(file=self.file):
            raise ValueError("prior: give a file or numbers, not both")
        numbers = {field.name: getattr(self, field.name) for field in dataclasses.fields(kind)}
        unset = vars(PriorConfig())
        for name, value in vars(self).items():
            if name not in (*numbers, "file") and value != unset[name]:
                raise ValueError(f"prior.{name}: this policy's prior has {', '.join(numbers)}")
        needed = [name for name in numbers if unset[name] is None]
        if all(numbers[name] is None for name in needed):
            return None
        if any(numbers[name] is None for name in needed):
            raise ValueError(f"prior: give all of {', '.join(needed)}, or none")
        for name, value in numbers.items():
            if not (0 if name != "loc" else -math.inf) < value < math.inf:
                domain = "above 0" if name != "loc" else "finite"
                raise ValueError(f"prior.{name} is {value}; it must be {domain}")
        return kind(**numbers)

    def given(self) -> dict[str, Any]:
        """Its fields by name, without those of a prior of the other kind."""
        normal, gamma = ("scale", "loc_sd", "scale_sd"), ("strength", "shape", "rate")
        left_out = gamma if self.strength is None else normal
        return {name: value for name, value in vars(self).items() if name not in left_out}


# The configuration's class, made from the factories -----------------------------------------------

# What an argument's annotation means in a configuration.
_PRIORS = (Prior, NormalInverseGamma)
_NAMED: dict[Any, Any] = {**dict.fromkeys(_PRIORS, PriorConfig), Selector: str, Law: str}
_SCALARS = (float, int, bool, str)
# The order of a table's columns; an argument that is not here comes after those that are.
_FIRST = (
    *(
        "n",
        "s_min",
        "s_hi",
        "gain",
        "alpha",
        "threshold",
        "max_samples",
        "min_samples",
        "rounds",
        "window",
    ),
    *("judge_window", "extension", "decide", "stop_at_s_min", "difficulty", "selection"),
)


def find_rule(name: str) -> Callable[..., Policy]:
    """The factory of a policy; a subclass of `Policy` is its own factory.

    Args:
        name: A shipped rule's, or `module:function`, or `./file.py:function`.

    Raises:
        ValueError: In one line, if there is none.
    """
    return load_object(name, what="policy", shipped=RULES)


def _scalar_type(annotation: Any) -> Any:
    """What a configuration takes for one value of an argument; None for what it cannot write."""
    origin = typing.get_origin(annotation)
    if annotation in _NAMED or annotation in _SCALARS or origin is Literal:
        return _NAMED.get(annotation, annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [_scalar_type(part) for part in typing.get_args(annotation)]
        # Words where there are words: an array beside them cannot be written.
        for wanted in (PriorConfig, *(p for p in parts if typing.get_origin(p) is Literal)):
            if wanted in parts:
                return wanted
        return next((part for part in _SCALARS if part in parts), None)
    return None


def _arguments_of(factory: Callable[..., Policy]) -> dict[str, tuple[inspect.Parameter, Any]]:
    """The arguments of a factory that a configuration can give: parameter and scalar type."""
    hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    static = {f.name for f in dataclasses.fields(Policy) if f.metadata.get("static")}
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        # Without an annotation the default says what it is.
        scalar = _scalar_type(hints.get(name, type(parameter.default)))
        if scalar is not None and name not in static:
            found[name] = (parameter, scalar)
    return found


def prior_of(factory: Callable[..., Policy]) -> Any:
    """What a factory's prior is, `Prior` or `NormalInverseGamma`; None if it takes neither."""
    hint = typing.get_type_hints(factory).get("prior")
    return next((kind for kind in (hint, *typing.get_args(hint)) if kind in _PRIORS), None)


def _help_of(factory: Callable[..., Policy]) -> dict[str, str]:
    parsed = docstring_parser.parse(inspect.getdoc(factory) or "")
    told = {each.arg_name: " ".join((each.description or "").split()) for each in parsed.params}
    return {name: text[:1].upper() + text[1:] for name, text in told.items()}


def policy_config(own: Iterable[str] = ()) -> type:
    """The class of a policy's configuration: a name, a label, and every argument of the factories.

    Any argument of the frozen dataclass may be a list, one setting for each value. `own` names
    rules of one's own beside the shipped ones, as `find_rule` takes them.
    """
    own = tuple(own)
    if not own and "PolicyConfig" in globals():
        return globals()["PolicyConfig"]  # the one that configurations refer to
    scalars: dict[str, Any] = {}
    helps: dict[str, str] = {}
    for factory in (*RULES.values(), *map(find_rule, own)):
        told = _help_of(factory)
        for name, (_, scalar) in _arguments_of(factory).items():
            known = scalars.setdefault(name, scalar)
            if known != scalar and PriorConfig not in (known, scalar):
                scalars[name] = known | scalar
            if told.get(name):
                helps.setdefault(name, told[name])
    ordered = {name: scalars[name] for name in (*_FIRST, *scalars) if name in scalars}
    fields: list[Any] = [("name", str), ("label", str | None, None)]
    fields += [
        (name, scalar | list[scalar] | None, None)
        for name, scalar in ordered.items()
        if scalar is not PriorConfig
    ]
    fields.append(("prior", PriorConfig, PriorConfig()))
    title = "".join(["PolicyConfig", *(re.sub(r"\W", "_", f"_{name}") for name in own)])
    made = dataclasses.make_dataclass(title, fields, frozen=True)
    helps |= {
        "name": f"The policy: {', '.join(RULES)}, or one of your own as module:function or "
        "./file.py:function. Each takes some of the arguments below.",
        "label": "Name in tables and figures, different for each policy. null: the policy's name.",
    }
    made.__doc__ = "\n".join(
        [
            "A policy and its arguments; a list of values means each of them.\n\nAttributes:",
            *(f"    {name}: {helps.get(name, 'See the policy.')}" for name, *_ in fields),
        ]
    )
    return _importable(made)


def _importable(made: type) -> type:
    """The class where the parser of configurations looks for it."""
    made.__module__ = __name__
    globals()[made.__name__] = made
    return made


if typing.TYPE_CHECKING:

    @dataclasses.dataclass(frozen=True, init=False)
    class PolicyConfig:
        """As `policy_config` makes it."""

        name: str
        label: str | None
        prior: PriorConfig

        def __init__(self, name: str, **arguments: Any): ...
else:
    PolicyConfig = policy_config()


def with_own_rules(config_class: type, names: Iterable[str]) -> type:
    """A command's configuration that takes the arguments of rules of one's own, too.

    Some fields of the frozen dataclass, or of dataclasses in it, may be policies or lists of them:
    their types are widened. `names` are the rules, as `find_rule` takes them.

    Raises:
        InputError: A rule cannot be found.
    """
    with bad_input("policy.name", (ValueError,)):
        return _widened(config_class, policy_config(names))


def _widened(config_class: type, made: type) -> type:
    """The class with `made` in the place of `PolicyConfig`; itself if it holds none."""
    if config_class is PolicyConfig:
        return made
    hints = typing.get_type_hints(config_class)
    fields = []
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        listed = typing.get_origin(hint) is list
        held = typing.get_args(hint)[0] if listed else hint
        nested = isinstance(held, type) and dataclasses.is_dataclass(held)
        wide = _widened(held, made) if nested else held
        if wide is held:
            continue
        if listed:
            fields.append((field.name, list[wide], dataclasses.field(default_factory=list)))
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if default is not MISSING:
            default = wide(**vars(default))
        fields.append((field.name, wide, dataclasses.field(default=default)))
    if not fields:
        return config_class
    title = made.__name__.replace("PolicyConfig", config_class.__name__, 1)
    widened = dataclasses.make_dataclass(
        title, fields, bases=(config_class,), frozen=True, kw_only=True
    )
    widened.__doc__ = config_class.__doc__
    return _importable(widened)


# The grid -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """One curve of a comparison: a policy with its grid of S settings."""

    where: str  # the field of the configuration that it comes from
    name: str  # the factory's
    label: str  # its name in tables and figures
    varying: list[str]  # arguments that take several values
    settings: list[dict[str, Any]]  # [S] all arguments, the factory's defaults included
    policies: list[Policy]  # [S]

    def stacks(self) -> list[tuple[list[int], Policy]]:
        """The settings that one compilation serves: their indices, and the stacked policy.

        Settings that differ in their caps alone are among them: what does not depend on the
        settings, the fits and the votes, is then computed once for all caps, and the price is that
        the shallow ones run along to the deepest one's end.
        """
        groups: dict[Any, list[int]] = {}
        for index, policy in enumerate(self.policies):
            bare = dataclasses.replace(policy, slots=1, prior=None)
            shapes = tuple(getattr(number, "shape", ()) for number in jax.tree.leaves(bare))
            groups.setdefault((jax.tree.structure(bare), shapes), []).append(index)
        return [(found, stack([self.policies[i] for i in found])) for found in groups.values()]

    def only(self, keep: Iterable[int]) -> "Entry":
        """The entry with some of its settings."""
        kept = list(keep)
        return dataclasses.replace(
            self,
            settings=[self.settings[i] for i in kept],
            policies=[self.policies[i] for i in kept],
        )


DEPTHS = ("n", "max_samples", "rounds")
"""Arguments that say how many completions a policy draws at most."""


def within_depth(config: Any, depth: int) -> tuple[Any, list[int]]:
    """A configured policy that draws at most what a pool has, and the depths that were lowered."""
    with bad_input("policy.name", (ValueError,)):
        arguments = _arguments_of(find_rule(config.name))
    changed: dict[str, Any] = {}
    lowered: list[int] = []
    for name in (*DEPTHS, "min_samples", "window"):
        if name not in arguments:
            continue
        given, default = getattr(config, name), arguments[name][0].default
        if given is None and not (name in DEPTHS and isinstance(default, int)):
            continue
        values = given if isinstance(given, list) else [default if given is None else given]
        if any(value > depth for value in values):
            lowered += [value for value in values if value > depth and name in DEPTHS]
            own = list(dict.fromkeys(min(value, depth) for value in values))
            changed[name] = own if len(own) > 1 else own[0]
    return dataclasses.replace(config, **changed), lowered


def expand(config: Any, where: str) -> list[Entry]:
    """The settings of a configured policy, checked by making each of them.

    Args:
        config: The policy, a `PolicyConfig`.
        where: Its field in the configuration, for messages.

    Returns:
        One entry, or one for each combination of its arguments that are words, if such are lists.

    Raises:
        InputError: An unknown name, an argument that the factory does not take, lacks or refuses.
    """
    with bad_input(f"{where}.name", (ValueError,)):
        factory = find_rule(config.name)
    arguments = _arguments_of(factory)
    given = _given(config)
    for name in given:
        if name not in arguments:
            taken = ", ".join(arguments)
            raise InputError(f"{where}.{name}: {config.name} does not take it; it takes {taken}")
    for name, (parameter, _) in arguments.items():
        if parameter.default is parameter.empty and name not in given:
            raise InputError(f"{where}.{name}: {config.name} needs it")

    def make(setting: dict[str, Any]) -> Policy:
        prior = setting.get("prior")
        with bad_input(where, (ValueError,)):
            given = {"prior": prior.build(prior_of(factory))} if prior else {}
            policy = factory(**setting | given)
        if not isinstance(policy, Policy):
            raise InputError(
                f"{where}.name: {factory.__name__} gives {policy!r}; a policy's factory returns a "
                "policies.Policy"
            )
        return policy

    lists = {name: _listed(given[name], f"{where}.{name}") for name in arguments if name in given}
    words = [name for name, values in lists.items() if isinstance(values[0], bool | str)]
    numbers = _structural_first(make, {n: v for n, v in lists.items() if n not in words}, lists)
    entries = []
    for chosen in itertools.product(*(lists[name] for name in words)):
        split = [
            f"{name} {value}" if isinstance(value, bool) else str(value)
            for name, value in zip(words, chosen, strict=True)
            if len(lists[name]) > 1
        ]
        settings, policies = [], []
        for values in itertools.product(*(lists[name] for name in numbers)):
            setting = dict(zip((*words, *numbers), (*chosen, *values), strict=True))
            policies.append(make(setting))
            settings.append(_complete(setting, arguments, policies[-1]))
        entries.append(
            Entry(
                where=where,
                name=config.name,
                label=", ".join([config.label or config.name, *split]),
                varying=[name for name in lists if name in numbers and len(lists[name]) > 1],
                settings=settings,
                policies=policies,
            )
        )
    return entries


def _complete(
    setting: Mapping[str, Any],
    arguments: Mapping[str, tuple[inspect.Parameter, Any]],
    policy: Policy,
) -> dict[str, Any]:
    """All arguments of a setting; a default that the rule works out is read off the policy."""
    complete = {}
    for name, (parameter, _) in arguments.items():
        value = setting.get(name, parameter.default)
        value = getattr(policy, name, None) if value is None else value
        complete[name] = _by_name(value)
    return complete


def _by_name(value: Any) -> Any:
    """The name of a selector or a law that is shipped; any other value itself."""
    named = SELECTORS if isinstance(value, Selector) else LAWS if isinstance(value, Law) else {}
    return next((name for name, shipped in named.items() if shipped == value), value)


def _structural_first(
    make: Callable[[dict[str, Any]], Policy],
    numbers: Mapping[str, list[Any]],
    lists: Mapping[str, list[Any]],
) -> list[str]:
    """Names of the numbers, first those that decide a policy's structure, its cap above all."""
    first = {name: values[0] for name, values in lists.items()}

    def structure(setting: dict[str, Any]) -> Any:
        return jax.tree.structure(dataclasses.replace(make(setting), prior=None))

    decides = [
        name
        for name, values in numbers.items()
        if len(values) > 1 and structure(first) != structure(first | {name: values[-1]})
    ]
    return [*decides, *(name for name in numbers if name not in decides)]


def words_of(setting: Mapping[str, Any], name: str) -> dict[str, str]:
    """The arguments that tell a setting from every other of the policy, in words.

    The setting has all arguments, but any that are at their defaults, which are left out; `name` is
    the factory's. Argument to name=value, in the factory's order.
    """
    found = {}
    for argument, (parameter, _) in _arguments_of(find_rule(name)).items():
        value = _by_name(setting.get(argument, parameter.default))
        if isinstance(value, PriorConfig):
            value = value.given()
        if isinstance(value, Mapping):
            found[argument] = _prior_in_words(value)
        elif value != _by_name(parameter.default):
            words = str(value).lower() if isinstance(value, bool) else value
            found[argument] = f"{argument}={words}"
    return {argument: text for argument, text in found.items() if text}


def describe(setting: Mapping[str, Any], name: str) -> str:
    """A setting in words such as "s_min=0.9 n=4", as `words_of` has them."""
    return " ".join(words_of(setting, name).values())


def _prior_in_words(prior: Mapping[str, Any]) -> str:
    if prior.get("file") is not None:
        return f"prior.file={prior['file']}"
    return " ".join(f"prior.{k}={v:g}" for k, v in prior.items() if v is not None)


def _given(config: Any) -> dict[str, Any]:
    left_out = {"name": config.name, "label": config.label, "prior": PriorConfig()}
    given = {name: value for name, value in vars(config).items() if value is not None}
    return {name: value for name, value in given.items() if left_out.get(name) != value}


def _listed(value: Any, where: str) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"{where}: an empty list; give at least one value")
    if len(set(values)) < len(values):
        raise InputError(f"{where}: a value is given twice")
    return values
