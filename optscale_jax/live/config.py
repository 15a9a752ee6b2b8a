"""Configurations of live runs: what to ask which models, who decides, and where to keep it.

Their `Attributes:` are what the commands' --help prints. `session.run_live` knows none of them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from optscale_jax.backends.config import SamplerConfig, VerifierConfig
from optscale_jax.calibration import Origin
from optscale_jax.checks import at_least, positive
from optscale_jax.errors import InputError
from optscale_jax.policies import Policy
from optscale_jax.study.allocation import Budget
from optscale_jax.study.pools import ReadConfig
from optscale_jax.study.registry import PolicyConfig, expand

__all__ = [
    "VOLATILE",
    "ConfiguredPolicy",
    "LiveConfig",
    "RayConfig",
    "RecordedConfig",
    "SampleConfig",
    "SolveConfig",
    "configured_policy",
]

# Nothing that is drawn, and nothing that is decided, depends on these.
VOLATILE = (
    "out",
    "repair",
    "max_in_flight",
    "max_ahead",
    "ray",
    "recorded.seconds_per_token",
    "recorded.max_num_seqs",
    "sampler.server",
    "verifier.server",
    *(
        f"{model}.engine.{field}"
        for model in ("sampler", "verifier")
        for field in (
            "device",
            "max_num_seqs",
            "max_num_batched_tokens",
            "gpu_memory_utilization",
            "tensor_parallel_size",
            "data_parallel_size",
            "enforce_eager",
            "cpu_kv_cache_gib",
            "cpu_threads",
        )
    ),
)


class ConfiguredPolicy(NamedTuple):
    """A policy as a configuration gives it.

    Attributes:
        name: Its factory's name.
        label: Its name in tables.
        setting: All its arguments.
        policy: The policy.
    """

    name: str
    label: str
    setting: Mapping[str, Any]
    policy: Policy


@dataclasses.dataclass(frozen=True)
class RecordedConfig(ReadConfig):
    """A recorded pool in the place of problems, sampler and verifier.

    Attributes:
        pool: Path of a pool of any format, or of a run's directory. null: the models are asked.
            The fields beside say how to read it.
        seconds_per_token: How long a token takes, at least 0.
        max_num_seqs: Most completions under way at once, at least 1; others wait, as before a
            server that is full. null: any number.
    """

    pool: str | None = None
    seconds_per_token: float = 0.0
    max_num_seqs: int | None = None

    def __post_init__(self) -> None:
        at_least(self, 0, "seconds_per_token")
        at_least(self, 1, "max_num_seqs")

    @property
    def pace(self) -> dict[str, Any]:
        """What the sampler in the model's place is told of the model's."""
        return {"seconds_per_token": self.seconds_per_token, "max_num_seqs": self.max_num_seqs}


@dataclasses.dataclass(frozen=True)
class RayConfig:
    """Where a run's shards are at work: actors of Ray, each with its own sampler and verifier.

    Attributes:
        address: auto, the cluster that this machine is part of; local, one for this run, on this
            machine; HOST:PORT of a cluster's head, or ray://HOST:PORT. null: no Ray.
        shards: How many, at least 1.
        gpus_per_shard: GPUs that each has to itself, at least 0.
        cpus_per_shard: CPUs that Ray counts for each, at least 0.
        restarts: How often each is started again when it has died, at least 0.
    """

    address: str | None = None
    shards: int = 1
    gpus_per_shard: float = 0.0
    cpus_per_shard: float = 1.0
    restarts: int = 16

    def __post_init__(self) -> None:
        at_least(self, 1, "shards", of="ray.")
        at_least(self, 0, "gpus_per_shard", "cpus_per_shard", "restarts", of="ray.")

    def __str__(self) -> str:
        many = "s" if self.shards > 1 else ""
        return "one process" if self.address is None else f"{self.shards} shard{many}"


@dataclasses.dataclass(frozen=True)
class LiveConfig:
    """What to ask which models, and where to keep it.

    Attributes:
        problems: Benchmark (math500, gsm8k, aime24, aime25 or amc23, from the Hugging Face hub);
            path of a JSON lines file with problem or question, answer and, if need be, id; or
            arithmetic-SEED for problems of the small world, 400 if there is no limit. Needed,
            unless a recorded pool stands in.
        limit: How many problems to take, from the first on, at least 1. null: all.
        sampler: The model that completions are drawn from.
        verifier: The model that scores them.
        verify: Whether completions are scored at all; voting does without.
        recorded: A recorded pool to take the place of the models.
        extract: How a completion's answer is read: auto, the last that it commits to in any of the
            usual forms; boxed; last_number; or module:function of its text.
        equal: When two answers are the same: math, by algebra; text, numbers by value and all else
            by its normalised text; or module:function of the gold answer and the answer.
        equal_seconds: Time limit for reading one answer as mathematics, above 0.
        seed: Of the run, at least 0; a completion depends on it, its problem's id and its index.
        max_in_flight: Problems at work at once, at least 1.
        max_ahead: Most completions of a problem to draw beyond those that its policy has seen, at
            least 1. null: as many as it asks for.
        ray: Where shards of the run are at work, each up to max_in_flight problems at once.
        repair: Whether to set aside what is damaged in the directory of the run, and to draw again
            what is missing then; otherwise it is refused.
        out: Directory of the run. One that was cut off goes on where it was.
    """

    problems: str | None = None
    limit: int | None = None
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    verifier: VerifierConfig = dataclasses.field(default_factory=VerifierConfig)
    verify: bool = True
    recorded: RecordedConfig = RecordedConfig()
    extract: str = "auto"
    equal: str = "math"
    equal_seconds: float = 5.0
    seed: int = 0
    max_in_flight: int = 256
    max_ahead: int | None = None
    ray: RayConfig = RayConfig()
    repair: bool = False
    out: str = "runs/live"

    def __post_init__(self) -> None:
        at_least(self, 1, "limit", "max_in_flight", "max_ahead")
        at_least(self, 0, "seed")
        positive(self, "equal_seconds")

    @property
    def priors_file(self) -> str | None:
        """The file with a prior for each problem; None = none."""
        return None

    @property
    def origin(self) -> Origin:
        """Who makes completions and scores, where no recorded pool stands in."""
        verifier = self.verifier
        return Origin(
            verifier.model if self.verify else None,
            verifier.aggregate if self.verify and verifier.kind == "prm" else None,
            self.sampler.model,
        )

    @property
    def shared_budget(self) -> Budget | None:
        """What all problems may spend together; None = as much as the policy asks for."""
        return None

    def configured_policy(self) -> ConfiguredPolicy:
        """The policy that decides how many completions a problem gets.

        Raises:
            InputError: If it cannot be made, or has several settings.
        """
        raise NotImplementedError


# Every field has a default, so that --help and overrides work without a file.
@dataclasses.dataclass(frozen=True)
class SolveConfig(LiveConfig):
    """Who decides, beside what to ask which models.

    Attributes:
        policy: The policy, with one value for each argument.
        priors: JSON lines file with a prior for each problem, as eval.predict writes it:
            problem_id, loc, scale, loc_sd, scale_sd and the tokens that predicting took. null: the
            policy's own prior, or none.
        budget: Tokens that the whole run may spend, on completions and verifier, at least 1: each
            goes to the problem where the policy says that it gains most. null: each problem by
            itself.
        batch: With a budget, most completions under way at once, at least 1, in the place of
            max_in_flight and max_ahead.
        out: Directory of the run. One that was cut off goes on where it was.
    """

    policy: PolicyConfig = dataclasses.field(default_factory=lambda: PolicyConfig("optscale"))
    priors: str | None = None
    budget: int | None = None
    batch: int = 64
    out: str = "runs/solve"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "budget", "batch")

    @property
    def priors_file(self) -> str | None:
        """The file of priors: that of `priors`, or else the policy's own (`policy.prior.file`)."""
        return self.priors or self.policy.prior.file

    @property
    def shared_budget(self) -> Budget | None:
        """That of `budget` and `batch`."""
        return None if self.budget is None else Budget(self.budget, self.batch)

    def configured_policy(self) -> ConfiguredPolicy:
        """The policy of `policy`."""
        return configured_policy(self.policy)


@dataclasses.dataclass(frozen=True)
class SampleConfig(LiveConfig):
    """How many completions, beside what to ask which models.

    Attributes:
        n: Completions of each problem, at least 1.
        out: Directory of the run. One that was cut off goes on where it was.
    """

    n: int = 64
    out: str = "runs/sample"

    def configured_policy(self) -> ConfiguredPolicy:
        """Best-of-N, whose completions are the pool."""
        # Without scores nothing says which is best, so the most frequent answer is returned.
        selection = "best_score" if self.verify else "majority"
        best = PolicyConfig("best_of_n", n=self.n, selection=selection)
        return configured_policy(best, "n")


def configured_policy(config: Any, where: str = "policy") -> ConfiguredPolicy:
    """The policy of a `PolicyConfig`, or of one with the arguments of rules of one's own.

    Raises:
        InputError: If it cannot be made, or has several settings.
    """
    entries = expand(config, where)
    if len(entries) > 1 or len(entries[0].settings) > 1:
        raise InputError("policy: a list stands for several settings; a live run has one")
    (entry,) = entries
    return ConfiguredPolicy(entry.name, entry.label, entry.settings[0], entry.policies[0])
