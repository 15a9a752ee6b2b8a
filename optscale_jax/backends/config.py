"""Configurations of samplers and verifiers; `make` makes what they describe.

Their `Attributes:` are what the commands' --help prints.
"""

import dataclasses
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from optscale_jax.backends.families import FORMATS
from optscale_jax.checks import at_least, one_of, positive, within
from optscale_jax.errors import InputError, bad_input

__all__ = [
    "EngineConfig",
    "JudgeConfig",
    "PromptConfig",
    "SamplerConfig",
    "ServerConfig",
    "VerifierConfig",
]


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """A vLLM engine in this process.

    Attributes:
        device: Where it runs. "gpu" refuses to start where vLLM finds none; "auto" takes what vLLM
            was built for.
        dtype: Of the weights. "auto": the checkpoint's on a GPU, float32 on a CPU.
        max_model_len: Longest prompt and completion together, in tokens. null: the model's.
        max_num_seqs: Most sequences in one batch, at least 1. null: vLLM's choice.
        max_num_batched_tokens: Most tokens in one step, at least 1. null: vLLM's choice.
        gpu_memory_utilization: Share of a GPU's memory that the engine takes, weights included, in
            (0, 1]. A sampler and a verifier on one GPU share it: together below 1.
        tensor_parallel_size: GPUs that one replica's weights are split over, at least 1.
        data_parallel_size: Replicas, at least 1.
        enforce_eager: Whether to do without compilation and CUDA graphs. null: only on a CPU, where
            compiling a small model takes longer than it saves.
        cpu_kv_cache_gib: Memory for keys and values on a CPU, in GiB, at least 1.
        cpu_threads: Cores of a CPU that the engine's threads are bound to, such as "0-3"; "nobind"
            leaves that to the system, "auto" to vLLM, which takes all cores but one.
        trust_remote_code: Whether to run Python code that comes with the model.
        extra: Further arguments of vLLM's AsyncEngineArgs, by name.
    """

    device: Literal["auto", "cpu", "gpu"] = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    enforce_eager: bool | None = None
    cpu_kv_cache_gib: int = 1
    cpu_threads: str = "auto"
    trust_remote_code: bool = False
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least(
            self,
            1,
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "tensor_parallel_size",
            "data_parallel_size",
            "cpu_kv_cache_gib",
        )
        within(self, "(0, 1]", "gpu_memory_utilization")


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """OpenAI-compatible servers that hold the model, such as `vllm serve`.

    Attributes:
        base_urls: One or many, such as http://localhost:8000; all of them serve the model, and the
            least busy one that answers gets the next request. One with a path is taken as it is,
            such as https://HOST/api/paas/v4; to one without, /v1 is added.
        api_key_env: Environment variable that holds the key; null: no key is sent.
        auth_header: Header that the key is sent in: as a bearer's in Authorization, as it is in any
            other, such as Azure's api-key.
        concurrency: Most requests in flight at one server, at least 1.
        connect_timeout: Seconds for a connection to open, above 0.
        read_timeout: Seconds without a byte of an answer after which a request has failed, above 0.
            A busy server queues requests, so this is minutes.
        total_timeout: Seconds after which a request has failed whatever is said meanwhile, above 0.
        attempts: Times that a request is tried in all, at least 1. 429 does not count as one.
        backoff: Seconds before the second try, doubled for each later one up to a minute and drawn
            at random below that; at least 0. A server's Retry-After wins.
        vllm: Whether they are vLLM's, which know more than OpenAI's interface: how many tokens an
            unfinished completion has, top_k, chat templates, process reward models.
    """

    base_urls: list[str] = dataclasses.field(default_factory=list)
    api_key_env: str | None = None
    auth_header: str = "Authorization"
    concurrency: int = 256
    connect_timeout: float = 10.0
    read_timeout: float = 600.0
    total_timeout: float = 3600.0
    attempts: int = 6
    backoff: float = 0.5
    vllm: bool = True

    def __post_init__(self) -> None:
        at_least(self, 1, "concurrency", "attempts")
        positive(self, "connect_timeout", "read_timeout", "total_timeout")
        at_least(self, 0, "backoff")
        if self.api_key_env is not None and not self.api_key_env.isidentifier():
            # What is given may be the key itself, so it is not shown.
            raise InputError("api_key_env must be the name of an environment variable")
        if not re.fullmatch(r"[A-Za-z][A-Za-z-]{,39}", self.auth_header):
            raise InputError("auth_header must be the name of a header, such as api-key")
        for url in self.base_urls:
            _check_url(url)


