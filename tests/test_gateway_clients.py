"""The gateway as OpenAI's, LangChain's and LiteLLM's clients see it, which know nothing of it."""

import asyncio
import gc
import inspect
import json

import openai
import pydantic
import pytest

from optscale_jax.gateway.config import ServeConfig
from optscale_jax.study.registry import PolicyConfig
from tests.gateway import Upstream, box, gateway, served
from tests.loopback import chunk

# What theirs warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")
MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]
BOXED = "\\boxed{4}"


class Sum(pydantic.BaseModel):
    """The answer."""

    value: int


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


ARGUMENTS = {name: {"type": "integer"} for name in "ab"}
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": ARGUMENTS}},
}


def say(body, i):
    """Votes are 5, 4, 4, 3; calls and JSON where they are asked for."""
    if "tools" in body:
        call = {"index": 0, "id": f"call_{i}", "type": "function"}
        call |= {"function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
        return [
            {"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": None}]},
            {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
        ]
    if body.get("response_format", {}).get("type", "text") != "text":
        return [chunk('{"value": 4}'), chunk("", finish="stop", tokens=5)]
    pieces = box([5, 4, 4, 3][i % 4])
    if body.get("logprobs"):
        token = {"token": "4", "logprob": -0.5, "bytes": [52], "top_logprobs": []}
        chat = {"content": [token]}
        text = {"tokens": ["4"], "token_logprobs": [-0.5], "top_logprobs": [{}], "text_offset": [0]}
        pieces[0]["choices"][0]["logprobs"] = chat if "messages" in body else text
    return pieces


@pytest.fixture(scope="module")
def url():
    rule = PolicyConfig("self_consistency", n=4)

    def make(upstream):
        return ServeConfig(models=[served(upstream, policies=(rule,))])

    with gateway(Upstream(say), make_config=make) as running:
        yield f"{running.url}/v1"


@pytest.mark.parametrize("kind", [openai.OpenAI, openai.AsyncOpenAI])
def test_all_that_openais_client_can_ask_for_works(url, kind):
    async def done(found):
        return await found if inspect.isawaitable(found) else found

    async def pieces(stream):
        stream = await done(stream)
        return [one async for one in stream] if hasattr(stream, "__aiter__") else list(stream)

    async def main():
        asked = kind(base_url=url, api_key="x", max_retries=0)
        chats, given = asked.chat.completions, {"model": "m", "messages": MESSAGES}
        found = await done(chats.create(**given, n=2, logprobs=True))
        assert found.choices[0].message.content == BOXED
        assert [one.index for one in found.choices] == [0, 1]
        assert found.choices[0].logprobs.content[0].bytes == [52]
        found = await pieces(chats.create(**given, stream=True))
        assert "".join(one.choices[0].delta.content or "" for one in found) == BOXED
        found = await done(chats.create(**given, tools=[TOOL]))
        (call,) = found.choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"a": 2, "b": 2}
        found = await pieces(chats.create(**given, tools=[TOOL], stream=True))
        (call,) = [c for one in found for c in one.choices[0].delta.tool_calls or ()]
        assert (call.index, call.function.name) == (0, "add")
        found = await done(chats.parse(**given, response_format=Sum))
        assert found.choices[0].message.parsed == Sum(value=4)
        text = await done(asked.completions.create(model="m", prompt="2 + 2 =", logprobs=1))
        assert text.choices[0].text == BOXED
        assert text.choices[0].logprobs.token_logprobs == [-0.5]
        found = await pieces(asked.completions.create(model="m", prompt="2 + 2 =", stream=True))
        assert "".join(one.choices[0].text for one in found) == BOXED
        assert (await done(asked.models.retrieve("m"))).id == "m"
        names = await pieces(asked.models.list())
        assert [one.id for one in names] == ["m", "m@self_consistency"]
        await done(asked.close())

    asyncio.run(main())


def test_langchains_client_works(url):
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    from langchain_core.messages import HumanMessage

    asked = HumanMessage("What is 2 + 2?")
    given = {"model": "m", "base_url": url, "api_key": "x", "max_retries": 0}
    model = langchain.ChatOpenAI(**given)
    found = model.invoke("What is 2 + 2?")
    assert (found.content, found.usage_metadata["output_tokens"]) == (BOXED, 20)
    assert "".join(one.content for one in model.stream("What is 2 + 2?")) == BOXED
    assert asyncio.run(model.ainvoke("What is 2 + 2?")).content == BOXED
    (several,) = langchain.ChatOpenAI(**given, n=2).generate([[asked]]).generations
    assert len({one.text for one in several}) == 2
    (call,) = model.bind_tools([add]).invoke("What is 2 + 2?").tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 2, "b": 2})
    assert model.with_structured_output(Sum).invoke("What is 2 + 2?") == Sum(value=4)
    text = langchain.OpenAI(**given)
    assert text.invoke("2 + 2 =") == "".join(text.stream("2 + 2 =")) == BOXED


def test_litellms_client_works(url):
    litellm = pytest.importorskip(
        "litellm", reason="litellm is not installed: it wants its own boto3"
    )
    given = {"api_base": url, "api_key": "x", "max_retries": 0}
    chat = {"model": "openai/m", "messages": MESSAGES, **given}
    found = litellm.completion(**chat, n=2)
    assert found.choices[0].message.content == BOXED
    assert len(found.choices) == 2
    assert found.usage.completion_tokens == 20
    streamed = litellm.completion(**chat, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in streamed) == BOXED

    async def main():
        found = await litellm.acompletion(**chat)
        await litellm.close_litellm_async_clients()
        return found.choices[0].message.content

    assert asyncio.run(main()) == BOXED
    found = litellm.completion(**chat, tools=[TOOL])
    (call,) = found.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"a": 2, "b": 2}
    found = litellm.completion(**chat, response_format=Sum)
    assert Sum.model_validate_json(found.choices[0].message.content) == Sum(value=4)
    found = litellm.text_completion(model="text-completion-openai/m", prompt="2 + 2 =", **given)
    assert found.choices[0].text == BOXED
    gc.collect()  # of what it leaves, while warnings are off
