"""Policies as a configuration names them, and the grid of settings that a configuration stands for.

A list in place of a number means one setting for each, and several lists their product. Settings
that differ only in arguments that a factory can trace (those it annotates `ArrayLike`) form a
`Family`, which replay runs in one compilation.
"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

import numpy as np

from optscale_jax import policies
from optscale_jax.errors import InputError, bad_input
from optscale_jax.estimation import Prior
from optscale_jax.policies import Policy, StopReason
from optscale_jax.policies.base import capped
from optscale_jax.typing import ArrayLike

__all__ = [
    "FACTORIES",
    "Entry",
    "Factory",
    "Family",
    "PolicyConfig",
    "PriorConfig",
    "describe",
    "expand",
    "merge_caps",
]

FACTORIES: dict[str, Callable[..., Policy]] = {
    name: getattr(policies, name)
    for name in policies.__all__
    if inspect.isfunction(getattr(policies, name))
    and inspect.signature(getattr(policies, name)).return_annotation is Policy
}
"""Every policy of the library, by name."""

_Decide = Literal["every_sample", "once"]
_Difficulty = Literal["first_tokens", "first_score"]
_Selection = Literal["best_score", "majority", "weighted_vote"]


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """The prior on the law of scores: one for all problems, or a file with one for each.

    Attributes:
        loc: Mean of the prior on the law's loc, in units of score. null: no prior.
        scale: Mean of the prior on the law's scale, in units of score, above 0.
        loc_sd: Standard deviation of the prior on loc, above 0.
        scale_sd: Standard deviation of the prior on scale, above 0.
        file: JSON lines file with a prior for each problem, as eval.predict writes it, instead of
            the numbers; the tokens that predicting took are counted. null: the numbers hold.
    """

    loc: float | None = None
    scale: float | None = None
    loc_sd: float = 0.1
    scale_sd: float = 0.1
    file: str | None = None

    def build(self) -> Prior | None:
        """The library's prior; None without one, or if it is in a file (`study.priors`).

        Raises:
            ValueError: If only one of loc and scale is given, a file beside them, or a number is
                outside its domain.
        """
        if self.file is not None and self != PriorConfig(file=self.file):
            raise ValueError("prior: give a file or numbers, not both")
        if self.loc is None and self.scale is None:
            return None
        if self.loc is None or self.scale is None:
            raise ValueError("prior: give both loc and scale, or neither")
        for name in ("scale", "loc_sd", "scale_sd"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"prior.{name} is {getattr(self, name)}; it must be above 0")
        if not math.isfinite(self.loc):
            raise ValueError(f"prior.loc is {self.loc}; it must be finite")
        return Prior(self.loc, self.scale, self.loc_sd, self.scale_sd)


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """A policy of optscale_jax.policies and its arguments; a list of values means each of them.

    Attributes:
        name: The policy: best_of_n, first_hit, optscale or another of optscale_jax.policies. Each
            takes some of the arguments below; its docstring says which.
        label: Name in tables and figures, different for each policy. null: the policy's name.
        n: Number of completions to draw, at least 1.
        s_min: Score to reach, in [0, 1].
        alpha: Probability of reaching it, inside (0, 1).
        threshold: Probability that the leading answer is the majority, inside (1/2, 1).
        max_samples: Most completions to draw, at least 1.
        min_samples: Scores to look at before the first decision, at most max_samples. null: the
            paper's choice for max_samples 8, 16, 32 or 64, which is 3, 5, 10 or 20.
        rounds: Number of answers in a row, each with the one before shown, at least 1.
        window: Completions that must agree, at least 1.
        judge_window: Problems to judge together in the search for easy ones, at least 1.
        extension: Completions to add at a time to a problem that is not easy, at least 1.
        decide: When to fit the law of scores: after every_sample, or once after min_samples.
        stop_at_s_min: Whether to stop as soon as a score reaches s_min.
        difficulty: What ranks problems: the length (first_tokens) or the score (first_score) of
            their first completion.
        selection: Which completion to return: best_score, or that of a majority or weighted_vote.
        prior: Prior on the law of scores.
    """

    name: str
    label: str | None = None
    n: int | list[int] | None = None
    s_min: float | list[float] | None = None
    alpha: float | list[float] | None = None
    threshold: float | list[float] | None = None
    max_samples: int | list[int] | None = None
    min_samples: int | list[int] | None = None
    rounds: int | list[int] | None = None
    window: int | list[int] | None = None
    judge_window: int | list[int] | None = None
    extension: int | list[int] | None = None
    decide: _Decide | list[_Decide] | None = None
    stop_at_s_min: bool | list[bool] | None = None
    difficulty: _Difficulty | list[_Difficulty] | None = None
    selection: _Selection | list[_Selection] | None = None
    prior: PriorConfig = PriorConfig()


# The arguments that are the most completions to draw, and why a policy stops there.
_CAPS = {
    "max_samples": StopReason.MAX_SAMPLES,
    "n": StopReason.FIXED_COUNT,
    "rounds": StopReason.FIXED_COUNT,
}


@dataclasses.dataclass(frozen=True)
class Factory:
    """A policy's factory with all but the traced arguments; equal ones share a compilation.

    Attributes:
        name: The factory's name.
        arguments: The others, with their values.
        cap: The largest value of the argument that caps the samples, where that one is traced.
    """

    name: str
    arguments: tuple[tuple[str, Hashable], ...]
    cap: int | None = None

    def __call__(self, **traced: Any) -> Policy:
        """The policy with these values of the other arguments."""
        name = next((name for name in _CAPS if name in traced), None)
        if self.cap is None or name is None:
            return self._make(**traced)
        cap = traced.pop(name)
        return capped(self._make(**traced, **{name: self.cap}), cap, reason=_CAPS[name])

    def _make(self, **traced: Any) -> Policy:
        arguments: dict[str, Any] = dict(self.arguments)
        prior = arguments.pop("prior", None)
        if prior is not None:
            arguments["prior"] = prior.build()
        return FACTORIES[self.name](**arguments, **traced)


@dataclasses.dataclass(frozen=True)
class Family:
    """Settings that replay runs in one compilation.

    Attributes:
        make: The policy of one setting, given the traced arguments.
        traced: Name to values, [S] each; {} for a single setting without any.
        settings: All arguments of each setting, the factory's defaults included.
    """

    make: Factory
    traced: Mapping[str, np.ndarray]
    settings: list[dict[str, Any]]

    def policy(self, index: int) -> Policy:
        """The policy of one setting."""
        return self.make(**{name: values[index].item() for name, values in self.traced.items()})


@dataclasses.dataclass(frozen=True)
class Entry:
    """One curve of a comparison: a policy with its grid of numbers.

    Attributes:
        where: The field of the configuration that it comes from.
        name: The factory's name.
        label: Its name in tables and figures.
        varying: Arguments that take several values.
        families: The grid.
    """

    where: str
    name: str
    label: str
    varying: list[str]
    families: list[Family]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """All arguments of every setting."""
        return [setting for family in self.families for setting in family.settings]


def expand(config: PolicyConfig, where: str) -> list[Entry]:
    """The settings of a configured policy, checked by making each of them.

    Args:
        config: The policy.
        where: Its field in the configuration, for messages.

    Returns:
        One entry, or one for each combination of its arguments that are not numbers, if such are
        lists.

    Raises:
        InputError: An unknown name, an argument that the factory does not take, lacks or refuses.
    """
    factory = FACTORIES.get(config.name)
    if factory is None:
        names = ", ".join(FACTORIES)
        raise InputError(f"{where}.name is {config.name!r}; the policies are {names}")
    parameters = inspect.signature(factory).parameters
    given = _given(config)
    for name in given:
        if name not in parameters:
            taken = ", ".join(parameters)
            raise InputError(f"{where}.{name}: {config.name} does not take it; it takes {taken}")
    for name, parameter in parameters.items():
        derived = name == "min_samples"  # from max_samples, below
        if parameter.default is parameter.empty and name not in given and not derived:
            raise InputError(f"{where}.{name}: {config.name} needs it")

    lists = {name: _listed(given[name], f"{where}.{name}") for name in parameters if name in given}
    words = [name for name, values in lists.items() if isinstance(values[0], bool | str)]
    numbers = [name for name in lists if name not in words]
    # With one min_samples, OptScale fits no shorter prefix; traced, it has to.
    traced = [
        name
        for name in numbers
        if parameters[name].annotation is ArrayLike and name != "min_samples"
    ]
    entries = []
    for chosen in itertools.product(*(lists[name] for name in words)):
        label = config.label or config.name
        split = [
            f"{name} {value}" if isinstance(value, bool) else str(value)
            for name, value in zip(words, chosen, strict=True)
            if len(lists[name]) > 1
        ]
        families = []
        static = [name for name in numbers if name not in traced]
        for values in itertools.product(*(lists[name] for name in static)):
            fixed = dict(zip(words, chosen, strict=True)) | dict(zip(static, values, strict=True))
            if "min_samples" in parameters and "min_samples" not in fixed:
                fixed["min_samples"] = _look(fixed.get("max_samples"), where)
            families.append(
                _family(config.name, fixed, {name: lists[name] for name in traced}, where)
            )
        entries.append(
            Entry(
                where=where,
                name=config.name,
                label=", ".join([label, *split]),
                varying=[name for name in numbers if len(lists[name]) > 1],
                families=families,
            )
        )
    return entries


def merge_caps(families: list[Family]) -> list[Family]:
    """Joins families that differ in their caps alone, so that one compilation serves all caps.

    What does not depend on the settings, the fits and the votes, is then computed once for all
    caps; the price is that the shallow settings run along to the deepest one's end.

    Args:
        families: The families of one entry.

    Returns:
        Families with the same settings in the same order.
    """
    if len(families) < 2:
        return families
    fixed = [dict(family.make.arguments) for family in families]
    varying = {
        name for name in fixed[0] if any(arguments[name] != fixed[0][name] for arguments in fixed)
    }
    caps = varying & set(_CAPS)
    if len(caps) != 1 or not varying <= caps | {"min_samples"}:
        return families
    (cap,) = caps
    counts = [len(family.settings) for family in families]
    traced = {
        name: np.concatenate([family.traced[name] for family in families])
        for name in families[0].traced
    }
    for name in sorted(varying):
        traced[name] = np.repeat(np.array([arguments[name] for arguments in fixed]), counts)
    constant = tuple(pair for pair in families[0].make.arguments if pair[0] not in varying)
    return [
        Family(
            make=Factory(families[0].make.name, constant, int(max(traced[cap]))),
            traced=traced,
            settings=[setting for family in families for setting in family.settings],
        )
    ]


def describe(setting: Mapping[str, Any], name: str) -> str:
    """A setting in words that tell it from every other of the policy, such as "s_min=0.9 n=4".

    Args:
        setting: All arguments; one that is missing is at its default.
        name: The factory's name; arguments at its defaults are left out.

    Returns:
        name=value, separated by spaces, in the factory's order.
    """
    parameters = inspect.signature(FACTORIES[name]).parameters
    words = []
    for argument, parameter in parameters.items():
        value = setting.get(argument, parameter.default)
        if isinstance(value, PriorConfig):
            value = dataclasses.asdict(value)
        if isinstance(value, Mapping):
            words += _prior_in_words(value)
        elif value != parameter.default:
            words.append(f"{argument}={_in_words(value)}")
    return " ".join(words)


def _prior_in_words(prior: Mapping[str, Any]) -> list[str]:
    if prior.get("file") is not None:
        return [f"prior.file={prior['file']}"]
    return [f"prior.{k}={v:g}" for k, v in prior.items() if v is not None]


def _in_words(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _given(config: PolicyConfig) -> dict[str, Any]:
    fields = [field.name for field in dataclasses.fields(config)]
    given = {name: getattr(config, name) for name in fields if name not in ("name", "label")}
    if config.prior == PriorConfig():
        del given["prior"]
    return {name: value for name, value in given.items() if value is not None}


def _listed(value: Any, where: str) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"{where}: an empty list; give at least one value")
    if len(set(values)) < len(values):
        raise InputError(f"{where}: a value is given twice")
    return values


def _look(max_samples: Any, where: str) -> int:
    if max_samples not in policies.PAPER_MIN_SAMPLES:
        caps = ", ".join(map(str, policies.PAPER_MIN_SAMPLES))
        raise InputError(
            f"{where}.min_samples: needed for max_samples {max_samples}; the paper has one for "
            f"{caps} only"
        )
    return policies.PAPER_MIN_SAMPLES[max_samples]


def _family(name: str, fixed: dict[str, Any], traced: dict[str, list[Any]], where: str) -> Family:
    parameters = inspect.signature(FACTORIES[name]).parameters
    combinations = list(itertools.product(*traced.values()))
    defaults = {argument: p.default for argument, p in parameters.items()}
    settings = [
        defaults | fixed | dict(zip(traced, values, strict=True)) for values in combinations
    ]
    family = Family(
        make=Factory(name, tuple(fixed.items())),
        traced={
            argument: np.array([values[i] for values in combinations])
            for i, argument in enumerate(traced)
        },
        settings=settings,
    )
    with bad_input(where, (ValueError,)):
        for index in range(len(settings)):
            family.policy(index)
    return family
