"""A real server in a process of its own, on a port that is free, and a small client for it."""

import http.client
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import mdl

DEMO = Path(mdl.__file__).parent / "models" / "mdl-demo-Q8_0.gguf"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a story."}]
CHAT = "/v1/chat/completions"

_SERVE = """
import json, logging, sys
from pathlib import Path
from mdl.config import Settings
from mdl.engine.request import EngineSettings
from mdl.errors import MdlError
from mdl.library import Library
from mdl.server.options import Limits, ServeOptions
from mdl.server.run import serve
logging.basicConfig(stream=sys.stderr, level="INFO", format="%(name)s %(levelname)s %(message)s")
home, options = Path(sys.argv[1]), json.loads(sys.argv[2])
try:
    options["engine"] = EngineSettings(**options.get("engine", {}))
    options["limits"] = Limits(**options.get("limits", {}))
    options["models"] = tuple(options.get("models", ()))
    options["allow_hosts"] = tuple(options.get("allow_hosts", ()))
    settings = Settings(home, **options.pop("settings", {}))
    serve(Library(settings), ServeOptions(**options), lambda url: print(url, flush=True))
except MdlError as error:
    print(error.message, "|", error.hint, file=sys.stderr)
    sys.exit(error.code)
except KeyboardInterrupt:
    sys.exit(130)
"""


class Server:
    """`options` are those of ServeOptions, with `engine` and `limits` as dicts, and so the `settings`."""

    def __init__(self, home: Path, **options: Any) -> None:
        options = {"port": 0, **options}
        self.log = home.parent / f"{home.name}-{time.monotonic_ns()}.log"
        self.key = options.get("api_key", "")
        with self.log.open("w") as log:
            command = [sys.executable, "-c", _SERVE, str(home), json.dumps(options)]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rpartition(":")[2] or 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def end(self, number: int = signal.SIGTERM, patience: float = 15.0) -> int:
        """Asks it to end; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(patience)

    def connect(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, body (parsed if it is JSON) and headers."""
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        connection = self.connect()
        try:
            connection.request(method, path, body, {**key, **(headers or {})})
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(data) if is_json else data, response.headers

    def chat(self, messages: list[dict[str, Any]] = FRANCE, **fields: Any) -> tuple[int, Any]:
        """Status and body of a chat completion; greedy unless the fields say otherwise."""
        body = {"model": "demo", "messages": messages, "temperature": 0, **fields}
        status, answer, _ = self.ask("POST", CHAT, json.dumps(body).encode())
        return status, answer

    def workers(self) -> list[int]:
        """The processes of its engines."""
        return children(self.process.pid)


def endless(folder: Path) -> Path:
    """A copy of the demo in which the token that ends its answers is an ordinary one, so that they go on."""
    end = b"tokenizer.ggml.eos_token_id" + struct.pack("<I", 4)
    data = DEMO.read_bytes().replace(end + struct.pack("<I", 2), end + struct.pack("<I", 0))
    folder.mkdir(parents=True)
    copy = folder / "endless.gguf"
    copy.write_bytes(data.replace(b"<|im_end|>", b"<|im_and|>"))
    return copy


def text(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(entry.name))
    return found


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def cache(home: Path, *names: str) -> Path:
    """A home with copies of the demo under these names, put there by hand; `endless` is one that is."""
    for name in names:
        folder = home / "models" / "quay.io" / "org" / name
        if name == "endless":
            endless(folder)
            continue
        folder.mkdir(parents=True)
        shutil.copy(DEMO, folder / f"{name}.gguf")
    return home
