"""The standard OpenAI client works unchanged; answers, streams and errors are what it expects."""

import openai
import pytest

from d1ray.serving.config import ServeConfig
from d1ray.serving.local import local_app

ASK = {"model": "tiny", "max_tokens": 24, "seed": 7, "temperature": 1.0}
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def url(text_folder, listening):
    config = ServeConfig(model=text_folder, sampling={"gen_length": 32, "steps": 16, "block_length": 8})
    with listening(local_app(config)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_the_models_are_listed_with_what_the_server_allows(client):
    [model] = client.models.list().data
    assert model.id == "tiny"
    assert model.d1ray["defaults"]["block_length"] == 8
    assert model.d1ray["limits"]["max_tokens"] == 1024 and model.d1ray["limits"]["context"] == 256
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_a_completion(client):
    answer = client.completions.create(prompt="2+2=", **ASK)
    [choice] = answer.choices
    assert answer.object == "text_completion" and answer.model == "tiny"
    assert choice.finish_reason == "length" and len(choice.text) >= 24  # a tag is one token
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 24, 28)
    assert usage.forwards >= 3 and usage.seconds > 0


def test_equal_seeds_give_equal_answers_and_others_give_others(client):
    first, again = (client.completions.create(prompt="2+2=", **ASK) for _ in range(2))
    other = client.completions.create(prompt="2+2=", **ASK | {"seed": 8})
    assert first.choices == again.choices != other.choices
    drawn = client.completions.create(prompt="2+2=", **ASK | {"seed": None})
    repeated = client.completions.create(prompt="2+2=", **ASK | {"seed": drawn.d1ray["seed"]})
    assert drawn.choices == repeated.choices


def test_tokens_are_a_prompt_as_well_and_several_prompts_have_several_choices(client):
    text = client.completions.create(prompt=["2+2=", "1"], n=2, **ASK)
    assert [choice.index for choice in text.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in text.choices}) == 4
    tokens = client.completions.create(prompt=[[28, 21, 28, 39]], n=2, **ASK)
    assert tokens.usage.prompt_tokens == 4
    alone = client.completions.create(prompt="1", **ASK)
    assert alone.choices[0].text == text.choices[2].text


def test_a_chat(client):
    answer = client.chat.completions.create(messages=HI, **ASK)
    [choice] = answer.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert answer.usage.prompt_tokens == 4  # <|user|> h i <|assistant|>
    assert answer.id.startswith("chatcmpl-") and answer.system_fingerprint.startswith("d1ray-")
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    assert client.chat.completions.create(messages=parts, **ASK).choices == answer.choices


def test_the_assistants_last_message_is_continued(client):
    prefilled = [*HI, {"role": "assistant", "content": "<reasoning>"}]
    answer = client.chat.completions.create(messages=prefilled, **ASK)
    assert answer.usage.prompt_tokens == 5


def test_a_stream_adds_up_to_the_whole_answer(client):
    for make, given, text in (
        (client.chat.completions.create, {"messages": HI}, lambda choice: choice.delta.content or ""),
        (client.completions.create, {"prompt": "2+2="}, lambda choice: choice.text),
    ):
        whole = make(**given, n=2, **ASK)
        chunks = list(make(**given, n=2, stream=True, stream_options={"include_usage": True}, **ASK))
        texts, reasons = ["", ""], [None, None]
        for chunk in chunks[:-1]:
            [choice] = chunk.choices
            texts[choice.index] += text(choice)
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        assert reasons == [choice.finish_reason for choice in whole.choices]
        expected = [getattr(choice, "text", None) or choice.message.content for choice in whole.choices]
        assert texts == expected
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_options_has_no_usage(client):
    chunks = list(client.chat.completions.create(messages=HI, stream=True, **ASK))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_text_comes_block_by_block_while_the_model_is_at_work(client):
    options = {"decoding": "low_confidence", "steps": 24, "block_length": 8}
    chunks = client.chat.completions.create(
        messages=HI, stream=True, extra_body={"diffusion": options}, **ASK
    )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(pieces) >= 3


def test_stop_strings_end_the_text(client):
    whole = client.completions.create(prompt="2+2=", **ASK).choices[0].text
    stop = whole[10:12]
    stopped = client.completions.create(prompt="2+2=", stop=[stop, "zzz"], **ASK).choices[0]
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"
    streamed = client.completions.create(prompt="2+2=", stop=stop, stream=True, **ASK)
    assert "".join(chunk.choices[0].text for chunk in streamed) == stopped.text


def test_each_request_may_say_how_it_is_denoised(client):
    def forwards(**options) -> int:
        greedy = ASK | {"temperature": 0, "extra_body": {"diffusion": options}}
        answer = client.completions.create(prompt="2", **greedy)
        assert answer.usage.completion_tokens == 24
        return answer.usage.forwards

    assert forwards(decoding="low_confidence", steps=24) == 24
    assert forwards(decoding="low_confidence", steps=6) == 6
    assert forwards(decoding="low_confidence", steps=4, block_length=24) == 4
    assert forwards(decoding="threshold", threshold=0.0) == 3  # a block a step
    assert forwards(decoding="low_confidence", steps=6, cache="dual") == 6
    assert forwards(decoding="low_confidence") == 12  # steps in proportion to the server's defaults


@pytest.mark.parametrize(
    ("given", "status", "code", "param"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found", "model"),
        ({"max_tokens": 5000}, 400, None, "max_tokens"),
        ({"max_tokens": 300}, 400, "context_length_exceeded", "max_tokens"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"n": 50}, 400, None, "n"),
        ({"stop": list("abcde")}, 400, None, "stop"),
        ({"temperature": -1}, 400, "invalid_value", "temperature"),
        ({"top_p": 0.5}, 400, "invalid_value", "top_p"),
        ({"presence_penalty": 1}, 400, "invalid_value", "presence_penalty"),
        ({"extra_body": {"tools": []}}, 400, "unknown_parameter", "tools"),
        ({"extra_body": {"diffusion": {"step": 3}}}, 400, "unknown_parameter", "diffusion.step"),
        (
            {"extra_body": {"diffusion": {"steps": 7, "decoding": "random"}}},
            400,
            "invalid_value",
            "diffusion",
        ),
        ({"extra_body": {"diffusion": {"steps": 10**12}}}, 400, None, "diffusion.steps"),
        ({"extra_body": {"diffusion": {"block_length": 10**12}}}, 400, None, "diffusion.block_length"),
        ({"extra_body": {"diffusion": {"events": True}}}, 400, None, "diffusion.events"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "invalid_value", "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, None, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, 400, "context_length_exceeded", "prompt"),
    ],
)
def test_what_cannot_be_done_is_said_in_openais_format(client, given, status, code, param):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"messages": HI, **ASK, **given})
    error = caught.value
    assert (error.status_code, error.code, error.param) == (status, code, param)
    assert error.body["type"] == "invalid_request_error" and error.body["message"]


@pytest.mark.parametrize("prompt", ["", [], [[]], [200], [[5, 10**9]]])
def test_impossible_prompts_are_refused(client, prompt):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt=prompt, **ASK)
    assert caught.value.param == "prompt"