def _check_url(url: str) -> None:
    # What may be secret in it, a password or a key, is not shown.
    shown = re.sub(r"^(\w+://)?[^/]*@", r"\1", url).partition("?")[0]
    if not url.startswith(("http://", "https://")):
        raise InputError(f"base_urls has {shown!r}; it must begin with http:// or https://")
    try:
        parts = urlsplit(url)
        whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise InputError(f"base_urls has {shown!r}, which is no URL") from None
    if not whole or not url.isprintable() or " " in url:
        raise InputError(f"base_urls has {shown!r}, which is no URL")
    if "@" in parts.netloc or re.search(r"(?i)(key|token|secret|password|sig)\w*=", parts.query):
        raise InputError(
            f"base_urls has a password or a key in {shown!r}, and would be kept with the run; "
            "give it in an environment variable, as api_key_env"
        )


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    r"""How a problem becomes a prompt.

    Attributes:
        template: The user's message; {problem} stands for the problem's text.
        system: The system message; null: none.
        chat: Whether to put the messages into the model's chat template; without it the prompt is
            the template alone, for base models.
        chat_template: Jinja template to use instead of the tokenizer's, or the path of a file that
            holds it; null: the tokenizer's.
        chat_template_args: Arguments of the chat template, by name, such as enable_thinking.
        prefix: Text that the answer is made to begin with, such as "<think>\n"; it is part of the
            prompt, not of the completion.
    """

    template: str = "{problem}"
    system: str | None = None
    chat: bool = True
    chat_template: str | None = None
    chat_template_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    prefix: str = ""

    def __post_init__(self) -> None:
        if "{problem}" not in self.template:
            raise InputError(f"template is {self.template!r}; {{problem}} must stand in it")

    def messages(self, text: str) -> list[dict[str, str]]:
        """The chat messages for a problem's text."""
        # Not str.format: a template may well hold LaTeX's braces.
        user = {"role": "user", "content": self.template.replace("{problem}", text)}
        return [user] if self.system is None else [{"role": "system", "content": self.system}, user]


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The model that completions are drawn from.

    Attributes:
        kind: "vllm" for an engine in this process, "server" for OpenAI-compatible servers.
        model: Folder of a checkpoint, one inside an installed Python package as
            package:NAME/FOLDER, or its name on the Hugging Face hub; for servers, the name that
            they serve it by. Needed.
        revision: Branch, tag or commit on the hub; null: the main branch.
        tokenizer: Folder or hub name of the tokenizer; null: the model's.
        prompt: How a problem becomes a prompt.
        temperature: At least 0; 0 is greedy, and all completions of a problem are then the same.
        top_p: Sampling is from the smallest set of tokens with this probability, in (0, 1].
        top_k: Sampling is from this many likeliest tokens, at least 1; 0 for all.
        max_tokens: Longest completion, at least 1.
        stop: Texts at which a completion ends.
        logprobs: Whether to ask for the log-probabilities of the tokens drawn, whose mean is a
            signal beside the score; it costs a little.
        extra: Further fields of vLLM's SamplingParams or of the server's request, by name.
        engine: The engine, for "vllm".
        server: The servers, for "server".
    """

    kind: Literal["vllm", "server"] = "vllm"
    model: str = ""
    revision: str | None = None
    tokenizer: str | None = None
    prompt: PromptConfig = PromptConfig()
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    max_tokens: int = 4096
    stop: list[str] = dataclasses.field(default_factory=list)
    logprobs: bool = False
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    engine: EngineConfig = EngineConfig()
    server: ServerConfig = ServerConfig()

    def __post_init__(self) -> None:
        at_least(self, 0, "top_k")
        at_least(self, 1, "max_tokens")
        at_least(self, 0, "temperature")
        within(self, "(0, 1]", "top_p")


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """A language model asked whether a completion is correct.

    Attributes:
        template: What it is asked; {problem} and {completion} stand for the two texts.
        system: The system message; null: none.
        samples: Verdicts drawn for each completion, at least 1; the score is the mean of what each
            gives for the probability of "correct" at the place of its last word.
        temperature: At least 0.
        top_p: In (0, 1].
        max_tokens: Longest verdict, at least 1.
        verdict: Regular expression whose last match in a verdict is the answer.
        positive: What that match says, regardless of case, where the completion is correct.
        negative: What it says where the completion is wrong.
        top_logprobs: How many of the likeliest tokens in a place are asked for, at least 1, of most
            servers at most 20. null: none, for servers that refuse to say; a verdict then counts
            1 or 0.
    """

    template: str = (
        "Problem:\n{problem}\n\nSolution:\n{completion}\n\n"
        "Check the solution step by step. End with one line that says either "
        '"Verdict: correct" or "Verdict: incorrect".'
    )
    system: str | None = None
    samples: int = 4
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 2048
    verdict: str = r"(?i)verdict\W*(correct|incorrect)"
    positive: str = "correct"
    negative: str = "incorrect"
    top_logprobs: int | None = 20

    def __post_init__(self) -> None:
        at_least(self, 1, "samples", "max_tokens", "top_logprobs")
        at_least(self, 0, "temperature")
        within(self, "(0, 1]", "top_p")
        for place in ("{problem}", "{completion}"):
            if place not in self.template:
                raise InputError(f"template has no {place}; it must stand in it")


@dataclasses.dataclass(frozen=True)
class VerifierConfig:
    r"""The model that scores completions.

    Attributes:
        kind: "prm" for a process reward model, "generative" for a language model as a judge.
        backend: "vllm" for an engine in this process, "server" for servers that hold the model.
        model: Folder of a checkpoint, one inside an installed Python package as
            package:NAME/FOLDER, or its name on the Hugging Face hub; for servers, the name that
            they serve it by. Needed.
        revision: Branch, tag or commit on the hub; null: the main branch.
        tokenizer: Folder or hub name of the tokenizer; null: the model's.
        family: How the reward model wants problem and steps written, and what its outputs are: a
            name of optscale_jax/backends/families.py, or "reward" for any model of one label.
        steps: Regular expression at which a completion is split into steps, such as "\n+"; "" for
            nowhere. null: the family's, blank lines or single line ends.
        aggregate: What of the step scores is the completion's score: their mean (the paper's), the
            last, the least, or their product.
        after_think: Whether to score only what follows a completion's last </think>, for models
            that think aloud for longer than the verifier can read.
        judge: The judge's prompt and sampling, for "generative".
        engine: The engine, for "vllm".
        server: The servers, for "server".
    """

    kind: Literal["prm", "generative"] = "prm"
    backend: Literal["vllm", "server"] = "vllm"
    model: str = ""
    revision: str | None = None
    tokenizer: str | None = None
    family: str = "qwen2.5-math-prm"
    steps: str | None = None
    aggregate: Literal["mean", "last", "min", "product"] = "mean"
    after_think: bool = False
    judge: JudgeConfig = JudgeConfig()
    engine: EngineConfig = EngineConfig()
    server: ServerConfig = ServerConfig()

    def __post_init__(self) -> None:
        one_of(self, FORMATS, "family")
        if self.steps:
            with bad_input("steps", (re.error,)):
                re.compile(self.steps)
