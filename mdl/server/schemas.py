"""What requests and answers look like, as JSON Schema, with the limits that their readers have. Knows no
routes.

Where a field of a request may be absent, it may be null as well, which is the same here.
"""

from collections.abc import Iterable
from typing import Any

from mdl.engine.request import MOST_BIASES
from mdl.server import chat, completions, embeddings, messages, openai, tokens, tools

Schema = dict[str, Any]


# Words to say it with


def text(about: str = "", **more: Any) -> Schema:
    return _about({"type": "string", **more}, about)


def one_of(choices: Iterable[Any], about: str = "") -> Schema:
    return _about({"enum": [*choices]}, about)


def number(low: float, high: float, about: str = "") -> Schema:
    return _about({"type": "number", "minimum": low, "maximum": high}, about)


def integer(low: int, high: int | None = None, about: str = "") -> Schema:
    bounds = {"minimum": low} if high is None else {"minimum": low, "maximum": high}
    return _about({"type": "integer", **bounds}, about)


def flag(about: str = "") -> Schema:
    return _about({"type": "boolean"}, about)


def array(items: Schema, most: int | None = None, about: str = "", **more: Any) -> Schema:
    bound = {} if most is None else {"maxItems": most}
    return _about({"type": "array", "items": items, **bound, **more}, about)


def any_of(*schemas: Schema, about: str = "") -> Schema:
    return _about({"anyOf": [*schemas]}, about)


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def asked(needed: dict[str, Schema], **others: Schema) -> Schema:
    """An object in a request: other fields than these are refused."""
    fields = {**{name: _or_null(schema) for name, schema in others.items()}, **needed}
    return {
        "type": "object",
        "properties": fields,
        **_required(needed),
        "additionalProperties": False,
    }


def told(needed: dict[str, Schema], **others: Schema) -> Schema:
    """An object in an answer, to which later versions may add."""
    return {"type": "object", "properties": {**needed, **others}, **_required(needed)}


def nullable(schema: Schema) -> Schema:
    return _or_null(schema)


def _required(names: Iterable[str]) -> Schema:
    return {"required": [*names]} if names else {}


def _about(schema: Schema, about: str) -> Schema:
    return {**schema, "description": about} if about else schema


def _or_null(schema: Schema) -> Schema:
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]} if schema else schema


# Requests

MODEL = text("A name of `GET /v1/models`, or a short form of one. Where one model is served: that one.")
KEEP_ALIVE = any_of(
    {"type": "number", "maximum": 1e9},
    text(
        pattern=r"^-?([0-9]{1,9}|([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+)$", maxLength=openai.LONGEST_DURATION
    ),
    about="How long the model stays when nobody asks for it any more: seconds, or a text like 30s, 5m or "
    "1h30m. Below zero: for ever.",
)
JSON_SCHEMA: Schema = {"type": "object", "description": "A JSON Schema that the answer keeps to."}
TOKEN = integer(0, openai.LARGEST)

_TEXTS = {"type": "string", "minLength": 1}
_ABOUT = {
    "temperature": "0 takes the likeliest token.",
    "top_k": "The k likeliest tokens; 0: all.",
    "top_p": "The likeliest tokens that together have this probability.",
    "min_p": "Tokens that have at least this part of the likeliest one's probability.",
    "top_n_sigma": "Tokens within so many standard deviations of the likeliest one; 0: all.",
    "xtc_probability": "How often the likeliest tokens are left out.",
    "xtc_threshold": "The probability from which on they may be.",
    "mirostat": "1 or 2: that version of Mirostat chooses alone.",
    "seed": "The same seed and request give the same answer; -1 draws a new one.",
    "repeat_penalty": "Against tokens that were among the last ones; 1: none.",
    "repeat_last_n": "Tokens that repeat_penalty looks back; -1: all.",
    "dry_multiplier": "Against repeating sequences; 0: off.",
    "dry_penalty_last_n": "Tokens that DRY looks back; -1: all.",
}
_TYPICAL = number(0, 1, "Tokens of typical probability; 1: all.")


def _sampling(fewest: int) -> dict[str, Schema]:
    most_tokens = integer(fewest, openai.MOST_TOKENS, "Tokens of the answer, at most.")
    return {
        **{name: number(*bounds, _ABOUT.get(name, "")) for name, bounds in openai.NUMBERS.items()},
        **{name: integer(*bounds, _ABOUT.get(name, "")) for name, bounds in openai.INTEGERS.items()},
        "typical_p": _TYPICAL,
        "typical": _TYPICAL,
        "max_tokens": most_tokens,
        "max_completion_tokens": most_tokens,
        "stop": any_of(_TEXTS, array(_TEXTS, openai.MOST_STOPS), about="Where the answer ends, left out."),
        "dry_sequence_breakers": _breakers(),
        "logit_bias": _biases(),
        "ignore_eos": flag("Tokens that end an answer are not taken."),
    }


