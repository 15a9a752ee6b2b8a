"""Makes samplers and verifiers of their configurations; loads only what one asks for."""

import dataclasses

from optscale_jax.backends.base import Sampler, Verifier
from optscale_jax.backends.config import PromptConfig, SamplerConfig, VerifierConfig
from optscale_jax.shipped import located

__all__ = ["make_sampler", "make_verifier"]


def make_sampler(config: SamplerConfig, *, seed: int) -> Sampler:
    """Makes the sampler of a configuration; an engine of vLLM starts here, which takes a while.

    Args:
        config: The configuration.
        seed: Of the run; completions are a function of it, the problem's id and their index.

    Returns:
        The sampler; close it when done.

    Raises:
        BackendError: If it cannot be made, in one line that says why.
    """
    config = dataclasses.replace(config, model=located(config.model))
    if config.kind == "server":
        from optscale_jax.backends.openai_sampler import OpenAISampler

        return OpenAISampler(config, seed=seed)
    from optscale_jax.backends.vllm_sampler import VllmSampler

    return VllmSampler(config, seed=seed)


def make_verifier(config: VerifierConfig, *, seed: int) -> Verifier:
    """Makes the verifier of a configuration; an engine of vLLM starts here, which takes a while.

    Args:
        config: The configuration.
        seed: Of the run; only a judge's verdicts depend on it.

    Returns:
        The verifier; close it when done.

    Raises:
        BackendError: If it cannot be made, in one line that says why.
    """
    config = dataclasses.replace(config, model=located(config.model))
    if config.kind == "generative":
        from optscale_jax.backends.generative import GenerativeVerifier

        return GenerativeVerifier(config.judge, make_sampler(_judging(config), seed=seed))
    from optscale_jax.backends.prm import PrmVerifier

    if config.backend == "server":
        from optscale_jax.backends.server_verifier import ServerPooler

        return PrmVerifier(config, ServerPooler(config))
    from optscale_jax.backends.vllm_verifier import VllmPooler

    return PrmVerifier(config, VllmPooler(config))


def _judging(config: VerifierConfig) -> SamplerConfig:
    """The sampler that asks a judge."""
    judge = config.judge
    most = judge.top_logprobs
    # OpenAI's chat interface, and vLLM's own way.
    chat = {"logprobs": True, "top_logprobs": most}
    asked = chat if config.backend == "server" else {"logprobs": most}
    return SamplerConfig(
        kind=config.backend,
        model=config.model,
        revision=config.revision,
        tokenizer=config.tokenizer,
        prompt=PromptConfig(system=judge.system),
        temperature=judge.temperature,
        top_p=judge.top_p,
        max_tokens=judge.max_tokens,
        extra=asked if most else {},
        engine=config.engine,
        server=config.server,
    )
