"""What a model can be asked for, told from its header and its chat template. Loads nothing."""

import re
from collections.abc import Mapping
from typing import Any

from mdl import gguf
from mdl.errors import MdlError
from mdl.model import Model

_RANK = 4  # enum llama_pooling_type
_THINKING = re.compile(r"\b(enable_thinking|thinking)\b")
_TOOLS = re.compile(r"\btools\b")
_INFILL = ("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id")


def of(model: Model) -> tuple[str, ...]:
    """Of completion, chat, tools, thinking, infill, embedding and rerank those that it was made for; none
    where that cannot be told."""
    weights = model.paths("weights")
    if model.summary.format != "gguf" or not weights:
        return ()
    try:
        return read(gguf.read(weights[0]).metadata)
    except (MdlError, OSError):
        return ()


def read(header: Mapping[str, Any]) -> tuple[str, ...]:
    """The same, of what a GGUF file says of itself."""
    architecture = header.get("general.architecture")
    pooling = header.get(f"{architecture}.pooling_type")
    if pooling == _RANK:
        return ("rerank",)
    if header.get(f"{architecture}.attention.causal") is False or pooling in (1, 2, 3):
        return ("embedding",)
    template = header.get("tokenizer.chat_template")
    text = template if isinstance(template, str) else ""
    more = {
        "tools": _TOOLS.search(text),
        "thinking": _THINKING.search(text),
        "infill": any(name in header for name in _INFILL),
    }
    return ("completion", "chat", *(name for name, found in more.items() if found))
