"""What the site has beside the pages of docs/: figures drawn by the library, equations as MathML.

README.md is its home, CHANGELOG.md and CONTRIBUTING.md are pages; nothing is written into docs/.
"""

import html
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import jax
import latex2mathml.converter
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from mkdocs.structure.files import File, Files

from optscale_jax import (
    BestOfN,
    Pool,
    ScoreStats,
    TruncatedNormal,
    fit_mle,
    policies,
    replay,
    required_samples,
)
from optscale_jax.study.learning import learn_calibration
from optscale_jax.tiny import pool_path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "index.md": "README.md",
    "changes.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
INK = "#888888"  # seen on white and on black
BLUE, ORANGE, GREEN = "#4c78a8", "#f58518", "#54a24b"


def on_files(files: Files, config) -> Files:
    """Adds the generated pages and figures."""
    for name, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        for page, file in PAGES.items():
            text = re.sub(rf"\]\({file}(#[^)]*)?\)", rf"]({page}\1)", text)
        text = text.replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    for name, draw in FIGURES.items():
        files.append(File.generated(config, f"figures/{name}.svg", content=draw()))
    return files


def on_page_content(content: str, **_) -> str:
    """Equations, which arithmatex has marked, as MathML: browsers draw it by themselves."""

    def converted(match: re.Match[str]) -> str:
        text = html.unescape(match[2])
        display = "block" if text.startswith("\\[") else "inline"
        return latex2mathml.converter.convert(text[2:-2], display=display)

    pattern = r'<(span|div) class="arithmatex">(.*?)</\1>'
    return re.sub(pattern, converted, content, flags=re.DOTALL)


# Figures ------------------------------------------------------------------------------------------


def drawn(draw: Callable) -> Callable[[], str]:
    """A figure's SVG, with `draw` given its axes."""

    def svg() -> str:
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.set_facecolor("none")
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
        for part in (axes.xaxis.label, axes.yaxis.label, *axes.spines.values()):
            part.set_color(INK)
        axes.legend(frameon=False, labelcolor=INK)
        file = io.StringIO()
        # A date and random ids would make every build another one.
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return file.getvalue()

    return svg


@drawn
def law(axes) -> None:
    """Scores drawn from a law, the law fitted to the first 8, and that of the best of 16."""
    scores = TruncatedNormal(0.72, 0.12).sample(64, seed=jax.random.key(3))
    params, _ = fit_mle(ScoreStats.from_scores(scores[:8]))
    fitted = TruncatedNormal(*params)
    x = np.linspace(0.3, 1, 300, dtype=np.float32)
    axes.hist(scores, 16, (0.3, 1), density=True, color=INK, alpha=0.35, label="64 scores")
    axes.plot(x, fitted.prob(x), color=BLUE, label="law F, fitted to the first 8")
    axes.plot(x, BestOfN(fitted, 16).prob(x), color=ORANGE, label="law of the best of 16")
    axes.set(xlabel="score", ylabel="density")


@drawn
def bound(axes) -> None:
    """N* against s_min."""
    s_min = np.linspace(0.6, 0.995, 300)
    for alpha, color in ((0.8, GREEN), (0.9, BLUE), (0.99, ORANGE)):
        needed = required_samples(TruncatedNormal(0.8, 0.12), s_min, alpha, max_samples=512)
        axes.step(s_min, np.asarray(needed), color=color, label=f"alpha = {alpha}")
    axes.set(xlabel="s_min", ylabel="N*", yscale="log")


@drawn
def reliability(axes) -> None:
    """What the shipped calibration claims on problems left out, and what came true."""
    kept = json.loads((pool_path().parent / "calibration.json").read_text())["reliability"]
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8)
    axes.plot(kept["claimed"], kept["right"], "o-", color=BLUE, label="shipped calibration")
    axes.set(xlabel="P(the leading answer is right), claimed", ylabel="came true")


@drawn
def saving(axes) -> None:
    """Accuracy against tokens on 200 problems of the shipped pool, learnt on the other 200."""
    pool = Pool.load(pool_path())
    learnt, new = pool.subset(slice(200)), pool.subset(slice(200, 400))
    calibration = learn_calibration(learnt)
    curves = {
        "best-of-N": (policies.best_of_n, [1, 2, 4, 8, 16, 32, 64], ORANGE),
        "OptScale": (
            lambda s: policies.optscale(s_min=s, alpha=0.9, max_samples=64, min_samples=4),
            [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9],
            GREEN,
        ),
        "calibrated vote": (
            lambda budget: policies.calibrated_vote(calibration, budget=budget, max_samples=64),
            [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0],
            BLUE,
        ),
    }
    orders = {"key": jax.random.key(0), "num_permutations": 10}
    for name, (make, settings, color) in curves.items():
        found = [replay(new, make(setting), **orders) for setting in settings]
        tokens = [float(each.tokens.mean()) for each in found]
        right = [float(each.correct.mean()) for each in found]
        axes.plot(tokens, right, "o-", color=color, markersize=4, label=name)
    axes.set(xlabel="tokens a problem", ylabel="accuracy", xscale="log")


FIGURES = {"law": law, "bound": bound, "reliability": reliability, "saving": saving}
