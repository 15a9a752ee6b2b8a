"""A policy at work: what it makes of one completion after another of any number of problems.

All that waits for a decision at one moment, of whatever problems and requests, is decided in one
call, since a call costs far more than a decision: several completions of each problem, where more
than one is there. For that a problem's policy and its state are kept as one row of bits, which
NumPy stacks: rows of different numbers, such as caps, of one structure share a call.
"""

import asyncio
import contextlib
import dataclasses
import functools
import math
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optscale_jax.errors import EngineError, bad_input
from optscale_jax.policies import Info, Observation, Policy
from optscale_jax.policies import base as driver
from optscale_jax.policies.prior import of_each_problem, of_problem
from optscale_jax.policies.stacking import as_arrays
from optscale_jax.records import Sample

__all__ = ["Decider", "State", "decide_on_the_cpu"]

# Rows of a call, always as many: a decision is the same bits whatever is decided with it.
_ROWS = 32


def decide_on_the_cpu() -> None:
    """Has JAX run on the CPU and in the thread that asks, where a process only decides.

    A decision is a few scalars. An accelerator's memory is the models', and handing the call to
    another thread takes as long as the call itself: several times as long where engines keep all
    processors busy. Call it before anything of JAX's has run, which settles both.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_enable_async_dispatch", False)


class _Program:
    """The compiled functions of all problems whose policy and state have one structure.

    They run on the CPU, whatever else there is: a decision is a few scalars, and an accelerator's
    memory is the models'.
    """

    def __init__(self, structure: Any, leaves: "_Leaves"):
        self._structure, self._leaves = structure, leaves
        self.dtype = np.dtype(jnp.result_type(float))
        cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        self.step = jax.jit(jax.vmap(self._step), in_shardings=cpu)
        self._finish = jax.jit(lambda bits: _packed(self._found(bits)), in_shardings=cpu)
        self.gain = jax.jit(lambda bits: driver.gain(*self._unpacked(bits)), in_shardings=cpu)

    def _found(self, bits: jax.Array) -> tuple[jax.Array, Info]:
        return driver.finish(*self._unpacked(bits))

    @functools.cached_property
    def _shapes(self) -> tuple[Any, "_Leaves"]:
        words = sum(math.prod(shape) * _words(name) for shape, name in self._leaves)
        found = jax.eval_shape(self._found, jax.ShapeDtypeStruct((words,), jnp.uint32))
        leaves, structure = jax.tree.flatten(found)
        return structure, tuple((one.shape, one.dtype.name) for one in leaves)

    def finish(self, bits: np.ndarray) -> tuple[np.ndarray, Info]:
        """What `driver.finish` finds, in one array from JAX instead of one for each field."""
        structure, leaves = self._shapes
        values = [
            part.view(_wide(name)).reshape(shape).astype(jnp.dtype(name))
            for part, shape, name in _parts(np.asarray(self._finish(bits)), leaves)
        ]
        return jax.tree.unflatten(structure, values)

    def _unpacked(self, bits: jax.Array) -> Any:
        values = []
        for part, shape, name in _parts(bits, self._leaves):
            dtype, wide = np.dtype(name), _wide(name)
            part = part.reshape(-1, 2) if wide.itemsize == 8 else part
            value = jax.lax.bitcast_convert_type(part, wide)
            values.append(value.reshape(shape).astype(dtype))
        return jax.tree.unflatten(self._structure, values)

    def _step(self, bits: jax.Array, shown: jax.Array, read: jax.Array) -> jax.Array:
        """The row after one more completion, and how many more to draw in one word behind it.

        Args:
            bits: The row.
            shown: int32 [3], the completion's answer, tokens and index.
            read: Floating [1 + S], its score and signals.
        """
        policy, state = self._unpacked(bits)
        answer, tokens, index = shown
        signals = read[1:] if len(read) > 1 else None
        seen = Observation(read[0], answer, tokens, index, signals)
        state, more = driver.step(policy, state, seen)
        leaves = zip(jax.tree.leaves((policy, state)), self._leaves, strict=True)
        return _packed(([jnp.asarray(value).astype(name) for value, (_, name) in leaves], more))


def _parts(row: Any, leaves: "_Leaves") -> Iterator[tuple[Any, tuple[int, ...], str]]:
    """The words of each leaf in a row, its shape and its type's name."""
    at = 0
    for shape, name in leaves:
        words = math.prod(shape) * _words(name)
        yield row[at : at + words], shape, name
        at += words


