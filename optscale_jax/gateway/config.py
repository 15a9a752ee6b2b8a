"""Configuration of the gateway; its `Attributes:` are what --help prints."""

import dataclasses

from optscale_jax.backends.config import SamplerConfig, VerifierConfig
from optscale_jax.checks import at_least, positive
from optscale_jax.errors import InputError, bad_input
from optscale_jax.live.config import ConfiguredPolicy, RecordedConfig, configured_policy
from optscale_jax.live.limits import Prices
from optscale_jax.study.registry import PolicyConfig

__all__ = [
    "FeedbackConfig",
    "KeyConfig",
    "LimitsConfig",
    "ModelConfig",
    "PricesConfig",
    "ServeConfig",
]


@dataclasses.dataclass(frozen=True)
class LimitsConfig:
    """What one request may take at most; at a limit it gets the best answer so far.

    Attributes:
        seconds: From its arrival, above 0. null: no limit, and so below.
        tokens: Drawn for it, at least 1.
        calls: Completions drawn for it, at least 1.
        money: Spent on it at the model's prices, above 0.
    """

    seconds: float | None = None
    tokens: int | None = None
    calls: int | None = None
    money: float | None = None

    def __post_init__(self) -> None:
        positive(self, "seconds", "money")
        at_least(self, 1, "tokens", "calls")


@dataclasses.dataclass(frozen=True)
class PricesConfig:
    """Prices of a million tokens, in the unit of limits.money.

    Attributes:
        prompt: Of the prompt, for each completion.
        completion: Of completions.
        verifier: Of what the verifier reads and writes.
    """

    prompt: float = 0.0
    completion: float = 0.0
    verifier: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, 0, "prompt", "completion", "verifier")

    def per_token(self) -> Prices:
        """Prices of one token."""
        return Prices(self.prompt / 1e6, self.completion / 1e6, self.verifier / 1e6)


@dataclasses.dataclass(frozen=True)
class FeedbackConfig:
    """What becomes of what users say of a model's answers.

    Attributes:
        file: File that labelled completions are appended to, for train calibration; each model has
            its own. null: no feedback is taken.
        remembered: The last so many requests may be spoken of, at least 1.
    """

    file: str | None = None
    remembered: int = 10_000

    def __post_init__(self) -> None:
        at_least(self, 1, "remembered")


