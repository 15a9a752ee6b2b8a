"""Tables and figures of a comparison, tuned without looking at the answers that it is scored on.

    python -m eval.report --runs DIR... --out DIR
    python -m eval.report --pools FILE... --out DIR

takes folders that eval.replay wrote, or replays the paper's comparison over pools itself. The
output folder gets

    index.html       everything below on one page that needs no other file
    table.csv        the paper's main table: accuracy and tokens of each method for N = 8, 16, 32,
        .md .tex     64; the best in bold
    comparison.csv   the same with intervals, differences, savings, the settings chosen, what the
                     search on the test set would have claimed, and its optimism
    curves.csv       area under each method's curve, tokens to reach best-of-N's accuracy, accuracy
                     within budgets, as good as the best fixed n, and at best
    pairs.csv        for each of these aims, what one method wins and spends above another
    laws.csv         each law of scores on held-out scores: nats a score, and how much to the best
    roc.csv          how well the verifier tells right completions from wrong ones
    reliability.csv  P(right) as claimed at the stop, and the share that is right
    NAME/            for each pool: its figures as .png and .pdf, and with --pools its outcomes.npz
                     and config.yaml, which make it a folder for --runs

Settings (s_min, alpha, windows, thresholds) are chosen on some folds of the problems and scored on
the others. Methods that no pool can serve are left out, and the page says why.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress

from optscale_jax.cli import command, output_folder, parse, progress, show, to_yaml
from optscale_jax.errors import InputError
from optscale_jax.pool_directory import AnyPool
from optscale_jax.report.tables import Table, write_csv
from optscale_jax.study.comparison import check_problems
from optscale_jax.study.config import ReplayConfig, ReportConfig
from optscale_jax.study.entries import num_steps, replay_comparison
from optscale_jax.study.findings import Findings, find
from optscale_jax.study.outcomes import Outcomes
from optscale_jax.study.pools import PoolSource
from optscale_jax.study.registry import PriorConfig

__all__ = ["main"]

COMPARISON = "paper_table"
FIGURES = (
    "accuracy_vs_tokens",
    "tokens_vs_n",
    "sensitivity_s_min",
    "sensitivity_alpha",
    "reliability",
    "roc",
    "scores",
    "calibration",
)
BENCHMARKS_ACROSS = 3  # in a terminal, which is not wide enough for many
TABLES = ("table.csv", "table.md", "table.tex", "comparison.csv", "curves.csv", "pairs.csv")
TABLES += ("laws.csv", "roc.csv", "reliability.csv")
OUTPUTS = (
    "index.html",
    *TABLES,
    *(f"*/{name}.{suffix}" for name in FIGURES for suffix in ("png", "pdf")),
)


class Source(NamedTuple):
    """What is reported on in one section."""

    outcomes: Outcomes
    pool: AnyPool | None  # for what concerns its scores; None if it is no longer there
    notes: list[str]  # what is left out, and why
    folder: str = ""  # the section's
    ran: ReplayConfig | None = None  # what was replayed here; None for a folder of eval.replay


def run(config: ReportConfig) -> None:
    """Collects, tunes, draws, writes the files and shows the table."""
    # Matplotlib takes a second to import, which --help should not.
    from optscale_jax.report.comparison import table_of

    out, options = Path(config.out), config.options(config.aim)
    # All are read before the first is replayed: a bad one should not cost the others' time.
    sources = [_read_run(Path(path)) for path in config.runs]
    for source in sources:
        check_problems(source.outcomes.num_problems, source.outcomes.name)
    pools = [(source := PoolSource(path, config.read), source.open()) for path in config.pools]
    for source, pool in pools:
        check_problems(pool.num_problems, source.path)
    comparison = _comparison(config) if pools else None
    beside = ("config.yaml", "outcomes.npz")
    with output_folder(out, OUTPUTS, beside=beside) as folder, progress() as bar:
        task = bar.add_task("steps", total=2 * len(pools) + len(sources) + 1)
        for source, pool in pools:
            assert comparison is not None
            sources.append(_replay(source, pool, comparison, config, bar))
            bar.advance(task)
        sources = _named(sources, config.names)
        sections = []
        for outcomes, pool, notes, *_ in sources:
            bar.update(task, description=f"tuning on {outcomes.name}")
            found = find(outcomes, pool, options, caps=config.n, notes=notes, laws=config.laws)
            sections.append(found)
            bar.advance(task)
        bar.update(task, description="writing")
        table = table_of(sections, options)
        _write(folder, sources, sections, table)
        bar.advance(task)
    for piece in table.narrowed(BENCHMARKS_ACROSS):
        show(piece.to_rich())
    for note in table.notes:
        show(note, style="dim")
    print(f"report: {out / 'index.html'}")


# What is reported on ------------------------------------------------------------------------------


def _comparison(config: ReportConfig) -> ReplayConfig:
    file = config.comparison or COMPARISON
    comparison = parse(ReplayConfig, ["--config", file], configs="replay")
    if config.priors is None:
        return comparison
    plain = comparison.policy
    if plain.name != "optscale" or plain.prior != PriorConfig():
        raise InputError(f"{file}: policy must be optscale without a prior for priors to join it")
    learned = dataclasses.replace(plain, label="OptScaleᵗ", prior=PriorConfig(file=config.priors))
    return dataclasses.replace(comparison, compare=[learned, *comparison.compare])


def _replay(
    source: PoolSource, pool: AnyPool, comparison: ReplayConfig, config: ReportConfig, bar: Progress
) -> Source:
    orders = comparison.permutations if config.permutations is None else config.permutations
    orders = 0 if pool.kind == "sequential" else orders
    own = {"pool": source.path, "permutations": orders, "seed": config.seed, "leave_out": True}
    asked = dataclasses.replace(comparison, **own, **dataclasses.asdict(config.read))
    ran, entries, notes = asked.served(pool)
    known, task = (
        source.with_checksum(),
        bar.add_task(f"replaying {source.name}", total=num_steps(entries, pool)),
    )
    outcomes = replay_comparison(
        pool,
        entries,
        source=known,
        seed=config.seed,
        num_permutations=orders,
        num_folds=config.folds,
        advance=lambda: bar.advance(task),
    )
    bar.remove_task(task)
    return Source(outcomes, pool, notes, ran=ran)


def _read_run(folder: Path) -> Source:
    outcomes = Outcomes.load(folder)
    source = outcomes.source
    changed = source and source.what_changed()
    if source is None or changed:
        return Source(outcomes, None, [f"{changed}: no figures of scores"] if changed else [])
    return Source(outcomes, source.open(), [])


def _named(sources: list[Source], names: list[str] | None) -> list[Source]:
    """The sources under their headings, each with a folder of its own."""
    seen: set[tuple[str, str]] = set()
    folders: dict[str, int] = {}
    found = []
    given = names or [source.outcomes.name for source in sources]
    for name, source in zip(given, sources, strict=True):
        for method in source.outcomes.methods:
            if (name, method.label) in seen:
                raise InputError(
                    f"{name}: {method.label} is there twice; give each of runs and pools a name "
                    "of its own with --names"
                )
            seen.add((name, method.label))
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or "pool"
        folders[safe] = folders.get(safe, 0) + 1
        folder = safe if folders[safe] == 1 else f"{safe}.{folders[safe]}"
        outcomes = dataclasses.replace(source.outcomes, name=name)
        found.append(source._replace(outcomes=outcomes, folder=folder))
    return found


# Files --------------------------------------------------------------------------------------------


def _write(
    folder: Path, sources: Sequence[Source], found: Sequence[Findings], table: Table
) -> None:
    from optscale_jax.report.comparison import (
        comparison_columns,
        curve_columns,
        law_columns,
        pair_columns,
        reliability_columns,
        roc_columns,
        section,
    )
    from optscale_jax.report.figures import save
    from optscale_jax.report.page import page

    (folder / "table.csv").write_text(table.to_csv(), encoding="utf-8")
    (folder / "table.md").write_text(table.to_markdown(), encoding="utf-8")
    (folder / "table.tex").write_text(table.to_latex(), encoding="utf-8")
    write_csv(folder / "comparison.csv", comparison_columns(found))
    write_csv(folder / "curves.csv", curve_columns(found))
    write_csv(folder / "pairs.csv", pair_columns(found))
    write_csv(folder / "laws.csv", law_columns(found))
    write_csv(folder / "roc.csv", roc_columns(found))
    write_csv(folder / "reliability.csv", reliability_columns(found))
    sections = []
    for source, each in zip(sources, found, strict=True):
        own = folder / source.folder
        own.mkdir()
        sections.append(section(each, anchor=source.folder))
        for drawing in sections[-1].drawings:
            save(drawing.figure, own / drawing.name)
        if source.ran is not None:
            source.outcomes.save(own / "outcomes.npz")
            (own / "config.yaml").write_text(to_yaml(source.ran), encoding="utf-8")
    title = "Adaptive best-of-N: every method compared"
    (folder / "index.html").write_text(page(title, table, sections), encoding="utf-8")


main = command(ReportConfig, run, __name__)

if __name__ == "__main__":
    sys.exit(main())
