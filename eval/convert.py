"""Writes scored completions of any format as another: arrays, JSON lines, or a pool directory.

    optscale convert scored.json --out pool.npz
    optscale convert runs/sample --out pool.jsonl
    optscale convert completions.jsonl --out pools/large
    optscale convert synthetic --synthetic.num_problems 1000000 --out pools/synthetic

A pool directory, which every other name than .npz and .jsonl is, holds pools of any size. Into it
JSON lines, live runs, pool directories and synthetic pools are written as a stream; of JSON lines a
problem's have to stand together for that. Nothing is there under the name before all of it is, but
for a directory, which says so until it is complete.
"""

import dataclasses
import sys
from pathlib import Path

from optscale_jax.cli import command, progress
from optscale_jax.errors import InputError, bad_input
from optscale_jax.pool_directory import PoolWriter
from optscale_jax.readers import write_jsonl
from optscale_jax.study.pools import SYNTHETIC, PoolSource, ReadConfig, SyntheticPoolConfig

__all__ = ["ConvertConfig", "main"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig(ReadConfig):
    """What to write anew, and where.

    Attributes:
        pool: Path of a pool of any format of docs/formats.md, or synthetic for one made on the
            spot. Needed; it may also be given first.
        synthetic: The synthetic pool.
        out: A file that ends in .npz or .jsonl, or else a pool directory. Needed.
    """

    pool: str | None = None
    synthetic: SyntheticPoolConfig = dataclasses.field(default_factory=SyntheticPoolConfig)
    out: str | None = None


def run(config: ConvertConfig) -> None:
    """Reads the pool and writes it.

    Raises:
        InputError: If the pool cannot be read, or not be written there.
    """
    if config.pool is None:
        raise InputError("pool is not given; use optscale convert POOL --out OUT")
    if config.out is None:
        raise InputError("out is not given; use --out FILE.npz, FILE.jsonl or a directory")
    source, out = PoolSource(config.pool, config.read), Path(config.out)
    if config.pool == SYNTHETIC:
        source = PoolSource(config.pool, synthetic=config.synthetic)
    with bad_input("--out", (OSError,)):
        count = _write(source, out)
    print(f"{config.out}: {count:,} problems")


def _write(source: PoolSource, out: Path) -> int:
    if out.suffix not in (".npz", ".jsonl"):
        with PoolWriter(out) as writer, progress() as bar:
            task = bar.add_task("problems written", total=None)
            for block in source.blocks():
                writer.add(block)
                bar.advance(task, block.num_problems)
        return writer.num_problems
    pool = source.load()
    pool.save(out) if out.suffix == ".npz" else write_jsonl(pool, out)
    return pool.num_problems


main = command(ConvertConfig, run, __name__, positional="pool")

if __name__ == "__main__":
    sys.exit(main())