def _breakers() -> Schema:
    short = {**_TEXTS, "maxLength": openai.LONGEST_BREAKER}
    return any_of(short, array(short, openai.MOST_BREAKERS), about="What DRY sees as ends of sequences.")


def _biases() -> Schema:
    return {
        "type": "object",
        "patternProperties": {"^[0-9]{1,9}$": number(-100, 100)},
        "additionalProperties": False,
        "maxProperties": MOST_BIASES,
        "description": "Added to the logits of tokens; -100 forbids one.",
    }


def _harmless(table: openai.Harmless) -> dict[str, Schema]:
    kinds = {str: "string", dict: "object", bool: "boolean", list: "array"}
    return {
        name: _about({"type": kinds[kind]} if values is None else {"enum": [*values]}, f"No effect: {why}.")
        for name, (kind, values, why) in table.items()
    }


def _generation(fewest: int, harmless: openai.Harmless) -> dict[str, Schema]:
    """What requests for text have in common."""
    options = asked({}, include_usage=flag(), include_obfuscation=flag())
    return {
        "model": MODEL,
        "stream": flag("The answer comes as server-sent events, the last of which is [DONE]."),
        "stream_options": _about(options, "Only with `stream`."),
        "n": integer(1, openai.MOST_ANSWERS, "Answers to each prompt."),
        **_sampling(fewest),
        "grammar": text("A grammar in llama.cpp's GBNF that the answer keeps to."),
        "json_schema": JSON_SCHEMA,
        "keep_alive": KEEP_ALIVE,
        **_harmless(harmless),
    }


_FUNCTION = one_of(["function"])
_CALL = asked(
    {"id": text(), "function": asked({"name": text(), "arguments": text("JSON.")}, parsed_arguments={})},
    type=_FUNCTION,
    index=integer(0, messages.MOST_CALLS),
)
_PARTS = any_of(
    asked({"type": one_of(["text"]), "text": text()}),
    asked({"type": one_of(["refusal"]), "refusal": text()}),
)
_CONTENT = any_of(text(), array(_PARTS, messages.MOST_PARTS))
# What an assistant has said: one of these at least.
_SAID: tuple[dict[str, Schema], ...] = (
    {"content": _CONTENT},
    {"tool_calls": array(_CALL, messages.MOST_CALLS, minItems=1)},
    {"refusal": _TEXTS},
)
_ASSISTANT = {
    "name": text(),
    "refusal": text(),
    "reasoning_content": text(),
    "tool_calls": array(_CALL, messages.MOST_CALLS),
    "annotations": array({}, messages.MOST_PARTS),
    "parsed": {},
}
_MESSAGE = any_of(
    asked({"role": one_of(["system", "developer", "user"]), "content": _CONTENT}, name=text()),
    *(asked({"role": one_of(["assistant"]), **said}, **_ASSISTANT | {"content": _CONTENT}) for said in _SAID),
    asked({"role": one_of(["tool"]), "content": _CONTENT, "tool_call_id": text()}, name=text()),
)
_TOOL = asked(
    {
        "type": _FUNCTION,
        "function": asked(
            {"name": text()},
            description=text(),
            parameters={"type": "object", "description": "A JSON Schema of the arguments."},
            strict=flag(),
        ),
    }
)
_NAMED = {"type": _FUNCTION, "function": asked({"name": text()})}
_TOOL_CHOICE = any_of(
    one_of(["auto", "none", "required"]),
    asked(_NAMED),
    asked(
        {
            "type": one_of(["allowed_tools"]),
            "allowed_tools": asked(
                {
                    "mode": one_of(["auto", "required"]),
                    "tools": array(asked(_NAMED), tools.MOST_TOOLS, minItems=1),
                }
            ),
        }
    ),
)
_RESPONSE_FORMAT = any_of(
    asked({"type": one_of(["text"])}),
    asked({"type": one_of(["json_object"])}, schema=JSON_SCHEMA),
    asked(
        {
            "type": one_of(["json_schema"]),
            "json_schema": asked({"name": text()}, schema=JSON_SCHEMA, description=text(), strict=flag()),
        }
    ),
)


