"""Replays policies over a pool of recorded completions and compares them.

    python -m eval.replay --config configs/replay/demo.yaml [--pool PATH] [--out DIR]
        [--permutations K]

All policies see the same random orders of the same completions, so that their differences are
paired. The output folder gets

    results.csv            one row per policy, setting and permutation: means over problems
    summary.csv            one row per policy and setting: means, intervals, differences
    summary.md             the table that the terminal shows
    per_problem.csv        one row per policy, setting, permutation and problem
    outcomes.npz           the same for eval.report, a hundredth of the size
    accuracy_vs_tokens     .png and .pdf, one curve a policy
    config.yaml            the configuration as it ran, for --config
    versions.json          packages, device, and the pool's size and checksum

An empty cell is a value that is not known. Permutations count from 1; 0 is the stored order. A
policy's name and its setting tell every row of a policy from all others. A pool of more than 8,192
problems is replayed in blocks, and there is no per_problem.csv.
"""

import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from optscale_jax.cli import command, output_folder, package_versions, progress, show, to_yaml
from optscale_jax.pool_directory import AnyPool
from optscale_jax.report.replay import (
    result_columns,
    summary_columns,
    summary_curves,
    summary_table,
    write_per_problem,
)
from optscale_jax.report.tables import Table, answered, write_csv
from optscale_jax.study.comparison import Options
from optscale_jax.study.config import ReplayConfig
from optscale_jax.study.entries import num_steps, replay_comparison
from optscale_jax.study.outcomes import Outcomes
from optscale_jax.study.pools import SYNTHETIC, PoolSource, SyntheticPoolConfig
from optscale_jax.study.summary import MethodSummary, summarise_methods

__all__ = ["main"]

OUTPUTS = (
    "results.csv",
    "summary.csv",
    "summary.md",
    "per_problem.csv",
    "outcomes.npz",
    "accuracy_vs_tokens.png",
    "accuracy_vs_tokens.pdf",
    "config.yaml",
    "versions.json",
)


def run(config: ReplayConfig) -> None:
    """Replays, compares, writes the files and shows the table."""
    config.entries()  # before the pool is read: what cannot be made should not cost that time
    pool = config.source.open()
    if config.pool != SYNTHETIC:
        config = dataclasses.replace(config, synthetic=SyntheticPoolConfig())
    config, entries, notes = config.served(pool)
    with output_folder(Path(config.out), OUTPUTS) as folder, progress() as bar:
        task = bar.add_task("replaying", total=num_steps(entries, pool) + len(entries) + 1)
        outcomes = replay_comparison(
            pool,
            entries,
            source=config.source.with_checksum(),
            seed=config.seed,
            num_permutations=config.permutations,
            advance=lambda: bar.advance(task),
        )
        bar.update(task, description="intervals")
        summaries = summarise_methods(
            outcomes,
            baseline=config.baseline,
            show=config.show,
            options=Options(seed=config.seed, level=config.level, num_resamples=config.resamples),
            advance=lambda: bar.advance(task),
        )
        bar.update(task, description="writing")
        orders = f"{config.permutations} permutations" if config.permutations else "stored order"
        size = f"{pool.num_problems:,} problems x {pool.num_samples} completions"
        table = summary_table(
            summaries,
            title=f"{outcomes.name}: {size}, {orders}",
            level=config.level,
            baseline=config.baseline,
            notes=[*answered(outcomes.unanswered), *notes],
        )
        _write(folder, outcomes, summaries, table, pool, config)
        bar.advance(task)
    show(table.to_rich())
    print(f"results: {config.out}")


def _write(
    folder: Path,
    outcomes: Outcomes,
    summaries: Sequence[MethodSummary],
    table: Table,
    pool: AnyPool,
    config: ReplayConfig,
) -> None:
    write_csv(folder / "results.csv", result_columns(outcomes))
    write_csv(folder / "summary.csv", summary_columns(summaries, config.baseline))
    (folder / "summary.md").write_text(table.to_markdown(), encoding="utf-8")
    if config.per_problem and outcomes.num_grouped is None:
        write_per_problem(folder / "per_problem.csv", outcomes)
    if config.outcomes:
        outcomes.save(folder / "outcomes.npz")
    figure = summary_curves(summaries, config.level)
    if figure is not None:
        from optscale_jax.report.figures import save

        save(figure, folder / "accuracy_vs_tokens")
    header = "# The configuration as it ran: python -m eval.replay --config THIS_FILE\n"
    (folder / "config.yaml").write_text(header + to_yaml(config), encoding="utf-8")
    versions = json.dumps(_versions(pool, outcomes.source), indent=1)
    (folder / "versions.json").write_text(versions + "\n")


def _versions(pool: AnyPool, source: PoolSource | None) -> dict[str, Any]:
    packages = ("optscale-jax", "jax", "jaxlib", "tfp-nightly", "numpy", "matplotlib")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(jax.devices()[0]),
        "packages": package_versions(*packages),
        "pool": {
            "path": source and source.path,
            "sha256": source and source.sha256,
            "problems": pool.num_problems,
            "completions": pool.num_samples,
        },
    }


main = command(ReplayConfig, run, __name__, configs="replay")

if __name__ == "__main__":
    sys.exit(main())
