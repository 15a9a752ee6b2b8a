"""The order of the files: each imports only from those above it, and the core stays light.

An import counts wherever it stands: inside a function, which delays it, and under TYPE_CHECKING,
which only a reader and a type checker follow. A circle of either kind is a circle to read.
"""

import ast
import functools
import graphlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "optscale_jax"
COMMANDS = ("eval", "train")
CORE = [
    "typing",
    "values",
    "errors",
    "signals",
    "heap",
    "checks",
    "files",
    "shipped",
    "hub",
    "plugins",
    "special",
    "special_beta",
    "distributions",
    "estimation",
    "empirical_bayes",
    "normal_inverse_gamma",
    "bounds",
    "laws",
    "calibration",
    "policies",
    "derived_signals",
    "records",
    "pool",
    "pool_directory",
    "synthetic",
    "replay",
]
LAYERS = [
    *CORE,
    "answers",
    "equivalence",
    "readers",
    "study",
    "tiny",
    "problems",
    "models",
    "predictor",
    "backends",
    "live",
    "report",
    "gateway",
    "cli",
    "serve",
    # The package's own namespace, optscale_jax/__init__.py, re-exports from all of the others.
    "__init__",
]
# The order of the files inside a folder, where more than "in no circle" is meant.
INSIDE = {
    "readers": [
        "records",
        "builder",
        "layouts",
        "inspect_ai",
        "jsonl",
        "lm_eval",
        "optscale",
        "search_and_learn",
        "live",
        "detect",
        "__init__",
    ],
    # The worker, which knows nothing of the checker, runs the forms by themselves.
    "equivalence": ["forms", "checker", "__init__", "__main__"],
    # Configurations know nothing of what is made from them.
    "backends": [
        "text",
        "prompts",
        "concurrency",
        "lifetimes",
        "cores",
        "families",
        "base",
        "asked",
        "__init__",
        "config",
        "recorded",
        "events",
        "pacing",
        "servers",
        "vllm_models",
        "vllm_engine",
        "prm",
        "generative",
        "openai_sampler",
        "server_verifier",
        "vllm_sampler",
        "vllm_verifier",
        "make",
    ],
    "live": [
        "__init__",
        "runs",
        "limits",
        "decider",
        "engine",
        "story",
        "inspect_ai",
        "config",
        "models",
        "session",
        "shards",
    ],
}
CORE_DEPENDENCIES = {"jax", "tensorflow_probability", "numpy", "jaxtyping"}
# Imported inside its functions, where a path names a hub or a pool directory.
ALONE = {f"{PACKAGE}.hub": "huggingface_hub", f"{PACKAGE}.pool_directory": "pyarrow"}
HEAVY = [
    "torch",
    "transformers",
    "vllm",
    "tensorflow",
    "matplotlib",
    "pandas",
    "jsonargparse",
    "optax",
    "orbax",
    "flax",
    "scipy.optimize",
    "scipy.stats",
    "huggingface_hub",
    "orjson",
    "pyarrow",
]


