"""Files that come with a package, wherever it is installed: configurations by name, and data.

    shipped_config("demo", "replay")             configs/replay/demo.yaml
    located("package:optscale_jax/tiny/pool.npz")    a file or folder inside any installed package

The repository keeps configurations in `configs/`, a wheel inside the package.
"""

import importlib.util
from pathlib import Path

from optscale_jax.errors import InputError, did_you_mean

__all__ = ["SCHEME", "located", "shipped_config"]

_HERE = Path(__file__).resolve().parent
_INSIDE = _HERE / "configs"
_CONFIGS = _INSIDE if _INSIDE.is_dir() else _HERE.parent / "configs"
SCHEME = "package:"


def located(path: str) -> str:
    """Where `package:NAME/PATH` is; anything else as it was given.

    Raises:
        InputError: If there is no such package.
    """
    if not path.startswith(SCHEME):
        return path
    package, _, inside = path.removeprefix(SCHEME).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        pip = package.replace("_", "-")
        raise InputError(f"{path}: the package is not installed: pip install {pip}")
    return str(Path(spec.submodule_search_locations[0]) / inside)


def shipped_config(name: str, folder: str = "") -> Path:
    """The file of a configuration that ships with the package.

    Args:
        name: Such as demo or replay/demo; configs/replay/demo.yaml is understood too.
        folder: Where a name without a folder is looked for.

    Raises:
        InputError: If there is none, with the names that are near.
    """
    plain = name.removeprefix("configs/").removesuffix(".yaml")
    files = {
        file.relative_to(_CONFIGS).with_suffix("").as_posix(): file
        for file in sorted(_CONFIGS.rglob("*.yaml"))
    }
    found = files.get(f"{folder}/{plain}") or files.get(plain)
    if found is None:
        own = [key.removeprefix(f"{folder}/") for key in files if key.startswith(f"{folder}/")]
        near = did_you_mean(plain, list(files) if "/" in plain or not own else own)
        raise InputError(f"{name}: No such file, and no shipped configuration{near}")
    return found