@dataclasses.dataclass(frozen=True)
class KeyConfig:
    """A client's key.

    Attributes:
        name: Whose it is, for logs and metrics.
        env: Environment variable that holds it.
        file: File that holds it and nothing else; give one of the two.
        max_concurrent: Its most requests at once, at least 1. null: the server's.
        requests_per_minute: Its most requests a minute, at least 1. null: no limit.
    """

    name: str = ""
    env: str | None = None
    file: str | None = None
    max_concurrent: int | None = None
    requests_per_minute: int | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "max_concurrent", "requests_per_minute")
        if not self.name or (self.env is None) == (self.file is None):
            raise InputError("a key needs a name, and either env or file")
        # What is given may be the key itself, so it is not shown.
        if self.env is not None and not self.env.isidentifier():
            raise InputError("keys.env must be the name of an environment variable")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model that clients may name, NAME or NAME@POLICY.

    Attributes:
        name: What clients call it. Needed.
        sampler: The model that completions are drawn from; its prompt's template and system message
            are not used, since clients send messages.
        verifier: The model that scores them.
        verify: Whether completions are scored at all; voting does without.
        recorded: A recorded pool in the models' place; a problem's name is its text.
        policies: Who may decide how many are drawn, the first one where a request names none; a
            policy's label, or else its name, is what requests call it.
        limits: What a request may take; it may ask for less.
        prices: What tokens cost.
        max_n: The most answers that a request may ask for, at least 1.
        fields: Further fields of requests that are passed on to the servers.
        extract: How an answer is read, as for solve, or whole: the text itself is the answer. Tool
            calls, and texts of a JSON response_format, are compared as JSON whatever it is.
        equal: When two answers are the same, as for solve.
        equal_seconds: Time limit for reading one answer as mathematics, above 0.
        max_ahead: As for solve.
        seed: At least 0; a request with a seed of its own gets the same completions each time.
        feedback: What users say of its answers.
    """

    name: str = ""
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    verifier: VerifierConfig = dataclasses.field(default_factory=VerifierConfig)
    verify: bool = True
    recorded: RecordedConfig = dataclasses.field(default_factory=RecordedConfig)
    policies: list[PolicyConfig] = dataclasses.field(default_factory=list)
    limits: LimitsConfig = LimitsConfig()
    prices: PricesConfig = PricesConfig()
    max_n: int = 16
    fields: list[str] = dataclasses.field(default_factory=list)
    extract: str = "auto"
    equal: str = "math"
    equal_seconds: float = 5.0
    max_ahead: int | None = None
    seed: int = 0
    feedback: FeedbackConfig = FeedbackConfig()

    def __post_init__(self) -> None:
        at_least(self, 1, "max_n", "max_ahead")
        at_least(self, 0, "seed")
        positive(self, "equal_seconds")

    def configured_policies(self) -> dict[str, ConfiguredPolicy]:
        """The policies by what requests call them.

        Raises:
            InputError: There is none, one cannot be made, or the model cannot do with it.
        """
        found: dict[str, ConfiguredPolicy] = {}
        for index, config in enumerate(self.policies):
            where = f"model {self.name}: policies[{index}]"
            with bad_input(where, (InputError,)):
                one = configured_policy(config)
            if one.policy.couples_problems or one.policy.kind != "parallel":
                raise InputError(f"{where}: {one.name} does not decide on one request by itself")
            if one.policy.uses_scores and not self.verify:
                raise InputError(f"{where}: verify is false, but {one.name} reads scores")
            if one.label in found:
                raise InputError(f"{where}: another one is {one.label} too; give it a label")
            found[one.label] = one
        if not found:
            raise InputError(f"model {self.name}: policies is empty; name at least one")
        return found


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """What is served, to whom, and how much at once.

    Attributes:
        models: The models, at least one; a request that names none gets the first.
        host: Address to listen on.
        port: Port to listen on; 0 = any that is free.
        keys: Who may ask; none: everybody.
        max_concurrent: Most requests at work at once, at least 1.
        max_queued: Most requests that wait for their turn, at least 0; further ones get 429.
        tokens_per_second: Tokens that all requests together may have drawn, above 0: as requests
            come faster, each gets a smaller share of its policy's samples and budget. null: no
            limit.
        heartbeat_seconds: How often a stream says that it is alive while completions are drawn,
            above 0.
        drain_seconds: How long requests may go on after SIGTERM, at least 0; they then get the best
            answer so far.
        max_body_bytes: Longest body of a request, at least 1.
        log_texts: Whether prompts and answers are logged.
    """

    models: list[ModelConfig] = dataclasses.field(default_factory=list)
    host: str = "127.0.0.1"
    port: int = 8100
    keys: list[KeyConfig] = dataclasses.field(default_factory=list)
    max_concurrent: int = 256
    max_queued: int = 256
    tokens_per_second: float | None = None
    heartbeat_seconds: float = 10.0
    drain_seconds: float = 30.0
    max_body_bytes: int = 4 << 20
    log_texts: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "max_concurrent", "max_body_bytes")
        at_least(self, 0, "port", "max_queued", "drain_seconds")
        positive(self, "tokens_per_second", "heartbeat_seconds")
        names = [model.name for model in self.models]
        for name in names:
            if not name or "@" in name or names.count(name) > 1:
                raise InputError(f"models: {name!r} is no name: it is said once, without @")
        files = [one.feedback.file for one in self.models if one.feedback.file is not None]
        if len({*files}) < len(files):
            raise InputError(
                "feedback.file: two models have one; scores of two models teach nothing together"
            )
