"""The gateway without HTTP: models, their policies, and a request from body to answer."""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optscale_jax.answers import EXTRACTORS, Equal, Extract, answers_equal
from optscale_jax.backends.asked import TOOL_CALLS, Asked
from optscale_jax.backends.base import Sampler, Verifier
from optscale_jax.backends.make import make_sampler, make_verifier
from optscale_jax.backends.recorded import RecordedSampler, RecordedVerifier
from optscale_jax.calibration import Origin
from optscale_jax.equivalence import comparison
from optscale_jax.errors import (
    BackendError,
    BadRequestError,
    InputError,
    PoolError,
    ProblemError,
    bad_input,
    did_you_mean,
)
from optscale_jax.files import append_lines
from optscale_jax.gateway.config import ModelConfig, ServeConfig
from optscale_jax.gateway.feedback import Feedback
from optscale_jax.gateway.load import Room, Share
from optscale_jax.gateway.metrics import Metrics, counted
from optscale_jax.gateway.protocol import (
    VLLM_FIELDS,
    ApiError,
    Asking,
    Choice,
    Kind,
    Result,
    canonical,
    parse,
)
from optscale_jax.gateway.tracing import RequestSpan, configured_tracing
from optscale_jax.live.config import SolveConfig
from optscale_jax.live.decider import Decider
from optscale_jax.live.engine import Engine, Solution
from optscale_jax.live.limits import Limits
from optscale_jax.plugins import load_object
from optscale_jax.readers import read_pool
from optscale_jax.records import Completion, Problem, Sample

__all__ = ["Model", "Service"]

log = logging.getLogger("optscale.serve")
# What an engine in this process can do with a request.
_HERE = ("messages", "prompt", "temperature", "top_p", "max_tokens", "stop", "presence_penalty")
_HERE += ("frequency_penalty", "top_k", "min_p", "repetition_penalty", "min_tokens")
_HERE += ("response_format", "logprobs", "top_logprobs")