def _chat() -> Schema:
    return asked(
        {"messages": array(ref("Message"), messages.MOST_MESSAGES, minItems=1)},
        **_generation(1, chat.HARMLESS),
        logprobs=flag("Tells the probability of each token."),
        top_logprobs=integer(0, chat.MOST_LOGPROBS, "And of so many that were likely; only with logprobs."),
        response_format=_RESPONSE_FORMAT,
        tools=array(_TOOL, tools.MOST_TOOLS),
        tool_choice=_TOOL_CHOICE,
        parallel_tool_calls=flag("False: at most one call."),
        reasoning_effort=one_of(chat.EFFORTS, "Anything but none: the model thinks, if it can."),
        chat_template_kwargs=asked({}, enable_thinking=flag()),
    )


def _completion() -> Schema:
    tokens_ = array(TOKEN, minItems=1)
    prompts = array(any_of(text(), tokens_), completions.MOST_PROMPTS, minItems=1)
    about = "A text, tokens, or several of either, each of which is answered."
    return asked(
        {"prompt": any_of(text(), tokens_, prompts, about=about)},
        **_generation(0, completions.HARMLESS)
        | {"max_tokens": integer(0, openai.MOST_TOKENS, "Of each answer, at most; by default 16.")},
        best_of=integer(1, openai.MOST_ANSWERS, "Can only be n."),
        echo=flag("The answer begins with the prompt. With `max_tokens` 0 it is no more than that."),
        suffix=text("What comes after the answer; only for models that were made to fill in."),
        logprobs=integer(
            0, completions.MOST_LOGPROBS, "Tells the probability of each token and so many others."
        ),
    )


def _tokenize() -> Schema:
    begun = "The model's own beginning, if it has one, comes first"
    content = text("A text.", maxLength=tokens.MOST_CHARACTERS)
    common = {"model": MODEL, "keep_alive": KEEP_ALIVE}
    return any_of(
        asked({"content": content}, add_special=flag(f"{begun}; by default it does not."), **common),
        asked({"prompt": content}, add_special_tokens=flag(f"{begun}, which is the default."), **common),
        ref("ChatRequest"),
    )


def _detokenize() -> Schema:
    return asked({"tokens": array(TOKEN, tokens.MOST_TOKENS)}, model=MODEL, keep_alive=KEEP_ALIVE)


def _embedding() -> Schema:
    words = text(minLength=1)
    tokens_ = array(TOKEN, minItems=1)
    several = array(any_of(words, tokens_), embeddings.MOST_INPUTS, minItems=1)
    return asked(
        {"input": any_of(words, tokens_, several, about="A text, tokens, or several of either.")},
        model=MODEL,
        encoding_format=one_of(["float", "base64"], "base64: of little-endian float32."),
        dimensions=integer(1, embeddings.LARGEST, "The first ones of each vector, of length one again."),
        truncate=flag("Cuts texts that are too long for the model at their end, instead of refusing them."),
        keep_alive=KEEP_ALIVE,
        user=text(),
    )


def _rerank() -> Schema:
    words = text(minLength=1)
    return asked(
        {
            "query": words,
            "documents": array(any_of(words, asked({"text": words})), embeddings.MOST_DOCUMENTS, minItems=1),
        },
        model=MODEL,
        top_n=integer(1, embeddings.MOST_DOCUMENTS, "Only so many, the most relevant ones."),
        return_documents=flag("Tells the documents again, not only their places."),
        keep_alive=KEEP_ALIVE,
    )


def _bare(**others: Schema) -> Schema:
    """What needs no fields at all. Of others, null is as good as nothing."""
    return {**asked({}, **others), "additionalProperties": {"type": "null"}}


_SOURCE = text(
    "A reference, as `mdl download` takes it: an address, or host/org/name:version. No path.", minLength=1
)
REQUESTS = {
    "ChatRequest": _chat(),
    "Message": _MESSAGE,
    "CompletionRequest": _completion(),
    "EmbeddingRequest": _embedding(),
    "RerankRequest": _rerank(),
    "TokenizeRequest": _tokenize(),
    "DetokenizeRequest": _detokenize(),
    "FetchRequest": any_of(asked({"source_url": _SOURCE}, model=_SOURCE), asked({"model": _SOURCE})),
    "DownloadRequest": _bare(),
    "StartRequest": _bare(keep_alive=KEEP_ALIVE),
    "HaltRequest": _bare(force=flag("Does not wait for the answers that it is giving.")),
    "StopRequest": asked({"model": MODEL}, force=flag("Does not wait for the answers that it is giving.")),
}

# Answers

