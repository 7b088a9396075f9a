"""llama.cpp's own functions, and what it says. The only module that imports llama_cpp.

And only its low-level half: the package's `__init__` also brings numpy, diskcache and jinja2, which takes
300 ms instead of 50.
"""

import ctypes
import importlib.machinery
import os
import re
import sys
import types
from typing import Any

from mdl.errors import EngineError


def _low_level() -> Any:
    """`llama_cpp.llama_cpp`, without running `llama_cpp/__init__.py`."""
    spec = importlib.machinery.PathFinder.find_spec("llama_cpp", sys.path)
    if spec is None or not spec.submodule_search_locations:
        raise EngineError("llama-cpp-python is not installed", hint="pip install llama-cpp-python")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    try:
        import llama_cpp.llama_cpp as low_level
    except (RuntimeError, OSError, ImportError, AttributeError) as error:
        cause = " ".join(str(error).split())
        raise EngineError(
            f"llama.cpp cannot be loaded: {cause}", hint="install llama-cpp-python again"
        ) from None
    return low_level


C = _low_level()
_ERROR, _CONTINUED = 4, 5  # ggml_log_level


class Log:
    """What llama.cpp says: errors go to stderr, where a death report finds them. A warning would be taken for
    the cause there."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.offloaded = 0
        self._level = 0
        self.callback = C.llama_log_callback(self._hear)  # llama.cpp calls it as long as the process lives

    def _hear(self, level: int, text: bytes, _: Any) -> None:
        self._level = level if level != _CONTINUED else self._level
        if match := re.search(rb"offloaded (\d+)/\d+ layers", text):
            self.offloaded = int(match[1])
        line = " ".join(text.decode("utf-8", "replace").split()) if self._level >= _ERROR else ""
        if line:
            self.errors = [*self.errors[-15:], line]
            os.write(2, line.encode("utf-8", "replace") + b"\n")

    def cause(self) -> str:
        """The first error, which the later ones only pass on, without the names of functions before it."""
        return (
            re.sub(r"^(\w+: |error loading model: )+", "", self.errors[0])
            if self.errors
            else "no reason given"
        )


def function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml that llama_cpp does not declare. On Linux and macOS it is found through libllama,
    which is linked to ggml; Windows looks in the library alone, and raises AttributeError."""
    function = C._lib[name]
    function.restype, function.argtypes = result, arguments
    return function


def string(call: Any, *arguments: Any) -> str:
    buffer = ctypes.create_string_buffer(256)
    length = call(*arguments, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") if length >= 0 else ""


def decoded(text: bytes | None) -> str:
    return (text or b"").decode("utf-8", "replace").strip()