def _packed(tree: Any) -> jax.Array:
    """The bits of all leaves, in a row of words."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    wide = [leaf.astype(_wide(leaf.dtype.name)) for leaf in leaves]
    words = [jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1) for leaf in wide]
    return jnp.concatenate(words)


def _words(name: str) -> int:
    """Words that a value of a type takes."""
    return _wide(name).itemsize // 4


def _wide(name: str) -> np.dtype:
    """The type of whole words that holds a type's values."""
    dtype = jnp.dtype(name)
    if dtype.itemsize >= 4:
        return dtype
    return np.dtype(np.float32 if jnp.issubdtype(dtype, jnp.floating) else np.int32)


# The shape and the type's name of each leaf.
_Leaves = tuple[tuple[tuple[int, ...], str], ...]
_program = functools.cache(_Program)


class State(NamedTuple):
    """What a policy knows of one problem, and the policy; a value."""

    program: _Program
    bits: np.ndarray


class _Shown(NamedTuple):
    """A completion as a policy sees it."""

    whole: tuple[int, int, int]  # answer, tokens and index
    read: list[float]  # score and signals


class _Asked(NamedTuple):
    """Completions to show to a policy, and where to tell what comes of it."""

    state: State
    shown: list[_Shown]  # at least one, in launch order
    every: bool  # whether to show those behind its stop too
    told: "asyncio.Future[tuple[State, list[int]]]"


_WAITING: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Asked]] = (
    weakref.WeakKeyDictionary()
)


class Decider:
    """A policy at work, compiled once for all problems and for all policies of its structure."""

    def __init__(self, policy: Policy):
        self._prior = policy.prior
        self._policy = as_arrays(dataclasses.replace(policy, prior=None))
        self._signals = policy.signals
        self._first: tuple[State, int] | None = None

    def start(self, prior: Any, place: int, count: int) -> tuple[State, int]:
        """The state of a problem that nothing is drawn for, and how many to draw.

        Args:
            prior: The problem's own prior; None = the policy's.
            place: The problem's place in the run, for a policy with a prior for each problem.
            count: How many problems the run has.
        """
        if prior is None and self._prior is None:
            self._first = self._first or self._started(None)
            return self._first
        if prior is None:
            with bad_input("the policy's prior", (ValueError,)):
                prior = of_problem(of_each_problem(self._prior, count), place)
        else:
            prior = of_problem(of_each_problem(prior, 1), 0)
        return self._started(prior)

    def _started(self, prior: Any) -> tuple[State, int]:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            state, more = jax.device_get(driver.start(self._policy, prior))
        leaves, structure = jax.tree.flatten((self._policy, state))
        arrays = [np.asarray(leaf) for leaf in leaves]
        program = _program(structure, tuple((one.shape, one.dtype.name) for one in arrays))
        rows = [np.ravel(one.astype(_wide(one.dtype.name))).view(np.uint32) for one in arrays]
        return State(program, np.concatenate(rows)), int(more)

    async def step(
        self, state: State, samples: Sequence[Sample], *, every: bool = False
    ) -> tuple[State, list[int]]:
        """The state with the next samples, decided with all else that waits at this moment.

        Args:
            state: The state before them.
            samples: The next ones in launch order, at least one.
            every: Whether those behind the policy's stop are shown too.

        Returns:
            The state with as many of them as were shown, and how many more to draw after each.

        Raises:
            EngineError: If a signal that the policy reads is not among the first one's.
        """
        shown = [self._shown(samples[0])]
        # Whether the policy comes to the others is not known yet.
        with contextlib.suppress(EngineError):
            shown += map(self._shown, samples[1:])
        loop = asyncio.get_running_loop()
        waiting = _WAITING.setdefault(loop, [])
        if not waiting:
            loop.call_soon(_decide, waiting)
        waiting.append(_Asked(state, shown, every, loop.create_future()))
        return await waiting[-1].told

    def step_now(self, state: State, sample: Sample) -> tuple[State, int]:
        """The state with one more sample, and how many more to draw.

        Raises:
            EngineError: If a signal that the policy reads is not among the sample's.
        """
        (found,) = _stepped([state], [self._shown(sample)])
        return found

    def _shown(self, sample: Sample) -> _Shown:
        score = 0.0 if sample.score is None else sample.score
        whole = sample.answer_id, sample.completion.tokens, sample.completion.index
        return _Shown(whole, [score, *self._read(sample)])

    def _read(self, sample: Sample) -> list[float]:
        """The signals that the policy reads; NaN where there is nothing to take one from."""
        signals = sample.signals
        for name in self._signals:
            # Of a blank completion, or one that went wrong, there may be none.
            if name not in signals and sample.note is None and sample.completion.text.strip():
                how = " (sampler.logprobs)" if name == "mean_logprob" else ""
                raise EngineError(
                    f"problem {sample.problem_id!r}: completion {sample.completion.index} has no "
                    f"signal {name!r}, which the policy reads (it has {', '.join(signals)}); take "
                    f"a sampler and a verifier that give it{how}, or a policy without it"
                )
        return [signals.get(name, math.nan) for name in self._signals]

    def gain(self, state: State) -> float:
        """What one more completion is expected to gain."""
        return float(state.program.gain(state.bits))

    def end(self, state: State) -> tuple[int, Info]:
        """The index to return, and what a person would plot."""
        selected, info = state.program.finish(state.bits)
        return int(selected), info


