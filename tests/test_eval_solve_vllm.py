"""eval.solve on real engines of vLLM, and what its shipped configurations tell vLLM."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from eval import check_decisions
from optscale_jax.backends.make import make_sampler, make_verifier
from optscale_jax.cli import parse
from optscale_jax.errors import BackendError
from optscale_jax.live.config import SolveConfig
from optscale_jax.problems import BENCHMARKS
from optscale_jax.readers import read_pool
from tests.checkpoints import save_model

pytestmark = [
    pytest.mark.vllm,
    # Those of vLLM and torch, when they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "solve"

# As the models' config.json have them.
SIZES = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
    },
    "Qwen/QwQ-32B": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "max_position_embeddings": 40960,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    },
    "Qwen/Qwen2.5-Math-PRM-7B": {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 4096,
    },
}


def parameters(name: str) -> int:
    """How many numbers a model of these sizes has; biases of the attention included."""
    s = SIZES[name]
    width, keys = s["hidden_size"], s["num_key_value_heads"] * head_size(name)
    biases = 0 if s["model_type"] == "llama" else width + 2 * keys
    attention = 2 * width * width + 2 * width * keys + biases
    layer = attention + 3 * width * s["intermediate_size"] + 2 * width
    total = s["num_hidden_layers"] * layer + width + s["vocab_size"] * width
    if "Reward" in s["architectures"][0]:
        return total + width * (width + 1) + 2 * (width + 1)
    return total + s["vocab_size"] * width  # untied


def head_size(name: str) -> int:
    return SIZES[name]["hidden_size"] // SIZES[name]["num_attention_heads"]


def bytes_per_token(name: str) -> int:
    sizes = SIZES[name]
    return 2 * sizes["num_hidden_layers"] * sizes["num_key_value_heads"] * head_size(name) * 2


@pytest.mark.parametrize("name", SIZES)
def test_the_documented_memory_is_the_sum(name):
    (line,) = re.findall(
        rf"^\| {re.escape(name.split('/')[1])} \|(.* B \|.*)$",
        (ROOT / "docs" / "live.md").read_text(),
        re.M,
    )
    found = [float(number.replace(",", "")) for number in re.findall(r"[0-9][0-9,.]*", line)]
    count, token = parameters(name), bytes_per_token(name)
    expected = [count / 1e9, 2 * count / 2**30, token / 2**10]
    if "PRM" in name:
        expected += [4096, 4096 * token / 2**30]
    else:
        expected += [12288 * token / 2**30, 18432 * token / 2**30]
    # To the last digit shown.
    assert found == pytest.approx(expected, abs=0.051)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("generator", ["r1_qwen7b", "qwq_32b", "llama31_8b"])
def test_the_papers_configurations_are_built_up_to_the_weights(
    generator, benchmark, tmp_path, monkeypatch
):
    from vllm.v1.engine.async_llm import AsyncLLM

    files = [CONFIGS / f"math500_{generator}.yaml"]
    if benchmark != "math500":
        files.append(CONFIGS / f"{benchmark}.yaml")
    arguments = [part for file in files for part in ("--config", str(file))]
    # Folders with the models' sizes in the place of the hub's models.
    models = {}
    for name, sizes in SIZES.items():
        models[name] = tmp_path / name
        models[name].mkdir(parents=True)
        (models[name] / "config.json").write_text(json.dumps(sizes))
    config = parse(SolveConfig, arguments, prog="solve", description="")
    for part in ("sampler", "verifier"):
        name = getattr(config, part).model
        arguments += [f"--{part}.model", str(models[name])]
    config = parse(SolveConfig, arguments, prog="solve", description="")
    config.configured_policy()

    class BeforeTheWeights(Exception):
        pass

    def stop(engine_arguments, *_, **__):
        engine_config = engine_arguments.create_engine_config()
        started.append(engine_config)
        raise BeforeTheWeights

    started = []
    monkeypatch.setattr(AsyncLLM, "from_engine_args", stop)
    # This machine need not have the GPUs.
    monkeypatch.setattr("optscale_jax.backends.vllm_engine._check_device", lambda *_, **__: None)
    for make, part in ((make_sampler, config.sampler), (make_verifier, config.verifier)):
        with pytest.raises(BackendError) as raised:
            make(part, seed=0)
        assert isinstance(raised.value.__cause__, BeforeTheWeights), raised.value
    sampler, verifier = started
    longest = config.sampler.engine.max_model_len
    assert sampler.model_config.max_model_len == longest
    assert sampler.parallel_config.tensor_parallel_size == 1 + (generator == "qwq_32b")
    assert verifier.model_config.max_model_len == 4096
    assert verifier.model_config.runner_type == "pooling"


def kept(out: Path) -> bytes:
    file = out / "samples.jsonl"
    return file.read_bytes() if file.exists() else b""


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    """A live run of random models, whose completions are noise; --out is to be added."""
    base = tmp_path_factory.mktemp("models")
    problems = base / "problems.jsonl"
    lines = ({"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(12))
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    models = [
        f"--sampler.model={save_model(base / 'reasoner')}",
        f"--verifier.model={save_model(base / 'verifier', reward=True)}",
    ]
    policy = ["--policy.s_min=0.5", "--policy.alpha=0.9", "--policy.max_samples=12"]
    policy += ["--policy.min_samples=3", "--sampler.max_tokens=60", "--sampler.temperature=1"]
    policy += ["--sampler.logprobs=true"]
    return [sys.executable, "-m", "eval.solve", f"--problems={problems}", *models, *policy]


def test_a_run_on_real_engines_that_is_interrupted_goes_on_and_decides_as_replay_does(
    command, tmp_path, capsys
):
    out = tmp_path / "run"
    asked = {"cwd": ROOT, "env": {**os.environ, "JAX_PLATFORMS": "cpu"}, "text": True}
    # One problem after another, so that most are yet to be drawn when the first line is there.
    asked |= {
        "args": [*command, "--max_in_flight=1", "--out", str(out)],
        "stdout": -1,
        "stderr": -1,
    }
    with subprocess.Popen(**asked, start_new_session=True) as process:
        while process.poll() is None and not kept(out):
            time.sleep(0.002)
        engines = psutil.Process(process.pid).children(recursive=True)
        # As a terminal does, to all that it runs in the foreground.
        os.killpg(process.pid, signal.SIGINT)
        printed = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert printed[1].splitlines()[-1].startswith("interrupted; what was drawn is kept"), printed
    assert engines
    assert not psutil.wait_procs(engines, timeout=30)[1]
    before = kept(out)
    assert before.endswith(b"\n")
    done = subprocess.run(**asked)
    assert done.returncode == 0, done.stderr
    assert kept(out).startswith(before)
    assert len(kept(out)) > len(before)
    lines = (out / "samples.jsonl").read_text().splitlines()
    keys = [(record["problem_id"], record["index"]) for record in map(json.loads, lines)]
    assert len(set(keys)) == len(keys)
    pool = read_pool(out)
    assert pool.num_problems == 12
    assert pool.samples_per_problem.min() >= 3
    assert len(pool.signals) == 6
    assert (pool.signals["verifier_tokens"][pool.mask] >= 0).all()
    # A random model of 128 words or so is never sure.
    means = pool.signals["mean_logprob"][pool.mask]
    assert ((means < -0.5) & (means > -20)).all()
    first = json.loads(lines[0])
    row = pool.problem_ids.tolist().index(first["problem_id"])
    assert pool.signals["min_step"][row, first["index"]] == np.float32(min(first["steps"]))
    assert check_decisions.main([str(out)]) == 0
    assert capsys.readouterr().out.endswith("12 of 12\n")
