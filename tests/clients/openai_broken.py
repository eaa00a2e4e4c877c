"""The official OpenAI client where the answer is no good one: a stream that breaks off, an unsafe answer.

Usage: openai_broken.py BASE_URL MODEL broken|blocked
"""

import sys

import openai
from openai import OpenAI

base_url, model, what = sys.argv[1:]
client = OpenAI(base_url=base_url, api_key="sk-demo-open", max_retries=0, timeout=60)
if what == "blocked":
    client = client.with_options(api_key="sk-demo-alice")
question = [{"role": "user", "content": "Hello"}]

chunks = []
try:
    for chunk in client.chat.completions.create(model=model, messages=question, stream=True):
        chunks.append(chunk)
except openai.APIError as error:
    assert what == "broken", error
    assert chunks, "it broke off before its first token"
    print("raised", type(error).__name__)
else:
    assert what == "blocked", "a broken stream looks like a whole one"
    assert chunks[-1].choices[0].finish_reason == "content_filter", chunks[-1]
    print("filtered")
