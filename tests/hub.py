"""A stand-in for the Hugging Face hub: its API, its files and its CDN, on loopback, with faults on order.

Answers as the real one does, as far as mdl asks: https://huggingface.co/docs/hub/api and huggingface_hub 2.4.
Repositories live in memory. The CDN is another port, which is another origin, and answers 400 to anything
that brings an Authorization header, as signed addresses do.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

GOOD = "hf_good"  # may read everything
STRANGER = "hf_stranger"  # a valid login that nobody has given access to anything
_LFS = (".gguf", ".safetensors", ".bin", ".pt", ".onnx", ".h5", ".msgpack")
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|refs|auth-check)(?:/([^/]+))?)?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_SMALL = re.compile(r"/api/resolve-cache/models/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)")


@dataclass
class Repository:
    name: str
    gated: str | bool = False
    private: bool = False
    disabled: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)  # what else the hub says of it: cardData, downloads…

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put these files in place of all that were there; the new commit."""
        identity = f"{self.name} {branch} {len(self.commits)}"
        sha = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch, a tag, or at least seven digits of a commit."""
        known = self.branches.get(revision) or self.tags.get(revision)
        if known or len(revision) < 7:
            return known
        return next((sha for sha in self.commits if sha.startswith(revision)), None)


@dataclass(frozen=True)
class Seen:
    """A request, as it came."""

    port: str  # hub or cdn
    method: str
    path: str
    authorization: str | None
    range: str | None


class Hub:
    """The hub on one port and its CDN on another; use as a context manager."""

    def __init__(self, page: int = 1000) -> None:
        self.page = page  # entries of one page of a listing
        self.repositories: dict[str, Repository] = {}
        self.pages: dict[str, Answer] = {}  # what lies at other addresses, by path
        self.seen: list[Seen] = []
        self.sent: Counter[str] = Counter()  # bytes of bodies by port
        self.rate: float | None = None  # bytes a second of one connection
        self.counting = threading.Lock()
        self.faults: list[tuple[str, Any]] = []
        self._hub = _serve(self, "hub")
        self._cdn = _serve(self, "cdn")
        self.url = f"http://127.0.0.1:{self._hub.server_port}"
        self.cdn_url = f"http://127.0.0.1:{self._cdn.server_port}"

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: Mapping[str, bytes], **options: Any) -> Repository:
        repository = self.repositories[name] = Repository(name, **options)
        repository.commit(files)
        return repository

    def put(self, path: str, content: bytes, **headers: str) -> str:
        """Let a file lie at a plain address, which is returned."""
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        self.pages[path] = Answer(200, content, {**_bytes(content).headers, **extra})
        return self.url + quote(path)

    # Faults: each holds for as many requests whose path contains `part` as ordered

    def answer(self, part: str, *answers: "Answer") -> None:
        """Answer so instead, once each."""
        self.faults += [(part, answer) for answer in answers]

    def cut(self, part: str, after: int) -> None:
        """Drop the connection once, after so many bytes of a body."""
        self.faults.append((part, after))

    def before(self, part: str, action: Callable[[], object]) -> None:
        """Do something once, before such a request is answered."""
        self.faults.append((part, action))

    def fault(self, path: str) -> Any:
        for index, (part, fault) in enumerate(self.faults):
            if part in path:
                del self.faults[index]
                return fault
        return None

    # What tests ask afterwards

    def requests(self, part: str = "", port: str = "") -> list[Seen]:
        return [seen for seen in self.seen if part in seen.path and port in ("", seen.port)]

    def forget(self) -> None:
        self.seen.clear()


@dataclass(frozen=True)
class Answer:
    """What goes over the wire: a status, headers, and a body unless it is None."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def page(html: str = "<html><body>Please log in to this network</body></html>") -> Answer:
    """What a captive portal answers to everything."""
    return Answer(200, html.encode(), {"Content-Type": "text/html"})


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the tree lists it."""
    fields: dict[str, Any] = {"type": "file", "oid": git_id(content), "size": len(content), "path": path}
    if path.endswith(_LFS):
        pointer = hashlib.sha1(sha256(content).encode()).hexdigest()  # the id of the pointer, not of the file
        fields |= {
            "oid": pointer,
            "lfs": {"oid": sha256(content), "size": len(content), "pointerSize": 134},
        }
    return fields


def _serve(hub: Hub, port: str) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"hub": hub, "port": port})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that go away are expected
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


def _json(document: object, status: int = 200, headers: Mapping[str, str] = {}) -> Answer:
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json", **headers})


def _error(status: int, code: str, message: str) -> Answer:
    named = {"X-Error-Code": code} if code else {}
    return _json({"error": message}, status, {"X-Error-Message": message, **named})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    port: str

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        authorization = self.headers.get("Authorization")
        self.hub.seen.append(
            Seen(self.port, self.command, unquote(self.path), authorization, self.headers.get("Range"))
        )
        fault = self.hub.fault(unquote(self.path))
        if callable(fault):
            fault()
        answer = fault if isinstance(fault, Answer) else self._route()
        self._send(answer, cut=fault if isinstance(fault, int) else None)

    def _send(self, answer: Answer, cut: int | None) -> None:
        status, body, headers = answer.status, answer.body, dict(answer.headers)
        if status == 200 and "Accept-Ranges" in headers:
            status, body, headers = self._ranged(body, headers)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def _write(self, body: bytes) -> None:
        step = 16 << 10 if self.hub.rate else 1 << 20
        for start in range(0, len(body), step):
            part = body[start : start + step]
            self.wfile.write(part)
            with self.hub.counting:
                self.hub.sent[self.port] += len(part)
            time.sleep(len(part) / self.hub.rate if self.hub.rate else 0)

    def _ranged(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or self.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
            return 200, body, headers
        start, end = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
        if start >= len(body):
            return 416, b"", headers | {"Content-Range": f"bytes */{len(body)}"}
        return 206, body[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(body)}"}

    def _route(self) -> Answer:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if self.port == "cdn":
            return self._content(path, query)
        if unquote(path) in self.hub.pages:
            return self.hub.pages[unquote(path)]
        if path == "/api/models":
            return self._list(query)
        if match := _API.fullmatch(path):
            return self._ask(match[1], match[2] or "revision", unquote(match[3] or "main"), query)
        if match := _SMALL.fullmatch(path):
            return self._file(match[1], match[2], unquote(match[3]), moved=True)
        if match := _FILE.fullmatch(path):
            return self._file(match[1], unquote(match[2]), unquote(match[3]))
        return _error(404, "", "Sorry, we can't find the page you are looking for.")

    def _open(self, name: str, content: bool) -> Repository | Answer:
        """The repository, or the hub's own way of refusing it."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and not token.startswith("hf_"):
            return _error(401, "", "Invalid credentials in Authorization header")
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and token != GOOD):
            return _error(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.disabled:
            return _error(403, "", "Access to this resource is disabled.")
        if content and repository.gated and token != GOOD:
            return _error(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
        return repository

    def _ask(self, name: str, verb: str, revision: str, query: dict[str, list[str]]) -> Answer:
        repository = self._open(name, content=verb == "auth-check")
        if isinstance(repository, Answer):
            return repository
        if verb == "auth-check":
            return Answer(200, b"OK")
        if verb == "refs":
            return _json(_refs(repository))
        sha = repository.find(revision)
        if sha is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if verb == "revision":
            state = {"id": name, "sha": sha, "gated": repository.gated, "private": repository.private}
            asked = {
                name: repository.info[name] for name in query.get("expand", ()) if name in repository.info
            }
            return _json({**asked, **state})
        return self._tree(repository.commits[sha], int(query.get("cursor", ["0"])[0]))

    def _list(self, query: dict[str, list[str]]) -> Answer:
        """As the real one: all words in the name, the whole name of the owner, all tags; pages by Link."""

        def wanted(repository: Repository) -> bool:
            name = repository.name.lower()
            owner = repository.name.partition("/")[0]
            seen = not repository.private or token == GOOD
            words = query.get("search", [""])[0].lower().split()
            author = query.get("author", [owner])[0]
            has = set(query.get("filter", [])) <= set(_tags(repository))
            return seen and has and author == owner and all(word in name for word in words)

        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and not token.startswith("hf_"):
            return _error(401, "", "Invalid credentials in Authorization header")
        key = query.get("sort", ["trendingScore"])[0]
        found = sorted(filter(wanted, self.hub.repositories.values()), key=lambda r: r.info.get(key) or 0)
        entries = [_entry_of_list(repository, query.get("expand", [])) for repository in reversed(found)]
        start, count = (
            int(query.get(name, [default])[0]) for name, default in (("cursor", "0"), ("limit", "1000"))
        )
        stop = start + min(count, self.hub.page)
        more = {"Link": f'<{self.hub.url}{self.path.partition("&cursor")[0]}&cursor={stop}>; rel="next"'}
        return _json(entries[start:stop], headers=more if stop < len(entries) else {})

    def _tree(self, files: Mapping[str, bytes], start: int) -> Answer:
        entries = [entry(path, content) for path, content in files.items()]
        stop = start + self.hub.page
        more = {"Link": f'<{self.hub.url}{self.path.partition("&cursor")[0]}&cursor={stop}>; rel="next"'}
        return _json(entries[start:stop], headers=more if stop < len(entries) else {})

    def _file(self, name: str, revision: str, path: str, moved: bool = False) -> Answer:
        repository = self._open(name, content=True)
        if isinstance(repository, Answer):
            return repository
        sha = repository.find(revision)
        if sha is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if path not in repository.commits[sha]:
            return _error(404, "EntryNotFound", "Entry not found")
        place = f"{name}/{sha}/{quote(path)}"
        if path.endswith(_LFS):
            location = f"{self.hub.cdn_url}/{place}?Signature=secret-signature"
            return Answer(302, b"", {"Location": location})
        if not moved:
            return Answer(
                307, b"", {"Location": f"/api/resolve-cache/models/{name}/{sha}/{quote(path, safe='')}"}
            )
        return _bytes(repository.commits[sha][path])

    def _content(self, path: str, query: dict[str, list[str]]) -> Answer:
        if "Authorization" in self.headers:
            return Answer(400, b"two ways to authenticate")
        if query.get("Signature") != ["secret-signature"]:
            return Answer(403, b"no signature")
        owner, name, sha, file = unquote(path[1:]).split("/", 3)
        return _bytes(self.hub.repositories[f"{owner}/{name}"].commits[sha][file])


def _tags(repository: Repository) -> list[str]:
    files = repository.commits[repository.branches["main"]]
    gguf = ["gguf"] if any(name.endswith(".gguf") for name in files) else []
    return [*repository.info.get("tags", []), *gguf]


def _entry_of_list(repository: Repository, asked: list[str]) -> dict[str, Any]:
    files = repository.commits[repository.branches["main"]]
    known = {
        **repository.info,
        "private": repository.private,
        "gated": repository.gated,
        "tags": _tags(repository),
        "siblings": [{"rfilename": name} for name in files],
    }
    return {"id": repository.name, **{name: known[name] for name in asked if name in known}}


def _bytes(content: bytes) -> Answer:
    headers = {"ETag": f'"{sha256(content)}"', "Accept-Ranges": "bytes"}
    return Answer(200, content, headers | {"Content-Type": "application/octet-stream"})


def _refs(repository: Repository) -> dict[str, Any]:
    def listed(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()
        ]

    return {
        "branches": listed("heads", repository.branches),
        "converts": [],
        "tags": listed("tags", repository.tags),
    }
