"""What a file is that llama.cpp is to load, told before it ends the process or says less."""

import ctypes
import os
from pathlib import Path
from typing import Any

from mdl.engine.native import C, function
from mdl.errors import DiskError, NotFound, UnsupportedModel


def check_readable(path: Path) -> None:
    """Raises NotFound, DiskError or UnsupportedModel before llama.cpp says it less well."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except OSError as error:
        raise DiskError(f"{path} cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        raise UnsupportedModel(f"{path.name} is not a GGUF file")


def why_not(path: Path) -> str:
    """For files that are whole and no language model: what they are."""
    header = read_header(path)
    if header.get("general.type") == "adapter":
        return "it is an adapter, which is used together with the model that it was made for"
    if header.get("general.type") == "mmproj" or header.get("general.architecture") == "clip":
        return "it is a projector (mmproj), which is used together with its model"
    return ""


def refuse_what_does_not_answer(model: Any, path: Path) -> None:
    """Raises UnsupportedModel for a loaded model that llama.cpp cannot go on with."""
    vocab = C.llama_model_get_vocab(model)
    for refused, what in (
        (C.llama_vocab_type(vocab) == C.LLAMA_VOCAB_TYPE_NONE, "has no vocabulary"),
        (C.llama_model_has_encoder(model), "has an encoder, which is not supported yet"),
        (not C.llama_model_has_decoder(model), "has no decoder: it writes no answers"),
        (C.llama_model_is_diffusion(model), "is a diffusion model, which is not supported"),
    ):
        if refused:
            raise UnsupportedModel(f"{path.name} {what}")


class _GgufParams(ctypes.Structure):  # struct gguf_init_params in ggml's gguf.h
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def read_header(path: Path) -> dict[str, str]:
    """What the header says about the kind of file; empty where it cannot be read."""
    try:
        init, free, find, text = (
            function(name, *types)
            for name, *types in (
                ("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _GgufParams),
                ("gguf_free", None, ctypes.c_void_p),
                ("gguf_find_key", ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p),
                ("gguf_get_val_str", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64),
            )
        )
        kind = function("gguf_get_kv_type", ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
    except AttributeError:
        return {}
    header = init(os.fsencode(path), _GgufParams(True, None))
    if not header:
        return {}
    try:
        found = {key: find(header, key.encode()) for key in ("general.type", "general.architecture")}
        string = 8  # enum gguf_type
        return {
            key: text(header, index).decode("utf-8", "replace")
            for key, index in found.items()
            if index >= 0 and kind(header, index) == string
        }
    finally:
        free(header)
