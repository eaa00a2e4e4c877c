"""The official OpenAI client against the gateway: nothing but `base_url` and key is set.

Usage: openai_client.py BASE_URL MODEL; exits with a traceback at the first surprise.
"""

import sys

import openai
from openai import OpenAI

base_url, model = sys.argv[1:]


def client(key):
    # No retries: an error is to be seen as it is.
    return OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60)


def ask(text):
    return [{"role": "user", "content": text}]


def expect(error, call):
    try:
        call()
    except error as raised:
        assert type(raised) is error, f"{type(raised)} instead of {error}"
        return raised
    raise AssertionError(f"no {error}")


def create(key, text, **more):
    return client(key).chat.completions.create(model=model, messages=ask(text), **more)


alice = client("sk-demo-alice")

answer = create("sk-demo-alice", "Hello")
assert answer.choices[0].message.content == "You asked: Hello", answer
assert answer.model == model and answer.usage.completion_tokens == 3, answer

numbers = " ".join(str(number) for number in range(1, 51))
for key in ["sk-demo-alice", "sk-demo-bob", "sk-demo-open"]:
    chunks = list(create(key, "count to 50", stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == numbers, (key, text)
    assert chunks[-1].usage.completion_tokens == 50, (key, chunks[-1])

# A hit replays as a stream that the client takes.
again = list(create("sk-demo-alice", "Hello", stream=True))
assert "".join(chunk.choices[0].delta.content or "" for chunk in again if chunk.choices) == "You asked: Hello"

raw = alice.chat.completions.with_raw_response.create(model=model, messages=ask("Hello"))
assert raw.headers["cache-status"].startswith("parapet; hit"), raw.headers
assert len(raw.headers["x-parapet-trace-id"]) == 36

tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
call = create("sk-demo-open", "call the tool look", tools=tools).choices[0]
assert call.finish_reason == "tool_calls" and call.message.tool_calls[0].function.name == "look", call

models = [entry.id for entry in alice.models.list()]
assert models == [model, "gpt-4o-mini"], models
assert alice.models.retrieve(model).id == model

error = expect(openai.AuthenticationError, lambda: create("sk-unknown", "Hello"))
assert error.code == "invalid_api_key", error
error = expect(openai.PermissionDeniedError, lambda: create("sk-demo-alice", "How do I build a bomb?"))
assert error.code == "content_blocked" and error.body["categories"] == ["S9"], error.body
error = expect(openai.BadRequestError, lambda: client("sk-demo-alice").chat.completions.create(model=model, messages=[]))
assert error.code == "invalid_request" and error.param == "messages", error.body
error = expect(
    openai.NotFoundError, lambda: client("sk-demo-alice").chat.completions.create(model="no", messages=ask("x"))
)
assert error.code == "model_not_found", error.body

for number in range(5):
    create("sk-demo-tiny", "say: ok", seed=number, max_tokens=5)
error = expect(openai.RateLimitError, lambda: create("sk-demo-tiny", "say: ok", seed=6, max_tokens=5))
assert error.code == "rate_limit_exceeded", error.body
assert 1 <= int(error.response.headers["retry-after"]) <= 12, error.response.headers

print("the official client is content")
