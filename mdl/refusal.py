"""What a file is that is no weights file, from its first bytes, and what to do about it.

Knows neither GGUF nor safetensors. Unpickles, unpacks and runs nothing.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mdl.errors import MdlError, UnsupportedModel
from mdl.header import line


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a path is not used: it is a model that cannot run here (`is_model`), or no model at all."""

    what: str  # a few words: an HTML page, a truncated GGUF file
    message: str
    hint: str
    is_model: bool
    failure: type[MdlError] = UnsupportedModel
    is_damage: bool = False  # a model that would run if it were whole

    def error(self) -> MdlError:
        return self.failure(self.message, self.hint)


def refuse(path: Path, what: str, hint: str, is_model: bool = False) -> Refusal:
    return Refusal(what, f"{path} is {what}", hint, is_model)


GET_GGUF = "look for a GGUF version of this model"
_NEVER_RUN = f"pickles can run any code and are never loaded: {GET_GGUF}"
_UNPACK = "unpack it, and name what it holds"

# How a file begins: what it is, what to do, whether it is a model
BEGINNINGS: tuple[tuple[bytes, str, str, bool], ...] = (
    (b"nsgg", "a saved session of llama.cpp", "name the model's own file", False),
    (b"ftrt", "a TensorRT engine", f"it runs only in TensorRT: {GET_GGUF}", True),
    (b"ptrt", "a TensorRT engine", f"it runs only in TensorRT: {GET_GGUF}", True),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it", GET_GGUF, True),
    (b"\x93NUMPY", "a NumPy array", GET_GGUF, True),
    (b"\x1f\x8b", "a gzip archive", _UNPACK, False),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK, False),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK, False),
    (b"BZh", "a bzip2 archive", _UNPACK, False),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK, False),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK, False),
    (b"\x7fELF", "a program", "name a model file", False),
    (b"MZ", "a program", "name a model file", False),
    (b"\x89PNG\r\n\x1a\n", "an image", "name a model file", False),
    (b"\xff\xd8\xff", "an image", "name a model file", False),
    (b"%PDF-", "a PDF document", "name a model file", False),
)
_LFS = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:.*\n)*?oid sha256:([0-9a-f]{64})\nsize ([0-9]+)"
)
_HTML = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*(?:<!--|<!doctype html|<html|<head|<body)", re.IGNORECASE)
# ONNX has no magic: protobuf field 1 (IR version, a small number), then one of the model's other fields.
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42\x72\xca]")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")


def sniff(path: Path, head: bytes, size: int) -> Refusal | None:
    """What a file is that is no weights file; None when it is nothing known."""
    if not head:
        return refuse(path, "an empty file", "download it again")
    if pointer := _LFS.match(head):
        return _lfs(path, pointer)
    if head.startswith(b"# xet version "):
        return refuse(
            path, "a Xet pointer, not the file itself", "fetch it with git xet, or mdl download", True
        )
    for beginning, what, hint, is_model in BEGINNINGS:
        if head.startswith(beginning):
            return refuse(path, what, hint, is_model)
    return _sniff_structure(path, head, size)


def _lfs(path: Path, pointer: re.Match[bytes]) -> Refusal:
    oid, size = pointer[1].decode(), int(pointer[2][:20])
    what = f"a Git LFS pointer, not the file itself ({size:,} bytes, sha256:{oid[:12]})"
    return refuse(path, what, "run git lfs pull in its folder, or download the model with mdl", is_model=True)


def _sniff_structure(path: Path, head: bytes, size: int) -> Refusal | None:
    if head.startswith(b"PK\x03\x04"):
        if b"data.pkl" in head:  # torch.save puts it first
            return refuse(path, "a PyTorch checkpoint (a zip of pickles)", _NEVER_RUN, is_model=True)
        return refuse(path, "a zip archive", _UNPACK)
    if head[257:262] == b"ustar":
        return refuse(path, "a tar archive", _UNPACK)
    if _PICKLE.match(head):
        return refuse(path, "a Python pickle, as PyTorch writes it", _NEVER_RUN, is_model=True)
    if _HTML.match(head):
        return refuse(path, "an HTML page", "open its address in a browser: it may ask you to log in")
    if _ONNX.match(head):
        return refuse(path, "an ONNX model", f"it runs only in ONNX runtimes: {GET_GGUF}", is_model=True)
    if head[4:8] == b"TFL3":
        return refuse(path, "a TensorFlow Lite model", GET_GGUF, is_model=True)
    if path.suffix.lower() in (".engine", ".plan") and b"\0" in head:
        return refuse(path, "a TensorRT engine, by its name", f"it runs only in TensorRT: {GET_GGUF}", True)
    return _sniff_text(path, head, size)


def _sniff_text(path: Path, head: bytes, size: int) -> Refusal | None:
    if not head.strip(b"\0"):
        return refuse(path, f"{size:,} bytes that begin with nothing but zeros", "download it again")
    if b"\0" in head:
        return None
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return refuse(path, "a JSON file", "name a GGUF file or a folder that holds a model")
    if all(byte >= 32 or byte in b"\t\r\n\f\x1b" for byte in head):
        return refuse(path, f"a text file ({line(head[:60].decode(errors='replace'))})", "name a model file")
    return None
