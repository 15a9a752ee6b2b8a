"""A judge's score as an expectation over its verdict's word."""

import asyncio
import math

import pytest

from optscale_jax.backends.config import JudgeConfig, ServerConfig, VerifierConfig
from optscale_jax.backends.generative import GenerativeVerifier, Weighed
from optscale_jax.backends.make import make_verifier
from optscale_jax.records import Completion, Problem
from tests.loopback import Scripted, events, serving


class Weighing:
    """A sampler of one text, token by token, with the probabilities at one of them."""

    def __init__(self, tokens, likely, at):
        logs = {token: math.log(p) for token, p in likely.items()}
        self.likely = tuple((one, logs if i == at else {one: 0.0}) for i, one in enumerate(tokens))

    async def sample(self, problem, n, first_index, *, abort):
        text = "".join(token for token, _ in self.likely)
        for index in range(n):
            yield Weighed(index, text, len(self.likely), "stop", 100, likely=self.likely)

    async def close(self):
        pass


@pytest.mark.parametrize(
    ("tokens", "likely", "at", "value"),
    [
        # The word's first token, with the blank before it or without.
        (["Verdict", ":", " correct"], {" correct": 0.6, " incorrect": 0.2, " no": 0.2}, 2, 0.75),
        (["Verdict: ", "in", "correct"], {"in": 0.5, "correct": 0.3, "c": 0.1}, 1, 4 / 9),
        (["Verdict: ", "Correct", "."], {"Correct": 0.9, "INCORRECT": 0.1}, 1, 0.9),
        (["Verdict: corr", "ect<end>"], {"Verdict: corr": 0.3, "Verdict: inc": 0.1}, 0, 0.75),
        # The last verdict of several.
        (["verdict incorrect ", "verdict", " correct"], {" correct": 0.4, " in": 0.4}, 2, 0.5),
        # Tokens that do not begin as the word does say nothing; nor do those of neither word.
        (["Verdict:", " correct"], {" correct": 0.2, "incorrect": 0.7, "\n": 0.1}, 1, 1.0),
        (["Verdict: ", "incorrect"], {"wrong": 0.9}, 1, 0.0),
    ],
)
def test_score_is_the_expectation_over_the_verdicts_word(tokens, likely, at, value):
    verifier = GenerativeVerifier(JudgeConfig(samples=3), Weighing(tokens, likely, at))
    completions = [Completion(0, "It is 2.", 9)]
    (score,) = asyncio.run(verifier.score(Problem("p", "1 + 1?"), completions))
    assert score.value == pytest.approx(value, rel=1e-12)
    assert score.note is None


PLACES = [
    ("Verdict:", {"Verdict:": -0.1}),
    (" correct", {" correct": math.log(0.6), " in": math.log(0.2)}),
]


def chat(text, others):
    tops = [{"token": token, "logprob": value} for token, value in others.items()]
    logs = {"content": [{"token": text, "logprob": -1, "top_logprobs": tops}]}
    return {"index": 0, "delta": {"content": text}, "logprobs": logs}


def plain(text, others):
    logs = {"tokens": [text], "token_logprobs": [-1], "top_logprobs": [others]}
    return {"index": 0, "text": text, "logprobs": logs}


@pytest.mark.parametrize("form", [chat, plain])
@pytest.mark.parametrize("spoil", [None, "content", "tops"])
def test_a_servers_probabilities_are_those_of_its_tokens(form, spoil):
    choices = [form(*place) for place in PLACES]
    if spoil:  # of a form that nobody knows
        choices[1]["logprobs"] = {"content": 5} if spoil == "content" else {"tokens": ["x"]}
    stream = [{"choices": [choice]} for choice in choices]
    stream += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    server = Scripted(events(*stream))

    async def main():
        async with serving(server) as urls:
            asked = VerifierConfig(
                kind="generative",
                backend="server",
                model="m",
                judge=JudgeConfig(samples=2),
                server=ServerConfig(base_urls=urls, vllm=False),
            )
            verifier = await asyncio.to_thread(make_verifier, asked, seed=0)
            try:
                completions = [Completion(0, "It is 2.", 9)]
                return (await verifier.score(Problem("p", "1 + 1?"), completions))[0]
            finally:
                await verifier.close()

    score = asyncio.run(main())
    assert score.value == pytest.approx(1.0 if spoil else 0.75, rel=1e-12)
    sent = server.requests[0][1]
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 20)
