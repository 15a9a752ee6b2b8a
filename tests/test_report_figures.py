"""Figures and tables: what a reader needs is in them, and nothing hides it."""

import io
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from optscale_jax.cli import show
from optscale_jax.report.figures import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    Curve,
    accuracy_against_tokens,
    save,
    styles_of,
)
from optscale_jax.report.tables import Table, cells, write_csv


def curves(count=4, points=6) -> list[Curve]:
    made = []
    for index in range(count):
        x = np.geomspace(400 * (1 + index), 30_000, points)
        y = 0.5 + 0.05 * np.log(x / 400)
        made.append(Curve(f"policy {index}", x, y, y - 0.03, y + 0.03))
    return made


def drawn(figure):
    FigureCanvasAgg(figure).draw()
    return figure


@pytest.mark.parametrize("width", [COLUMN_WIDTH, PAGE_WIDTH])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_text_is_legible_and_the_legend_is_outside_the_axes(width, count):
    figure = drawn(accuracy_against_tokens(curves(count), width=width))
    (axes,) = figure.axes
    assert figure.get_size_inches()[0] == width
    legend = figure.legends[0].get_window_extent()
    assert legend.y0 >= axes.bbox.y1
    assert legend.x1 <= figure.bbox.x1
    ticks = [
        tick.label1
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if np.ptp([*axis.get_view_interval(), tick.get_loc()]) == np.ptp(axis.get_view_interval())
    ]
    for text in [*ticks, axes.xaxis.label, axes.yaxis.label, *figure.legends[0].get_texts()]:
        assert text.get_fontsize() >= 8
        extent = text.get_window_extent()
        assert extent.x0 >= 0
        assert extent.y0 >= 0
        assert extent.y1 <= figure.bbox.y1


def test_axes_have_names_and_units():
    (axes,) = accuracy_against_tokens(curves()).axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "tokens per problem (log scale)"
    assert axes.get_ylabel() == "accuracy (% of problems)"
    (axes,) = accuracy_against_tokens(curves(), x="samples", y="score").axes
    assert axes.get_xlabel() == "completions per problem (log scale)"
    assert axes.get_ylabel() == "mean score of the completion returned"


def test_curves_differ_in_colour_and_in_marker():
    (axes,) = accuracy_against_tokens(curves(7)).axes
    lines = axes.get_lines()
    assert len({line.get_color() for line in lines}) == 7
    assert len({line.get_marker() for line in lines}) == 7


def test_a_method_has_one_style_whatever_stands_beside_it():
    one = styles_of(["mine", "best-of-N", "OptScale⁰, s_min = 0.9", "OptScale⁰, once"])
    two = styles_of(["ESC", "OptScale⁰", "optscale, every_sample", "best-of-N"])
    assert one["best-of-N"] == two["best-of-N"]
    assert one["OptScale⁰, s_min = 0.9"] == two["OptScale⁰"]
    assert [len({*styles.values()}) for styles in (one, two)] == [4, 4]


def test_a_setting_apart_from_its_curve_is_in_the_figure_and_named():
    (curve,) = curves(1)
    figure = accuracy_against_tokens([curve._replace(mark=("deepest", 90_000.0, 0.6))])
    (axes,) = figure.axes
    assert axes.get_xlim()[1] > 90_000
    assert [text.get_text() for text in figure.legends[0].get_texts()][1] == "deepest"


def test_legend_names_the_intervals_and_the_faint_settings():
    (curve,) = curves(1)
    curve = curve._replace(others_x=curve.x * 1.1, others_y=curve.y)
    figure = drawn(accuracy_against_tokens([curve], level=0.9))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["policy 0", "90% interval", "the policy's other settings"]


@pytest.mark.parametrize("low", [1.0, 3.7, 950.0, 123_456.0])
@pytest.mark.parametrize("ratio", [1.0, 1.3, 4.0, 60.0, 1e4])
def test_ticks_are_a_few_round_numbers(low, ratio):
    curve = Curve("policy", np.array([low, low * ratio]), np.array([0.5, 0.6]))
    (axes,) = drawn(accuracy_against_tokens([curve])).axes
    first, last = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if first <= tick <= last]
    assert 1 <= len(shown) <= 12


def test_a_policy_that_spends_nothing_gets_a_linear_axis():
    curve = Curve("policy", np.array([0.0, 10.0]), np.array([0.5, 0.6]))
    (axes,) = accuracy_against_tokens([curve]).axes
    assert axes.get_xscale() == "linear"
    assert "log" not in axes.get_xlabel()


def test_no_curve_is_refused():
    with pytest.raises(ValueError, match="at least one curve"):
        accuracy_against_tokens([])


def test_saved_files_are_the_same_every_time(tmp_path):
    for name in ("first", "second"):
        save(accuracy_against_tokens(curves()), tmp_path / name)
    for suffix in (".png", ".pdf"):
        first = (tmp_path / f"first{suffix}").read_bytes()
        assert first == (tmp_path / f"second{suffix}").read_bytes()
        assert len(first) > 5000


# Tables -------------------------------------------------------------------------------------------

TABLE = Table(
    "title",
    ["policy", "setting", "tokens"],
    [["a|b", "n=1", "1,000"], ["a|b", "n=2", ""], ["[c]", "n=1", "3"]],
    ["a note"],
)


def test_markdown():
    assert TABLE.to_markdown().splitlines() == [
        "**title**",
        "",
        "| policy | setting | tokens |",
        "| --- | --- | ---: |",
        "| a\\|b | n=1 | 1,000 |",
        "| a\\|b | n=2 |  |",
        "| [c] | n=1 | 3 |",
        "",
        "a note",
    ]


@pytest.mark.parametrize("width", [40, 120])
def test_terminal_loses_no_cell(width):
    file = io.StringIO()
    Console(file=file, width=width).print(TABLE.to_rich())
    text = file.getvalue()
    assert text.count("a|b") == 1  # a heading for both rows
    for cell in ("[c]", "1,000", "n=2", "a note"):
        assert cell in text


def test_in_a_narrow_terminal_numbers_and_most_words_stay_whole(monkeypatch, capsys):
    headings = ["accuracy, %", "difference", "samples", "tokens", "saved, %", "score"]
    numbers = ["60.0 ±6.0", "-11.0 ±6.9", "10.5", "1,111", "98", "0.547"]
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    show(Table("title", ["rule", "setting", *headings], [["vote", "n=2", *numbers]]).to_rich())
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 60
    words = " ".join(lines).split()
    assert {"samples", "tokens", "saved,", "score"} <= set(words)
    assert {word for number in numbers for word in number.split()} <= set(words)


def test_cells_leave_unknown_values_empty():
    assert cells(np.array([[0.5, np.nan], [1.0, 2.0]])) == [0.5, "", 1.0, 2.0]
    assert cells(np.array([3, -1]), unknown=np.array([False, True])) == [3, ""]
    assert cells(np.array([True, False])) == [1, 0]
    assert cells(np.array([1, 2], np.int32)) == [1, 2]


def test_csv_columns_must_be_of_one_length(tmp_path):
    write_csv(tmp_path / "good.csv", {"a": [1, ""], "b": ["x, y", 'say "z"']})
    assert (tmp_path / "good.csv").read_text() == 'a,b\n1,"x, y"\n,"say ""z"""\n'
    with pytest.raises(ValueError, match="argument"):
        write_csv(tmp_path / "bad.csv", {"a": [1], "b": []})
