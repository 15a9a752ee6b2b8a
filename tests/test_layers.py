"""The order of the modules: each imports only from those above it, and the core stays light."""

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "optscale_jax"
CORE = [
    "typing",
    "special",
    "special_beta",
    "distributions",
    "estimation",
    "empirical_bayes",
    "bounds",
    "laws",
    "policies",
    "pool",
    "synthetic",
    "replay",
]
LAYERS = [
    *CORE,
    "metrics",
    "statistics",
    "tuning",
    "calibration",
    "law_comparison",
    "answers",
    "equivalence",
    "readers",
    "models",
    "tiny",
    "problems",
    "predictor",
    "backends",
    "runs",
    "engine",
    "report",
    # The package's own namespace, optscale_jax/__init__.py, re-exports from all of the others.
    "__init__",
]
CORE_DEPENDENCIES = {"jax", "tensorflow_probability", "numpy", "jaxtyping"}
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
    "ijson",
    "orjson",
]


def modules() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


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


def layer_violations(path: Path, text: str) -> list[str]:
    own = layer_of(path)
    if own not in LAYERS:
        return [f"{own} has no place in LAYERS"]
    found = []
    for module, name in imported(path, text):
        top, *rest = module.split(".")
        if top in ("eval", "train", "tests"):
            found.append(f"{own} imports {module}")
        if top != PACKAGE:
            continue
        layer = rest[0] if rest else name if name in LAYERS else "__init__"
        above = layer in LAYERS and LAYERS.index(layer) < LAYERS.index(own)
        if layer != own and not above:
            found.append(f"{own} imports {layer}, which is not above it")
    return found


def dependency_violations(path: Path, text: str) -> list[str]:
    found = []
    for module, name in imported(path, text):
        top = module.split(".")[0]
        full = f"{module}.{name}" if name else module
        allowed = any(full == one or full.startswith(f"{one}.") for one in CORE_DEPENDENCIES)
        if top != PACKAGE and top not in sys.stdlib_module_names and not allowed:
            found.append(f"{layer_of(path)} imports {full}")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT / PACKAGE)))
def test_module_imports_only_from_those_above_it(path):
    assert layer_violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if layer_of(path) in CORE],
    ids=lambda path: str(path.relative_to(ROOT / PACKAGE)),
)
def test_core_imports_only_its_few_dependencies(path):
    assert dependency_violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pool.py", "from optscale_jax.replay import replay"),
        ("pool.py", "from optscale_jax import replay"),
        ("pool.py", "import optscale_jax.metrics"),
        ("pool.py", "from optscale_jax import Pool"),
        ("policies/first_hit.py", "from ..replay import replay"),
        ("policies/first_hit.py", "from .. import pool"),
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
        ("__init__.py", "from optscale_jax.pool import Pool"),
    ],
)
def test_right_layer_is_accepted(file, line):
    assert layer_violations(ROOT / PACKAGE / file, line) == []


@pytest.mark.parametrize(
    "line", ["import scipy", "from flax import linen", "import flax", "def f():\n  import torch"]
)
def test_wrong_dependency_is_noticed(line):
    assert dependency_violations(ROOT / PACKAGE / "pool.py", line)


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
