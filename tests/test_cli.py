"""What commands share, and the console script: options, names of configurations, extras."""

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from eval import replay, solve
from optscale_jax.cli import command, commands, output_file, output_folder, parse
from optscale_jax.cli.command import EXTRAS, exit_code
from optscale_jax.cli.console import main, run_command
from optscale_jax.cli.outputs import output_place
from optscale_jax.errors import InputError
from optscale_jax.readers import read_pool
from optscale_jax.shipped import located, shipped_config
from optscale_jax.study.registry import PolicyConfig
from optscale_jax.tiny import pool_path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "optscale_jax" / "cli" / "script" / "__init__.py"
REPLAY = ["--policy.name", "best_of_n"]


@dataclasses.dataclass(frozen=True)
class Part:
    """Fields two levels down.

    Attributes:
        rate: A number, or several.
        sizes: Several numbers.
        words: Several texts.
    """

    rate: float | list[float] | None = None
    sizes: list[int] = dataclasses.field(default_factory=list)
    words: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A configuration.

    Attributes:
        part: Fields of its own.
        files: Several texts.
        extra: Whatever there is.
        out: A folder.
    """

    part: Part = Part()
    files: list[str] = dataclasses.field(default_factory=list)
    extra: dict[str, int] = dataclasses.field(default_factory=dict)
    out: str = "out"


# Options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("--policy.smin", "--policy.s_min"),
        ("--policy.prior.scal", "--policy.prior.scale"),
        ("--synthetic.num_problem=3", "--synthetic.num_problems"),
        ("--permutation", "--permutations"),
    ],
)
def test_a_mistyped_option_is_put_right_at_any_depth(option, near, capsys):
    assert replay.main([*REPLAY, option, "0.7"]) == 2
    error = capsys.readouterr().err
    name = option.partition("=")[0]
    assert error == f"error: {name}: no such option; did you mean {near}?\n"


def test_an_option_like_no_other_gets_the_list(capsys):
    assert solve.main(["--sampler.server.xyz", "1"]) == 2
    error = capsys.readouterr().err
    assert "--sampler.server.xyz: no such option; there are --sampler.server.base_urls, " in error
    assert error.count("\n") == 1


def test_a_mapping_knows_its_own_keys():
    assert parse(Whole, ["--extra.anything", "3"]).extra == {"anything": 3}


@pytest.mark.parametrize(
    ("arguments", "rate"),
    [
        (["0.9"], 0.9),
        (["0.9", "0.95"], [0.9, 0.95]),
        (["[0.9,0.95]"], [0.9, 0.95]),
        (["[0.9]"], [0.9]),
        (["null"], None),
    ],
)
def test_a_list_needs_no_brackets_at_any_depth(arguments, rate):
    config = parse(Whole, ["--part.rate", *arguments, "--part.sizes", "3", "--files", "a", "1"])
    assert config == Whole(Part(rate=rate, sizes=[3]), files=["a", "1"])
    assert parse(Whole, ["--part.words", "1", "true"]).part.words == ["1", "true"]


@pytest.mark.parametrize("arguments", [["--out", ""], ["--out="]])
def test_an_empty_output_is_refused(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert replay.main([*REPLAY, *arguments]) == 2
    assert capsys.readouterr().err == "error: --out: empty; give a folder or a file to write\n"
    (tmp_path / "config.yaml").write_text("out: ''\n")
    with pytest.raises(InputError, match="--out: empty"):
        parse(Whole, ["--config", "config.yaml"])


def test_a_commands_exit_code_is_what_it_returns_and_its_words_may_come_first():
    @dataclasses.dataclass(frozen=True)
    class Files:
        """Files.

        Attributes:
            files: Their names.
            code: What to return.
        """

        files: list[str] = dataclasses.field(default_factory=list)
        code: int | None = None

    seen = []

    def run(config):
        seen.append(config.files)
        return config.code

    given = command(Files, run, __name__, positional="files")
    assert [given(["a", "b", "--code", "1"]), given(["a"]), given([])] == [1, 0, 0]
    assert seen == [["a", "b"], ["a"], []]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy.max_samples", "9" * 20], "--policy.max_samples: policy.max_samples is 999"),
        (["--policy.s_min", "[" * 3000 + "]" * 3000], "--policy.s_min: not valid YAML: nested too"),
        (["--policy", "[" * 3000 + "]" * 3000], "--policy: not valid YAML: nested too deeply"),
        (["--policy.s_min", "high"], "--policy.s_min: policy.s_min is 'high'; it must be a number"),
        (["--policy", "{smin: 1}"], "--policy: policy.smin: no such key; did you mean s_min?"),
        (["--config", "demo", "stray"], "--config: expected a file, found demo, stray"),
        (["stray"], "stray"),
        (["--policy.name", "first_hit", "optscale"], "optscale"),
        (["--policy", "{name: {a: b}}"], "--policy: policy.name is {'a': 'b'}; it must be text"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line(arguments, says, capsys):
    assert replay.main([*arguments, *REPLAY]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("policy: " + "[" * 3000 + "]" * 3000, "c.yaml: not valid YAML: nested too deeply"),
        ("seed: 1\npermutations: 99999999999999999999", "c.yaml:2: permutations is 9999999999"),
        ("? [a, b]\n: 3", "c.yaml:1: [a, b]: no such key; the keys are"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(text, says, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    assert replay.main(["--config", str(tmp_path / "c.yaml")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_what_a_reader_leaves_out_is_a_note_of_one_line(tmp_path, capsys):
    log = tmp_path / "batch.jsonl"
    choices = [{"message": {"content": "6"}, "finish_reason": "stop"}]
    lines = [
        {"custom_id": "p-0", "response": {"status_code": 200, "body": {"choices": choices}}},
        {"custom_id": "p-1", "response": None, "error": {"message": "too\nlate"}},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert exit_code(lambda: read_pool(log).num_problems - 1) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"note: {log}: 1 records are left out, which have no completion; the first: request "
        "'p-1' failed\n"
    )


def test_another_policy_takes_what_it_can_of_the_one_before(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "policy: {name: optscale, label: A, s_min: 0.9, alpha: 0.8, max_samples: 8, prior: "
        "{loc: 0.8, scale: 0.1}}\n"
    )
    given = ["--config", str(file), "--policy.name"]
    policy = parse(replay.ReplayConfig, [*given, "first_hit"]).policy
    assert policy == PolicyConfig("first_hit", s_min=0.9, max_samples=8)
    policy = parse(replay.ReplayConfig, ["--policy.max_samples=4", *given, "first_hit"]).policy
    assert (policy.max_samples, policy.s_min) == (4, 0.9)
    # By a mapping, and by a later file, just as well.
    mapping = "{name: first_hit, max_samples: 4}"
    (tmp_path / "later.yaml").write_text(f"policy: {mapping}\n")
    for other in (["--policy", mapping], ["--config", str(tmp_path / "later.yaml")]):
        policy = parse(replay.ReplayConfig, [*given[:2], *other]).policy
        assert policy == PolicyConfig("first_hit", s_min=0.9, max_samples=4)
    # What is said of the other one itself is held against it.
    refused = parse(replay.ReplayConfig, [*given, "first_hit", "--policy.alpha=0.9"])
    assert refused.policy.alpha == 0.9
    same = parse(replay.ReplayConfig, [*given, "optscale"]).policy
    assert same == parse(replay.ReplayConfig, given[:2]).policy


def test_a_link_to_nothing_is_an_output(tmp_path):
    for name, folder in (("file", False), ("folder", True)):
        (tmp_path / f"{name}_link").symlink_to(tmp_path / name)
        with output_place(tmp_path / f"{name}_link", folder=folder) as out:
            assert out == tmp_path / name
    with output_file(tmp_path / "file_link") as file:
        file.write("text")
    assert (tmp_path / "file").read_text() == "text"
    with output_folder(tmp_path / "folder_link", ["a"]) as folder:
        (folder / "a").write_text("text")
    assert (tmp_path / "folder" / "a").read_text() == "text"
    with (
        pytest.raises(InputError, match=r"--out: .* is a file; give a folder"),
        output_folder(tmp_path / "file_link", ["a"]),
    ):
        pass


def test_folders_of_an_earlier_run_go_where_nothing_else_is_in_them(tmp_path):
    def write(*names):
        with output_folder(tmp_path, ["*/a.png", "page"], beside=["b.yaml"]) as folder:
            for name in ("page", *names):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text("text")

    write("one/a.png", "one/b.yaml", "two/a.png", "two/b.yaml")
    # Of somebody else, and with something of somebody else in it.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.yaml").write_text("mine")
    (tmp_path / "two" / "notes").write_text("mine")
    write("three/a.png", "three/b.yaml")
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert left == {
        *("page", "three/a.png", "three/b.yaml"),
        *("two/b.yaml", "two/notes", "other/b.yaml"),
    }
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt])
def test_what_fails_or_is_interrupted_leaves_no_folder_behind(tmp_path, error):
    for output in (output_folder, lambda out, owned: output_file(out)):
        with pytest.raises(error), output(tmp_path / "new" / "deep" / "out", ["a"]):
            raise error
        assert not list(tmp_path.iterdir())


# Configurations by name ---------------------------------------------------------------------------


def test_shipped_configurations_have_names_and_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = ROOT / "configs" / "replay" / "demo.yaml"
    for name in ("demo", "demo.yaml", "replay/demo", "configs/replay/demo.yaml"):
        assert shipped_config(name, "replay") == file
    named = parse(replay.ReplayConfig, ["--config", "demo"], configs="replay")
    assert named == parse(replay.ReplayConfig, ["--config", str(file)])
    (tmp_path / "demo").write_text("policy: {name: best_of_n, n: 3}\n")
    assert parse(replay.ReplayConfig, ["--config", "demo"], configs="replay").policy.n == 3
    # A later one wins over an earlier one, by name too.
    both = ["--config", "math500_r1_qwen7b", "--config", "aime24"]
    assert parse(solve.SolveConfig, both, configs="solve").problems == "aime24"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dmeo", "dmeo: No such file, and no shipped configuration; did you mean demo?"),
        ("replay/dmeo", "did you mean replay/demo?"),
        ("elsewhere", "there are beyond, demo, laws, paper_grid, paper_table, "),
        ("../secret", "no shipped configuration"),
    ],
)
def test_a_name_that_there_is_not_gets_the_near_ones(name, says, capsys):
    assert replay.main(["--config", name]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_path_may_be_inside_an_installed_package(tmp_path):
    assert Path(located("package:optscale_jax/tiny/pool.npz")) == pool_path()
    assert located("optscale_jax/tiny/pool.npz") == "optscale_jax/tiny/pool.npz"
    for path in ("package:no_such_package/x", "package:no.such.package/x", "package:"):
        with pytest.raises(InputError, match="the package is not installed"):
            located(path)


# The console script -------------------------------------------------------------------------------


def modules_with_a_main() -> set[str]:
    files = [file for folder in ("eval", "train") for file in (ROOT / folder).rglob("*.py")]
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if re.search(r"^(main = command|def main)\(", file.read_text(), re.MULTILINE)
    }


def test_every_command_has_a_name_and_a_sentence(capsys):
    assert modules_with_a_main() == set(commands.COMMANDS.values())
    assert main([]) == main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in commands.COMMANDS:
        line, again = (line for line in lines if line.split()[:1] == [name])
        assert line == again
        assert len(line.split()) > 5


def test_the_list_comes_without_jax():
    script = (
        "import runpy, sys; sys.argv = ['optscale']; "
        f"code = runpy.run_path({str(SCRIPT)!r})['main']();"
        "sys.exit(code or 'jax' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0
    assert "Replays policies over a pool" in run.stdout


def test_a_command_runs_by_its_name_and_says_so_in_its_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        run_command("replay", ["--help"])
    assert "usage: optscale replay " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        replay.main(["--help"])
    assert "usage: python -m eval.replay " in capsys.readouterr().out
    assert run_command("compare_priors", []) == 2  # as the module is called
    assert "checkpoint is not given" in capsys.readouterr().err
    assert run_command("replya", []) == 2
    assert capsys.readouterr().err == "error: replya: no such command; did you mean replay?\n"


# Extras -------------------------------------------------------------------------------------------


def test_extras_are_those_of_the_project():
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        names = [requirement.lower().replace("-", "_") for requirement in extras[extra]]
        for package in packages:
            assert any(name.startswith(package.lower()) for name in names), (extra, package)


WITHOUT = f"""
import json, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sum(EXTRAS.values(), ())!r} and name[:5] != "scipy":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Nothing())
"""


def test_without_an_extra_a_command_names_it_in_one_line():
    script = f"""{WITHOUT}
