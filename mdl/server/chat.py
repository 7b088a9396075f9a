"""OpenAI's chat completions: JSON to Chat. Knows no tokens, paths or sockets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mdl.engine.request import Chat, Delta, Message, Sampling
from mdl.profiles import Profile
from mdl.server import chunks, openai
from mdl.server.fields import Fields
from mdl.server.messages import messages
from mdl.server.openai import Harmless
from mdl.server.tools import tools

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
MOST_LOGPROBS = 20

HARMLESS: Harmless = {
    "store": (bool, (False,), "nothing is ever stored"),
    "metadata": (dict, None, "describes what is stored, which is nothing"),
    "user": (str, None, "tells OpenAI whom to blame"),
    "safety_identifier": (str, None, "the same under its newer name"),
    "prompt_cache_key": (str, None, "a hint for routing among machines"),
    "prompt_cache_retention": (str, None, "a hint on what to pay for"),
    "prompt_cache_options": (dict, None, "the same in more words"),
    "cache_prompt": (bool, (True,), "llama.cpp's word for what is always done"),
    "service_tier": (str, ("auto", "default"), "there is one"),
    "modalities": (list, (["text"],), "text is what comes"),
    "verbosity": (str, ("medium",), "the default"),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request for a chat completion asks for. `given` is what it says of the sampling; the rest is as
    the model's profile has it."""

    model: str | None
    chat: Chat
    given: Mapping[str, Any]
    answers: int
    stream: bool
    include_usage: bool
    keep_alive: float | None
    params: Mapping[str, str]

    def requests(self, profile: Profile) -> tuple[Chat, ...]:
        return openai.several(profile.chat(self.chat, self.given), self.answers)

    def chunks(self, name: str) -> chunks.Chunks:
        return chunks.Chunks(name, self.answers, self.include_usage)

    def whole(self, name: str, answers: list[list[Delta]]) -> dict[str, Any]:
        return chunks.completion(name, answers, self.chat.sampling.logprobs is not None)


def asked(body: Any) -> Asked:
    """Raises Refused (400), which names the field, for what is wrong, unknown or not supported."""
    fields = Fields(body)
    model = fields.text("model")
    stream = fields.flag("stream") or False
    include_usage = openai.include_usage(fields, stream)
    answers = fields.integer("n", 1, openai.MOST_ANSWERS) or 1
    given = openai.sampling(fields) | _logprobs(fields)
    said = messages(fields)
    chat = Chat(
        said,
        Sampling(**given),
        **_thinking(fields),
        format=openai.form(fields),
        continues=_is_begun(said),
        **tools(fields)._asdict(),
    )
    keep_alive = openai.keep_alive(fields)
    openai.pass_over(fields, HARMLESS)
    fields.done()
    params = openai.params(body)
    return Asked(model, chat, given, answers, stream, include_usage, keep_alive, params)


def _logprobs(fields: Fields) -> dict[str, int]:
    wanted = fields.flag("logprobs") or False
    top = fields.integer("top_logprobs", 0, MOST_LOGPROBS) or 0
    if top and not wanted:
        fields.fail("top_logprobs", "goes only with logprobs: true")
    return {"logprobs": top} if wanted else {}


def _is_begun(said: tuple[Message, ...]) -> bool:
    """Whether the last message is the beginning of the answer."""
    return said[-1].role == "assistant" and not said[-1].tool_calls


def _thinking(fields: Fields) -> dict[str, Any]:
    """Fields of Chat: whether to think first, and how long, by OpenAI's word or by llama.cpp's switch."""
    effort = fields.choice("reasoning_effort", *EFFORTS) or ""
    by_effort = effort != "none" if effort else None
    thinking = None
    if (options := fields.object("chat_template_kwargs")) is not None:
        thinking = options.flag("enable_thinking")
        options.done()
    if None not in (thinking, by_effort) and thinking != by_effort:
        fields.fail("reasoning_effort", "says something else than chat_template_kwargs.enable_thinking")
    return {"thinking": by_effort if thinking is None else thinking, "effort": effort}
