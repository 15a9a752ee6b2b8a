"""Shares a predictor, a calibration or a pool on a model hub, with a card of its own figures.

    optscale push runs/predictor --to OWNER/NAME
    optscale push calibration.json --to OWNER/NAME
    optscale push runs/sample --to OWNER/NAME        any pool that eval.replay reads, no texts

What is pushed is found out from the path. `hf://OWNER/NAME` then stands wherever the path did. A
pool becomes a repository of data sets, the others are models; README.md there is the card. The
token is that of HF_TOKEN or `hf auth login`; HF_ENDPOINT names another hub.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from optscale_jax import hub
from optscale_jax.calibration import Calibration
from optscale_jax.cli import command
from optscale_jax.errors import InputError
from optscale_jax.report import card
from optscale_jax.shipped import located
from optscale_jax.study.pools import PoolSource, ReadConfig

__all__ = ["PushConfig", "main"]

PREDICTOR, CALIBRATION = "predictor.json", "calibration.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushConfig(ReadConfig):
    """What to share, and where to.

    Attributes:
        path: Folder of a predictor, file of a calibration, or path of a pool of any format of
            docs/formats.md. Needed; it may also be given first.
        to: The repository, OWNER/NAME, made if it does not exist; NAME for one of the token's user.
            Needed.
        private: Whether a new repository is for its owner alone.
        card: Whether to write README.md there; with false one that is there stays as it is.
    """

    path: str | None = None
    to: str | None = None
    private: bool = False
    card: bool = True


def run(config: PushConfig) -> None:
    """Reads what the path is, writes its card and pushes both.

    Raises:
        InputError: If the path is none of the three, or the hub does not take it.
    """
    if not config.path:
        raise InputError("path is not given; use optscale push PATH --to OWNER/NAME")
    if not config.to:
        raise InputError("to is not given; use --to OWNER/NAME")
    # What is wrong is found out here, before the hub hears of it.
    what = _read(config.path, config.read)
    name = hub.owner(config.to.removeprefix("hf://").removeprefix("datasets/"))
    if config.card:
        what = what._replace(files={"README.md": what.card(name).encode(), **what.files})
    done = hub.push(what.files, name, kind=what.kind, private=config.private)
    print(f"{done.url}\nhf://{name} stands for it, {done.name} for these very files")


class _Shared(NamedTuple):
    kind: hub.Kind
    files: dict[str, bytes]
    card: Callable[[str], str]  # of the repository's name


def _read(path: str, options: ReadConfig) -> _Shared:
    place = Path(located(path))
    if (place / PREDICTOR).is_file():
        from optscale_jax.predictor.predictor import FILES, Predictor

        Predictor.load(place)
        files = {name: (place / name).read_bytes() for name in FILES}
        described = json.loads(files[PREDICTOR])
        for name in (described["recipe"]["model"], described["head"]["name"]):
            if name.startswith((".", "/", "~")):
                print(f"note: {name} is not pushed, and who uses it needs it", file=sys.stderr)
        return _Shared("model", files, lambda name: card.predictor_card(described, name))
    if place.suffix == ".json" and place.is_file() and _is_calibration(place):
        found = Calibration.load(place)
        files = {CALIBRATION: place.read_bytes()}
        return _Shared("model", files, lambda name: card.calibration_card(found, name))
    pool = PoolSource(path, options).load()
    with tempfile.TemporaryDirectory() as folder:
        pool.save(Path(folder, hub.POOL_FILE))
        files = {hub.POOL_FILE: Path(folder, hub.POOL_FILE).read_bytes()}
    return _Shared("dataset", files, lambda name: card.pool_card(pool, name))


def _is_calibration(path: Path) -> bool:
    with open(path, "rb") as file:
        return b'"calibration"' in file.read(200)


main = command(PushConfig, run, __name__, positional="path")

if __name__ == "__main__":
    sys.exit(main())