import contextlib, io
from optscale_jax.cli.commands import COMMANDS
from optscale_jax.cli.console import run_command
found = {{}}
for name in COMMANDS:
    with contextlib.redirect_stderr(io.StringIO()) as error:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                code = run_command(name, ["--help"])
            except SystemExit as stop:
                code = stop.code
    found[name] = [code, error.getvalue()]
print(json.dumps(found))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    found = json.loads(run.stdout)
    remedy = 'is not installed: pip install "optscale-jax[{}]"\n'
    light = (
        "replay",
        "report",
        "solve",
        "sample",
        "show",
        "labels",
        "check-answers",
        "check-decisions",
    )
    for name, (code, error) in found.items():
        if name in light:
            assert (code, error) == (0, ""), name
        elif code:
            assert code == 2, name
            extra = "bench" if name.startswith("bench") else "predictor"
            extras = ("predictor", "live", "serve" if "serve" in name else extra)
            assert error.endswith(tuple(map(remedy.format, (*extras, extra)))), name
            assert error.count("\n") == 1


def test_python_m_names_a_missing_extra_too(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, "-m", "eval.bench", "--help"]
    run = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert re.fullmatch(
        r'error: \w+ is not installed: pip install "optscale-jax\[bench\]"\n', run.stderr
    )
