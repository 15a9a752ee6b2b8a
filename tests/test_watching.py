"""What is shown while a command works: in a narrow terminal, and in a log."""

import io
import time

import pytest
from rich.console import Console

from optscale_jax.backends.vllm_engine import _printed_to
from optscale_jax.cli import watching
from optscale_jax.cli.watching import Watched, duration

WORDS = {"spent": "1,234,567 tokens on those decided, 61% fewer than 64 each", "right": "83%"}


@pytest.mark.parametrize("width", [60, 120])
def test_bars_and_words_fit_any_terminal(width):
    file = io.StringIO()
    bars = Watched(Console(file=file, width=width, force_terminal=True, color_system=None))
    bars.below = lambda: WORDS
    with bars:
        bars.update(bars.add_task("replaying a_pool_with_a_name_that_goes_on_and_on"), advance=0)
        task = bars.add_task("problems decided", total=123_456)
        bars.update(task, advance=100_000)
        bars.refresh()
        shown = Console(width=width, file=io.StringIO())
        shown.print(bars.get_renderable())
    text = shown.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    squeezed = " ".join(text.split())
    for words in ("problems decided", "100000/123456", "left", "1,234,567 tokens", "right 83%"):
        assert words in squeezed
    assert "problems decided" in file.getvalue()


def test_a_log_gets_a_line_now_and_then_of_what_was_begun_last(monkeypatch, capsys):
    monkeypatch.setattr(watching, "EVERY", 0.05)
    with Watched(Console(file=io.StringIO())) as bars:
        bars.below = lambda: WORDS
        bars.add_task("problems decided", total=60)
        starting = bars.add_task("starting the sampler", total=None)
        deadline = time.monotonic() + 30
        said = ""
        while "starting" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
        bars.remove_task(starting)
        assert bars.line.startswith("problems decided: 0 of 60, 0 s; spent: 1,234,567 tokens")
    assert said.splitlines()[0].startswith("starting the sampler, 0 s; spent: ")


def test_lines_come_through_while_a_models_start_sends_the_outputs_to_a_log(
    monkeypatch, tmp_path, capfd
):
    monkeypatch.setattr(watching, "EVERY", 0.05)
    log, said, deadline = tmp_path / "log", "", time.monotonic() + 30
    with Watched() as bars, _printed_to(log):
        bars.add_task("starting the sampler", total=None)
        while "starting the sampler, " not in said and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capfd.readouterr().err
    assert "starting the sampler, " in said
    assert log.read_text() == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (7500, "2 h 5 min")]
)
def test_times_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words