_COUNT = integer(0)
_REAL: Schema = {"type": "number", "minimum": 0}
_LOGPROB = {"type": "number", "maximum": 1e-6}  # of what is certain, by the last digit of a sum
_FINISH = one_of(["stop", "length", "tool_calls"])
_USAGE = told(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": told({"cached_tokens": _COUNT}),
    }
)
_TIMINGS = told(
    {
        "prompt_n": _COUNT,
        "prompt_ms": _REAL,
        "prompt_per_second": _REAL,
        "predicted_n": _COUNT,
        "predicted_ms": _REAL,
        "predicted_per_second": _REAL,
    }
)
_TOLD_TOKEN = {"token": text(), "bytes": array(integer(0, 255)), "logprob": _LOGPROB}
_CHAT_LOGPROBS = told(
    {
        "content": array(told({**_TOLD_TOKEN, "top_logprobs": array(told(_TOLD_TOKEN))})),
        "refusal": {"type": "null"},
    }
)
_TOLD_CALL = {"id": text(), "type": _FUNCTION, "function": told({"name": text(), "arguments": text()})}
_ANSWER = told(
    {"role": one_of(["assistant"]), "content": nullable(text()), "refusal": {"type": "null"}},
    reasoning_content=text(),
    tool_calls=array(told(_TOLD_CALL)),
)
_TEXT_LOGPROBS = told(
    {
        "tokens": array(text("One that is a part of a character: bytes:\\x…")),
        "token_logprobs": array(nullable(_LOGPROB)),
        "top_logprobs": array(nullable({"type": "object", "additionalProperties": _LOGPROB})),
        "text_offset": array(_COUNT, about="Where each token begins in the text."),
    }
)


_HEAD = {"id": text(), "created": _COUNT, "model": text()}


def _generated(kind: str, **choice: Schema) -> Schema:
    return told(
        {
            **_HEAD,
            "object": one_of([kind]),
            "choices": array(told({"index": _COUNT, **choice, "finish_reason": _FINISH})),
            "usage": ref("Usage"),
            "timings": ref("Timings"),
        }
    )


def _chunk(kind: str, **choice: Schema) -> Schema:
    choices = array(told({"index": _COUNT, **choice, "finish_reason": nullable(_FINISH)}))
    return told(
        {**_HEAD, "object": one_of([kind]), "choices": choices},
        usage=nullable(ref("Usage")),
        timings=ref("Timings"),
    )


def events(name: str) -> Schema:
    """Each event of a stream. What fails after the stream has begun is told in it."""
    data = text(contentMediaType="application/json", contentSchema=any_of(ref(name), ref("Error")))
    return told({"data": any_of(one_of(["[DONE]"]), data)}, event=one_of(["message"]))


def job_events() -> Schema:
    """Each event of a download that is watched."""
    data = text(contentMediaType="application/json", contentSchema=ref("Job"))
    names = one_of(["progress", "done", "error", "cancelled"])
    return told({"data": data, "event": names}, id=text("Of the last one."))


_CALL_PIECE = told(
    {"index": _COUNT, "function": told({"arguments": text()}, name=text())},
    id=text("In the first piece of a call, like the name."),
    type=_FUNCTION,
)
_DELTA = told(
    {},
    role=one_of(["assistant"]),
    content=text(),
    reasoning_content=text(),
    tool_calls=array(_CALL_PIECE),
)
_STATE = one_of(["not-downloaded", "downloading", "ready", "starting", "running", "stopping", "error"])
_CAPABILITIES = array(
    one_of(["completion", "chat", "tools", "thinking", "infill", "embedding", "rerank"]),
    about="What it was made for, as its header tells.",
)
_MODEL = told(
    {
        "id": text(),
        "object": one_of(["model"]),
        "created": {"type": "integer"},
        "owned_by": text(),
        "reference": text("Its full name."),
        "version": text(),
        "state": _STATE,
        "loaded": flag(),
        "size": _COUNT,
        "format": nullable(text()),
        "quantization": nullable(text()),
        "architecture": nullable(text()),
        "parameters": nullable(_COUNT),
        "context_length": nullable(_COUNT),
        "capabilities": _CAPABILITIES,
    }
)
_CAUSE = nullable(
    told(
        {
            "code": integer(0, about="The exit code of the command."),
            "message": text(),
            "hint": nullable(text()),
        }
    )
)
_JOB = told(
    {
        "id": text(),
        "object": one_of(["job"]),
        "model": text("The name of what is fetched; at the end with its version."),
        "state": one_of(["queued", "downloading", "cancelling", "done", "cancelled", "error"]),
        "bytes": integer(0, about="Of the model that are here."),
        "total": nullable(_COUNT),
        "speed": nullable(integer(0, about="Bytes a second.")),
        "eta": nullable({"type": "number", "minimum": 0, "description": "Seconds that it still takes."}),
        "error": _CAUSE,
        "note": nullable(text()),
        "created": _COUNT,
        "ended": nullable(_COUNT),
    }
)
_ERROR = told(
    {
        "error": told(
            {
                "message": text("What went wrong, and what to do."),
                "type": one_of(["invalid_request_error", "server_error"]),
                "param": nullable(text("The field that is wrong.")),
                "code": nullable(text()),
            }
        )
    }
)