class Model:
    """One model at work: its sampler and verifier, shared by all requests, and its policies.

    Raises:
        InputError: In one line, if anything of it cannot be made.
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        self.policies = config.configured_policies()
        self.users = 0
        shipped = {**EXTRACTORS, "whole": lambda text: text.strip() or None}
        self.extract: Extract = load_object(config.extract, what="extract", shipped=shipped)
        self._closing = contextlib.ExitStack()
        self.equal: Equal = self._closing.enter_context(
            comparison(config.equal, seconds=config.equal_seconds)
        )
        self.decider = functools.lru_cache(maxsize=256)(self._decider)
        origin = self._made(config)
        for one in self.policies.values():
            one.policy.check_origin(origin)
        server = config.sampler.kind == "server" and config.recorded.pool is None
        known = VLLM_FIELDS if config.sampler.server.vllm or not server else ()
        self.fields = (*known, *config.fields)
        self.here = config.recorded.pool is None and not server

    def _made(self, config: ModelConfig) -> Origin:
        self.verifier: Verifier | None = None
        try:
            if config.recorded.pool is not None:
                pool = read_pool(config.recorded.pool)
                self.sampler: Sampler = RecordedSampler(pool, **config.recorded.pace)
                if config.verify:
                    self.verifier = RecordedVerifier(pool)
                return pool.origin
            for name in ("sampler", *["verifier"] * config.verify):
                if not getattr(config, name).model:
                    raise InputError(f"{name}.model is not given")
            if config.sampler.prompt.prefix:
                raise InputError("sampler.prompt.prefix: clients say how a chat ends")
            self.sampler = make_sampler(config.sampler, seed=config.seed)
            if config.verify:
                self.verifier = make_verifier(config.verifier, seed=config.seed)
        except (BackendError, InputError) as error:
            raise InputError(f"model {config.name}: {error}") from error
        return SolveConfig(
            sampler=config.sampler, verifier=config.verifier, verify=config.verify
        ).origin

    def _decider(self, policy: str, cap: int, budget: float | None) -> Decider:
        rule = self.policies[policy].policy
        given = {"max_samples": cap} | ({} if budget is None else {"budget": budget})
        return Decider(dataclasses.replace(rule, **given))

    def warm_up(self) -> None:
        """Compiles the decisions, so that no request waits for that."""
        for name, one in self.policies.items():
            budget = getattr(one.policy, "budget", None)
            as_asked = None if budget is None else float(budget)
            decide = self.decider(name, int(one.policy.max_samples), as_asked)
            state, _ = decide.start(None, 0, 1)
            sample = Sample("warm-up", Completion(0, "x", 1), 0.5, "x", 0, -1)
            decide.end(decide.step_now(state, sample)[0])

    async def close(self) -> None:
        """Releases the models."""
        await self.sampler.close()
        if self.verifier is not None:
            await self.verifier.close()
        self._closing.close()


class Service:
    """All models, and the room for requests; `metrics` has what became of them.

    Attributes:
        ready: Whether decisions are compiled, and it is not being stopped.
    """

    def __init__(self, config: ServeConfig, make: Callable[[ModelConfig], Model] = Model):
        self._make = make
        self.metrics = Metrics()
        self.room, self.share = Room(self.metrics), Share(self.metrics)
        self.feedback = Feedback(self.metrics)
        self.tracing = configured_tracing()
        self._limits: set[Limits] = set()
        self.models: dict[str, Model] = {}
        self.ready = False
        self._take_over(config, self._started(config))
        self.ready = True

    # Models ---------------------------------------------------------------------------------------

    def _started(self, config: ServeConfig) -> dict[str, Model]:
        if not config.models:
            raise InputError("models is empty; name at least one (--config tiny shows how)")
        models = {}
        for one in config.models:
            if (file := one.feedback.file) is not None:
                with bad_input(f"model {one.name}: feedback.file", (OSError,)):
                    append_lines(file, [])
            running = self.models.get(one.name)
            # By their fields: a rule of one's own gives a configuration a class of its own.
            if running is None or dataclasses.asdict(running.config) != dataclasses.asdict(one):
                running = self._make(one)
                running.warm_up()
            models[one.name] = running
        return models

    def _take_over(self, config: ServeConfig, models: dict[str, Model]) -> list[Model]:
        gone = [one for one in self.models.values() if one not in models.values()]
        self.config, self.models = config, models
        self.room.most, self.room.queued_most = config.max_concurrent, config.max_queued
        self.share.tokens_per_second = config.tokens_per_second
        return gone

    async def reload(self, config: ServeConfig) -> None:
        """Takes over another configuration; requests at work end with the models they began with.

        Raises:
            InputError: It cannot work; the one before stays.
        """
        models = await asyncio.to_thread(self._started, config)
        for one in self._take_over(config, models):
            while one.users:
                await asyncio.sleep(0.05)
            await one.close()

    async def drain(self) -> None:
        """Takes no more requests; those at work may go on for a while, and then answer."""
        self.ready = False
        last = time.monotonic() + self.config.drain_seconds
        while self.room.in_flight and time.monotonic() < last:
            await asyncio.sleep(0.02)
        for limits in list(self._limits):
            limits.cut("shutdown")

    async def close(self) -> None:
        """Releases the models."""
        for one in self.models.values():
            await one.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    def model_named(self, name: str) -> tuple[Model, str]:
        """The model and the policy of MODEL or MODEL@POLICY."""
        model, at, policy = name.partition("@")
        found = self.models.get(model) if model else next(iter(self.models.values()))
        if found is None or (at and policy not in found.policies):
            near = did_you_mean(name, self.names(), "there are")
            message = f"The model {name!r} does not exist{near}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return found, policy or next(iter(found.policies))

    def names(self) -> list[str]:
        """All names that requests may give."""
        return [
            name
            for model, one in self.models.items()
            for name in (model, *(f"{model}@{policy}" for policy in one.policies))
        ]

    # Requests -------------------------------------------------------------------------------------

    def read(self, body: Any, kind: Kind) -> tuple[Asking, Model, str]:
        """What a body asks, of which model, by which policy.

        Raises:
            ApiError: It cannot be answered.
        """
        name = body.get("model") if isinstance(body, dict) else None
        model, policy = self.model_named(name if isinstance(name, str) else "")
        asking = parse(body, kind, model.fields, model.config.sampler.max_tokens)
        policy = asking.options.get("policy", policy)
        if policy not in model.policies:
            near = did_you_mean(policy, model.policies, "there are")
            message = f"The model {model.config.name} has no policy {policy!r}{near}"
            raise ApiError(400, message, param="optscale.policy", code="policy_not_found")
        most = model.config.max_n
        if asking.n > most:
            raise ApiError(400, f"n is {asking.n}; at most {most} answers are given.", param="n")
        if model.here and (other := [one for one in asking.fields if one not in _HERE]):
            message = f"{other[0]} needs a model behind an OpenAI-compatible server; this one runs"
            raise ApiError(400, f"{message} inside the gateway.", param=other[0])
        return asking, model, policy

    def _terms(
        self, asking: Asking, model: Model, name: str, waited: float
    ) -> tuple[Decider, Limits, float]:
        """Who decides on a request, its limits, and its share of its budget."""
        policy, options = model.policies[name].policy, asking.options
        most = int(policy.max_samples)
        cap = _within("max_samples", options.get("max_samples"), most)
        exactly = options.get("n_candidates")
        if exactly is not None:
            cap = exactly = _within("n_candidates", exactly, most)
        share = self.share.granted(time.monotonic(), self.room.waiting)
        if asking.fields.get("temperature", model.config.sampler.temperature) == 0:
            cap = exactly = 1  # they would all be the same
        elif share < 1:
            cap = max(1, math.ceil(cap * share))
            exactly = exactly and cap
        limit = model.config.limits
        seconds = _within("seconds", options.get("seconds"), limit.seconds)
        budget, tokens = getattr(policy, "budget", None), limit.tokens
        if budget is None:
            tokens = _within("budget", options.get("budget"), tokens)
        else:
            budget = _within("budget", options.get("budget"), float(budget)) * share
        limits = Limits(
            seconds=None if seconds is None else max(seconds - waited, 0.0),
            tokens=tokens,
            calls=limit.calls,
            money=limit.money,
            prices=model.config.prices.per_token(),
            exactly=exactly,
        )
        return model.decider(name, cap, budget), limits, share

    async def answer(
        self,
        asking: Asking,
        model: Model,
        name: str,
        who: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Result:
        """Answers a request; when this is cancelled, so is all that is in flight for it.

        Args:
            asking: What it asks.
            model: Of which model.
            name: By which of its policies.
            who: The name of the key that it came with.
            headers: Its own, which may say which trace it belongs to.

        Raises:
            ApiError: There is no answer.
        """
        if self.tracing is None:
            return await self._answer(asking, model, name, who)
        with self.tracing.request(headers or {}, asking.kind, model.config.name, name) as span:
            return await self._answer(asking, model, name, who, span)

    async def _answer(
        self, asking: Asking, model: Model, name: str, who: str, span: RequestSpan | None = None
    ) -> Result:
        began = time.monotonic()
        self._terms(asking, model, name, 0.0)  # refused before it waits
        self.share.arrival(began)
        model.users += 1
        status = "cancelled"
        try:
            wait = asking.options.get("seconds") or model.config.limits.seconds
            async with self.room.taken(wait):
                terms = self._terms(asking, model, name, time.monotonic() - began)
                result = await self._solved(asking, model, name, terms, began, who, span)
            status = "200"
            return result
        except ApiError as error:
            status = str(error.status)
            raise
        except Exception:
            status = "500"
            raise
        finally:
            model.users -= 1
            self.metrics.requests.labels(model.config.name, status).inc()
            took = time.monotonic() - began
            log.info("%s %s@%s %s %.3f s", who or "-", model.config.name, name, status, took)

    async def _solved(
        self,
        asking: Asking,
        model: Model,
        name: str,
        terms: tuple[Decider, Limits, float],
        began: float,
        who: str,
        span: RequestSpan | None,
    ) -> Result:
        (decide, limits, share), request_id = terms, uuid.uuid4().hex
        textual = asking.answers_are_json or "tools" in asking.fields
        engine = Engine(
            sampler=model.sampler,
            verifier=model.verifier,
            policy=model.policies[name].policy,
            decide=decide,
            extract=_reading(model.extract, as_json=asking.answers_are_json),
            equal=answers_equal if textual else model.equal,
            max_ahead=model.config.max_ahead,
        )
        if span is not None:
            engine = span.watched(engine)
        self._limits.add(limits)
        try:
            solution = await engine.solve(_problem(asking, model), limits=limits)
        finally:
            self._limits.discard(limits)
            if limits.ledger is not None:
                self.metrics.spent(model.config.name, limits.ledger)
        ledger, now = solution.decision.ledger, time.monotonic()
        told = (request_id, model.config.name, name, model.policies[name].policy, solution)
        self.metrics.answered(*told, now - began)
        if span is not None:
            span.solved(solution)
        self.share.answered(share, float(ledger.completed + ledger.aborted))
        if solution.selected is None:
            raise _no_answer(solution, limits)
        told = (request_id, model.config.feedback, model.config.name, name, who, solution)
        self.feedback.remember(*told)
        choices = [
            Choice(one.completion, _known(solution, one, limits, share))
            for one in _ranked(solution, decide, asking.n)
        ]
        if self.config.log_texts:
            log.info("%r -> %r", asking.text, choices[0].completion.text)
        return Result(f"{model.config.name}@{name}", choices, _usage(solution, limits), request_id)


def _within(name: str, asked: Any, most: Any) -> Any:
    """What a request may have of what it asks for."""
    if asked is not None and most is not None and asked > most:
        message = f"optscale.{name} is {asked}, above the server's limit of {most:g}; ask for less."
        raise ApiError(400, message, param=f"optscale.{name}", code="limit_exceeded")
    return most if asked is None else asked


def _problem(asking: Asking, model: Model) -> Problem:
    if model.config.recorded.pool is not None:
        return Problem(asking.text, asking.text)
    # Completions are a function of it: a client's seed gives the same ones again.
    told = json.dumps([asking.seed, asking.fields] if asking.seed is not None else time.time_ns())
    return Asked(hashlib.sha256(told.encode()).hexdigest()[:24], asking.text, fields=asking.fields)


def _reading(extract: Extract, *, as_json: bool) -> Extract:
    """How an answer is read: calls of tools are the answer where there are any."""

    def read(text: str) -> str | None:
        _, called, calls = text.rpartition(TOOL_CALLS)
        if called and canonical(calls) is not None:
            return calls
        return canonical(text.rpartition("</think>")[2]) if as_json else extract(text)

    return read


def _ranked(solution: Solution, decide: Decider, n: int) -> Iterator[Sample]:
    """The best n different answers: each what the policy would return without those before."""
    assert solution.selected is not None
    yield solution.selected
    chosen = solution.selected
    rest = [one for one in solution.samples if one.completion.finish_reason != "error"]
    for _ in range(n - 1):
        rest = [
            one
            for one in rest
            if (one.answer_id != chosen.answer_id or one.answer_id == -1)
            and one.completion.text != chosen.completion.text
        ]
        if not rest:
            return
        state, _ = decide.start(None, 0, 1)
        for one in rest:
            state, _ = decide.step_now(state, one)
        index, _ = decide.end(state)
        by_index = {one.completion.index: one for one in rest}
        best = max(rest, key=lambda one: (one.score or 0.0, -one.completion.index))
        chosen = by_index.get(index, best)
        yield chosen


def _known(solution: Solution, one: Sample, limits: Limits, share: float) -> dict[str, Any]:
    decision = solution.decision
    best = one is solution.selected
    known = {
        # What the policy claims, it claims of the answer that it returns.
        "confidence": decision.confidence if best else None,
        "samples": decision.num_samples,
        "stop_reason": decision.stop_reason,
        "scores": [sample.score for sample in solution.samples],
        "selected_index": one.completion.index,
    }
    if share < 1:
        known["budget_share"] = round(share, 4)
    return known


def _usage(solution: Solution, limits: Limits) -> dict[str, Any]:
    """OpenAI's usage, in which the prompt counts once, and the ledger."""
    ledger = solution.decision.ledger
    ended = [one.completion for one in solution.samples]
    prompt = max((one.prompt_tokens for one in ended), default=0)
    drawn = counted(ledger.completed + ledger.aborted)
    known = {name: counted(getattr(ledger, name)) for name in ("completed", "aborted", "verifier")}
    money = limits.cost(
        prompt=prompt * solution.drawn, tokens=drawn or 0, verifier=known["verifier"] or 0
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": drawn or 0,
        "total_tokens": prompt + (drawn or 0),
        "optscale": {"candidates": solution.drawn, **known, "money": money or None},
    }


def _no_answer(solution: Solution, limits: Limits) -> ApiError:
    reason, error = limits.reason, limits.error
    if isinstance(error, PoolError):
        return ApiError(400, str(error), code="not_recorded")
    if isinstance(error, ProblemError) and reason == "sampler_failed":
        refusal = error.__cause__ if isinstance(error.__cause__, BadRequestError) else None
        if refusal is not None:
            code = "context_length_exceeded" if refusal.too_long else "refused"
            said = refusal.reason or "it does not say why"
            return ApiError(400, f"The model's server refuses the request: {said}", code=code)
        return ApiError(400, f"The model cannot take the request: {_without_id(error)}")
    if error is not None:
        log.warning("%s: %s", reason, error)
    if reason in ("seconds", "tokens", "calls", "money"):
        message = f"No completion was ready at the request's limit ({reason}); allow it more."
        return ApiError(504, message, code=reason)
    if reason == "shutdown":
        return ApiError(503, "The server is being stopped; ask again.", retry_after=1.0)
    message = "The model gave no completion that is of use; try again."
    return ApiError(503, message, code=reason or "no_answer", retry_after=1.0)


def _without_id(error: ProblemError) -> str:
    return str(error).partition(": ")[2] or str(error)