def _decide(waiting: list[_Asked]) -> None:
    """Decides all that waits."""
    now, by_program = waiting[:], defaultdict(list)
    waiting.clear()
    for one in now:
        by_program[one.state.program].append(one)
    for alike in by_program.values():
        for first in range(0, len(alike), _ROWS):
            together = alike[first : first + _ROWS]
            try:
                found = _shown_to_all(together)
            except Exception as error:
                for one in together:
                    if not one.told.done():
                        one.told.set_exception(error)
                continue
            for one, result in zip(together, found, strict=True):
                if not one.told.done():
                    one.told.set_result(result)


def _shown_to_all(asked: Sequence[_Asked]) -> list[tuple[State, list[int]]]:
    """At most as many as a call has rows, of one program; a call for each completion in turn."""
    states, wanted = [one.state for one in asked], [list[int]() for _ in asked]
    looking = list(range(len(asked)))
    while looking:
        seen = [asked[place].shown[len(wanted[place])] for place in looking]
        found = _stepped([states[place] for place in looking], seen)
        for place, (state, more) in zip(looking, found, strict=True):
            states[place] = state
            wanted[place].append(more)
        looking = [
            place
            for place in looking
            if len(wanted[place]) < len(asked[place].shown)
            and (asked[place].every or wanted[place][-1] > 0)
        ]
    return list(zip(states, wanted, strict=True))


def _stepped(states: Sequence[State], shown: Sequence[_Shown]) -> list[tuple[State, int]]:
    """At most as many as a call has rows, of one program; the rest of the rows are the last's."""
    program, last = states[0].program, len(states) - 1
    bits = np.empty((_ROWS, len(states[0].bits)), np.uint32)
    whole = np.empty((_ROWS, len(shown[0].whole)), np.int32)
    # As a pool holds them, so that replay reads the same numbers.
    read = np.empty((_ROWS, len(shown[0].read)), np.float32)
    for place, (state, one) in enumerate(zip(states, shown, strict=True)):
        bits[place], whole[place], read[place] = state.bits, one.whole, one.read
    for table in (bits, whole, read):
        table[last:] = table[last]
    rows = np.asarray(program.step(bits, whole, read.astype(program.dtype, copy=False)))
    more = rows[:, -1].view(np.int32).tolist()
    return [(State(program, rows[place, :-1]), more[place]) for place in range(len(states))]