_ENGINE = told(
    {
        "model": text(),
        "name": text(),
        "version": text(),
        "state": one_of(["loading", "ready", "busy", "leaving"]),
        "size": nullable(_COUNT),
        "vram": nullable(_COUNT),
        "processor": nullable(text('As "100% GPU" or "48%/52% CPU/GPU".')),
        "context": nullable(_COUNT),
        "cells": nullable(_COUNT),
        "parallel": nullable(_COUNT),
        "requests": _COUNT,
        "pid": nullable(_COUNT),
        "since": nullable(text()),
        "until": nullable(
            text("When it goes if nobody asks for it; null where that is not known, or never.")
        ),
        "note": nullable(text()),
    }
)

_FILE = told({"name": text(), "size": nullable(_COUNT), "sha256": nullable(text()), "role": text()})
_REVISION = told({"kind": nullable(text()), "name": nullable(text()), "commit": nullable(text())})
_METADATA = told(
    {
        "id": text(),
        "object": one_of(["model.metadata"]),
        "reference": text(),
        **dict.fromkeys(
            ("host", "format", "quantization", "architecture", "license", "problem"), nullable(text())
        ),
        **dict.fromkeys(("path", "name", "version", "kind", "modified"), text()),
        "parameters": nullable(_COUNT),
        "context_length": nullable(_COUNT),
        "size": _COUNT,
        "revision": _REVISION,
        "partial": flag(),
        "files": array(_FILE),
        "capabilities": _CAPABILITIES,
        "header": nullable(
            {"type": "object", "description": "The keys; of a long array its type and length."}
        ),
    }
)

_READ = told({"prompt_tokens": _COUNT, "total_tokens": _COUNT})
_VECTOR = told(
    {
        "object": one_of(["embedding"]),
        "index": _COUNT,
        "embedding": any_of(array({"type": "number"}), text("In base64, where that was asked for.")),
    }
)
_RANKED = told(
    {
        "index": _COUNT,
        "relevance_score": {
            "type": "number",
            "description": "As the model gives it: the higher, the more relevant.",
        },
    },
    document=told({"text": text()}),
)

ANSWERS = {
    "ChatCompletion": _generated("chat.completion", message=_ANSWER, logprobs=nullable(_CHAT_LOGPROBS)),
    "Completion": _generated("text_completion", text=text(), logprobs=nullable(_TEXT_LOGPROBS)),
    "Embeddings": told({"object": one_of(["list"]), "data": array(_VECTOR), "model": text(), "usage": _READ}),
    "Reranking": told(
        {"object": one_of(["list"]), "model": text(), "results": array(_RANKED), "usage": _READ}
    ),
    "ChatChunk": _chunk("chat.completion.chunk", delta=_DELTA, logprobs=nullable(_CHAT_LOGPROBS)),
    "CompletionChunk": _chunk("text_completion", text=text(), logprobs=nullable(_TEXT_LOGPROBS)),
    "Usage": _USAGE,
    "Timings": _TIMINGS,
    "Tokens": told({"tokens": array(TOKEN), "count": _COUNT}),
    "Text": told({"content": text()}),
    "Model": _MODEL,
    "Models": told({"object": one_of(["list"]), "data": array(ref("Model"))}),
    "Deleted": told({"id": text(), "object": one_of(["model"]), "deleted": one_of([True]), "freed": _COUNT}),
    "ModelState": told(
        {
            "id": text(),
            "object": one_of(["model.state"]),
            "state": _STATE,
            "error": _CAUSE,
            "job": nullable(ref("Job")),
            "engine": nullable(_ENGINE),
        }
    ),
    "Metadata": _METADATA,
    "Job": _JOB,
    "Jobs": told({"object": one_of(["list"]), "data": array(ref("Job"))}),
    "Engines": told({"schema": one_of([1]), "engines": array(_ENGINE)}),
    "Stopped": told({"schema": one_of([1]), "stopped": text()}),
    "Status": told({"status": text()}),
    "Error": _ERROR,
}
