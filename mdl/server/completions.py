"""OpenAI's completions: JSON to Completion. Knows no answers and no sockets."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mdl.engine.request import Completion, Delta, Sampling
from mdl.profiles import Profile
from mdl.server import openai, texts
from mdl.server.fields import Fields
from mdl.server.openai import Harmless

MOST_PROMPTS = 2048
MOST_LOGPROBS = 5
USUAL_TOKENS = 16  # as OpenAI documents it: without a turn that ends, few texts end by themselves

HARMLESS: Harmless = {
    "user": (str, None, "tells OpenAI whom to blame"),
    "cache_prompt": (bool, (True,), "llama.cpp's word for what is always done"),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request for completions asks for: `each` answers to each of the prompts. `given` is what it says
    of the sampling; the rest is as the model's profile has it."""

    model: str | None
    completions: tuple[Completion, ...]
    given: Mapping[str, Any]
    each: int
    stream: bool
    include_usage: bool
    keep_alive: float | None
    params: Mapping[str, str]

    @property
    def answers(self) -> int:
        return len(self.completions) * self.each

    def requests(self, profile: Profile) -> tuple[Completion, ...]:
        usual = {"max_tokens": USUAL_TOKENS, **profile.sampling, **self.given}
        sampling = Sampling(**usual)
        template = profile.completion_template or ""
        asked = (
            replace(completion, sampling=sampling, template="" if completion.suffix is not None else template)
            for completion in self.completions
        )
        return tuple(request for one in asked for request in openai.several(one, self.each))

    def chunks(self, name: str) -> texts.Chunks:
        return texts.Chunks(name, self.answers, self.each, self.include_usage)

    def whole(self, name: str, answers: list[list[Delta]]) -> dict[str, Any]:
        return texts.completion(name, answers, self.each, "logprobs" in self.given)


def asked(body: Any) -> Asked:
    """Raises Refused (400), which names the field, for what is wrong, unknown or not supported."""
    fields = Fields(body)
    model = fields.text("model")
    stream = fields.flag("stream") or False
    include_usage = openai.include_usage(fields, stream)
    each = _each(fields)
    given = openai.sampling(fields, fewest=0) | _logprobs(fields)
    answers = given.get("max_tokens") != 0
    if not answers:
        del given["max_tokens"]
    echo, suffix = fields.flag("echo") or False, fields.text("suffix")
    if echo and suffix is not None:
        fields.fail("echo", "cannot go with suffix: the model reads them in another order")
    form = openai.form(fields, response_format=False)
    completions = tuple(
        Completion(prompt, suffix=suffix, echo=echo, answers=answers, format=form)
        for prompt in _prompts(fields)
    )
    keep_alive = openai.keep_alive(fields)
    openai.pass_over(fields, HARMLESS)
    fields.done()
    return Asked(model, completions, given, each, stream, include_usage, keep_alive, openai.params(body))


def _each(fields: Fields) -> int:
    each = fields.integer("n", 1, openai.MOST_ANSWERS) or 1
    best_of = fields.integer("best_of", 1, openai.MOST_ANSWERS)
    if best_of not in (None, each):
        fields.fail("best_of", "can only be n: this server does not choose among answers")
    return each


def _logprobs(fields: Fields) -> dict[str, int]:
    logprobs = fields.integer("logprobs", 0, MOST_LOGPROBS)
    return {} if logprobs is None else {"logprobs": logprobs}


def _prompts(fields: Fields) -> list[str | tuple[int, ...]]:
    """A text, tokens, or an array of either."""
    fields.needs("prompt")
    prompt = fields.take("prompt")
    several = isinstance(prompt, list) and not _is_tokens(prompt)
    prompts = prompt if several else [prompt]
    if len(prompts) > MOST_PROMPTS:
        fields.fail("prompt", f"has {len(prompts):,} entries, and may have {MOST_PROMPTS:,}")
    if not prompts or not all(isinstance(one, str) or _is_tokens(one) for one in prompts):
        fields.fail("prompt", "has to be a string, an array of tokens, or an array of either")
    return [one if isinstance(one, str) else tuple(one) for one in prompts]


def _is_tokens(value: Any) -> bool:
    """True for numbers in an array. Whether the model has such tokens is for it to say."""
    return isinstance(value, list) and bool(value) and all(openai.is_token(token) for token in value)