def sources(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@functools.cache
def file_of(module: str) -> str | None:
    """The file that a module is, as a dotted name; that of a folder is its __init__."""
    path = ROOT.joinpath(*module.split("."))
    if path.with_suffix(".py").is_file():
        return module
    return f"{module}.__init__" if (path / "__init__.py").is_file() else None


def imported(path: Path, text: str) -> Iterator[tuple[str, str | None]]:
    """Yields (module, name) of every import in a file; the name is None for `import module`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def files_imported(path: Path, text: str) -> Iterator[str]:
    """Yields the files of the repository that a file imports, as dotted names."""
    for module, name in imported(path, text):
        if module.split(".")[0] in (PACKAGE, *COMMANDS, "tests"):
            yield (name and file_of(f"{module}.{name}")) or file_of(module) or module


def is_above(first: str, second: str, order: list[str]) -> bool:
    return first in order and second in order and order.index(first) < order.index(second)


def layer_violations(path: Path, text: str) -> list[str]:
    own = module_of(path)
    _, layer, *inner = own.split(".")
    if layer not in LAYERS:
        return [f"{layer} has no place in LAYERS"]
    found = []
    for other in files_imported(path, text):
        top, *rest = other.split(".")
        if top != PACKAGE:
            found.append(f"{own} imports {other}")
        elif rest[0] != layer and not is_above(rest[0], layer, LAYERS):
            found.append(f"{own} imports {other}, whose layer is not above it")
        elif (
            rest[0] == layer
            and layer in INSIDE
            and rest[1] != inner[0]
            and not is_above(rest[1], inner[0], INSIDE[layer])
        ):
            found.append(f"{own} imports {other}, which is not above it in its folder")
    return found


def command_violations(path: Path, text: str) -> list[str]:
    """What a command imports beside the library; the benches share a folder and its parts."""
    own = module_of(path)
    benches = "eval.bench."
    return [
        other
        for other in files_imported(path, text)
        if not other.startswith((PACKAGE, benches) if own.startswith(benches) else PACKAGE)
    ]


def circle(imports: dict[str, set[str]]) -> list[str]:
    """The files of a circle; none where there is no circle."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def dependency_violations(path: Path, text: str) -> list[str]:
    found = []
    for module, name in imported(path, text):
        top = module.split(".")[0]
        full = f"{module}.{name}" if name else module
        allowed = any(full == one or full.startswith(f"{one}.") for one in CORE_DEPENDENCIES)
        allowed |= ALONE.get(module_of(path)) == top
        if top != PACKAGE and top not in sys.stdlib_module_names and not allowed:
            found.append(f"{module_of(path)} imports {full}")
    return found


@pytest.mark.parametrize("path", sources(PACKAGE), ids=shown)
def test_module_imports_only_from_those_above_it(path):
    assert layer_violations(path, path.read_text()) == []


@pytest.mark.parametrize("path", sources(*COMMANDS), ids=shown)
def test_command_imports_only_the_library(path):
    assert command_violations(path, path.read_text()) == []


def test_imports_among_files_are_in_no_circle():
    imports = {
        module_of(path): {*files_imported(path, path.read_text())}
        for path in sources(PACKAGE, *COMMANDS)
    }
    assert len(imports) > 80
    assert circle(imports) == []


def test_circle_is_noticed_and_shown():
    imports = {"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": set()}
    assert set(circle(imports)) == {"a", "b", "c"}


@pytest.mark.parametrize(
    "path",
    [path for path in sources(PACKAGE) if module_of(path).split(".")[1] in CORE],
    ids=shown,
)
def test_core_imports_only_its_few_dependencies(path):
    assert dependency_violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pool.py", "from optscale_jax.replay import replay"),
        ("pool.py", "from optscale_jax import replay"),
        ("pool.py", "import optscale_jax.study.metrics"),
        ("pool.py", "from optscale_jax import Pool"),
        ("pool.py", "def f():\n  from optscale_jax.study import metrics"),
        ("policies/first_hit.py", "from ..replay import replay"),
        ("policies/first_hit.py", "from .. import pool"),
        ("backends/config.py", "from optscale_jax.backends.prm import PrmVerifier"),
        ("backends/config.py", "from . import make"),
        ("report/table.py", "from eval import replay"),
        ("unheard_of.py", "import math"),
    ],
)
def test_wrong_layer_is_noticed(file, line):
    assert layer_violations(ROOT / PACKAGE / file, line)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("policies/first_hit.py", "from .contract import Policy"),
        ("policies/first_hit.py", "from ..bounds import required_samples"),
        ("policies/first_hit.py", "from optscale_jax import bounds"),
        ("backends/prm.py", "from optscale_jax.backends.config import VerifierConfig"),
        ("__init__.py", "from optscale_jax.pool import Pool"),
    ],
)
def test_right_layer_is_accepted(file, line):
    assert layer_violations(ROOT / PACKAGE / file, line) == []


@pytest.mark.parametrize(
    "line", ["from eval import replay", "import train.tiny", "from . import solve"]
)
def test_command_that_imports_another_is_noticed(line):
    assert command_violations(ROOT / "eval" / "report.py", line)


@pytest.mark.parametrize(
    "line", ["import scipy", "from flax import linen", "import flax", "def f():\n  import torch"]
)
def test_wrong_dependency_is_noticed(line):
    assert dependency_violations(ROOT / PACKAGE / "pool.py", line)


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        ("cli.live", "jax"),
        ("gateway.server", "uvicorn"),
        ("live.shards", "ray"),
        ("serve.ray", "ray"),
    ],
)
def test_importing_what_decides_leaves_jax_to_begin(module, needs):
    # `decide_on_the_cpu`, which these call next, would change nothing later, without a word.
    pytest.importorskip(needs)
    script = (
        f"import {PACKAGE}.{module}\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert run.stdout.split() == ["False"]


def test_importing_the_core_loads_nothing_heavy():
    core = [f"{PACKAGE}.{name}" for name in CORE if importlib.util.find_spec(f"{PACKAGE}.{name}")]
    script = (
        "import importlib, json, sys\n"
        f"[importlib.import_module(name) for name in {core!r}]\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert json.loads(run.stdout) == []
