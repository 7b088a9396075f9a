"""A real registry (Debian's docker-registry), and a front for it that asks for tokens, sends on to a CDN, and
fails on order. Needs the Debian packages docker-registry and apache2-utils. Knows nothing of mdl."""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import trustme

USER, PASSWORD = "mdl", "secret"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
_CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {folder}/data}}
  delete: {{enabled: true}}
  redirect: {{disable: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "127.0.0.1:{port}"{tls}}}
"""
_TLS = ", tls: {{certificate: {folder}/chain.pem, key: {folder}/chain.pem}}"
_AUTH = "auth: {{htpasswd: {{realm: mdl-test, path: {folder}/htpasswd}}}}\n"
_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "authorization", "date", "server"}


class Blob(NamedTuple):
    """A content of an artifact, and what its descriptor says."""

    content: bytes
    media_type: str = "application/octet-stream"
    annotations: Mapping[str, str] = {}

    @property
    def digest(self) -> str:
        return digest(self.content)

    @property
    def descriptor(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": len(self.content),
        }
        return found | ({"annotations": dict(self.annotations)} if self.annotations else {})


def titled(name: str, content: bytes, media_type: str = "application/octet-stream") -> Blob:
    """A file as `oras push` makes it."""
    return Blob(content, media_type, {"org.opencontainers.image.title": name})


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def manifest(layers: Sequence[Blob], config: Blob | None = None, **more: Any) -> dict[str, Any]:
    config = config or Blob(b"{}", EMPTY)
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in layers],
        **more,
    }


class Registry:
    """A docker-registry at `host`, on https with an `authority`. `with Registry(folder) as registry:`"""

    def __init__(self, folder: Path, *, private: bool = False, authority: trustme.CA | None = None) -> None:
        self.folder, self.private, self.port, self.authority = folder, private, _free_port(), authority
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if authority else 'http'}://{self.host}"

    def __enter__(self) -> "Registry":
        self.folder.mkdir(parents=True, exist_ok=True)
        tls = _TLS.format(folder=self.folder) if self.authority else ""
        text = _CONFIG.format(folder=self.folder, port=self.port, tls=tls)
        if self.authority:
            chain = self.authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
            chain.write_to_path(str(self.folder / "chain.pem"))
        if self.private:
            made = subprocess.run(["htpasswd", "-Bbn", USER, PASSWORD], capture_output=True, check=True)
            (self.folder / "htpasswd").write_bytes(made.stdout)
            text += _AUTH.format(folder=self.folder)
        (self.folder / "config.yml").write_text(text)
        program = shutil.which("docker-registry") or "/usr/bin/docker-registry"
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, "serve", str(self.folder / "config.yml")], stdout=log, stderr=log,
                env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
            )  # fmt: skip
        self._wait()
        return self

    def _wait(self) -> None:
        for _ in range(200):
            with contextlib.suppress(OSError):
                if self.request("GET", "/v2/")[0] in (200, 401):
                    return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> tuple[int, dict[str, str], bytes]:
        connection = self._connection()
        own = {"Authorization": BASIC} if self.private else {}
        connection.request(method, path, body, {**own, **headers})
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def _connection(self) -> http.client.HTTPConnection:
        if not self.authority:
            return http.client.HTTPConnection(self.host, timeout=30)
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return http.client.HTTPSConnection(self.host, timeout=30, context=context)

    def put_blob(self, path: str, content: bytes) -> str:
        status, headers, _ = self.request("POST", f"/v2/{path}/blobs/uploads/")
        assert status == 202, status
        place = headers["location"].removeprefix(self.url)
        address = f"{place}{'&' if '?' in place else '?'}digest={digest(content)}"
        status, _, said = self.request("PUT", address, content, {"Content-Type": "application/octet-stream"})
        assert status == 201, said
        return digest(content)

    def put_manifest(self, path: str, name: str, document: Mapping[str, Any] | bytes) -> str:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        kind = str(json.loads(body)["mediaType"])
        status, headers, said = self.request(
            "PUT", f"/v2/{path}/manifests/{name}", body, {"Content-Type": kind}
        )
        assert status == 201, said
        return headers["docker-content-digest"]

    def push(
        self, path: str, tag: str, layers: Sequence[Blob], config: Blob | None = None, **more: Any
    ) -> str:
        """Put an artifact there; the digest of its manifest."""
        for blob in (*layers, config or Blob(b"{}", EMPTY)):
            self.put_blob(path, blob.content)
        return self.put_manifest(path, tag, manifest(layers, config, **more))


@dataclass(frozen=True)
class Seen:
    """A request that a front got. `port` is registry or cdn."""

    port: str
    method: str
    path: str
    query: str
    authorization: str
    range: str
    when: float


@dataclass
class Behaviour:
    """How a front is at the moment; tests change it while it runs."""

    private: bool = False  # tokens only for USER with PASSWORD
    seconds: float = 300  # that a token holds
    realm: str | None = None  # another one than its own
    challenge: str | None = None  # instead of the right WWW-Authenticate; "" is none at all
    cdn: bool = True  # whether contents are somewhere else
    statuses: dict[str, list[int]] = field(default_factory=dict)  # answers to come for paths that hold a text
    retry_after: str = "1"
    flip: bool = False  # a bit of each content
    cut: list[int] = field(default_factory=list)  # bytes of the next contents after which they end
    headers: dict[str, str] = field(default_factory=dict)  # of manifests, in place of the right ones
    manifests: dict[str, bytes] = field(default_factory=dict)  # by tag or digest, in place of the right ones


class Front:
    """A registry that is as Docker Hub and quay.io are: `with Front(registry) as front:`"""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.now = Behaviour()
        self.seen: list[Seen] = []
        self.tokens: dict[str, tuple[str, float]] = {}
        self.refresh_tokens = {"identity": USER}
        self._servers = {name: self._serve(name) for name in ("registry", "cdn")}
        self.host = f"127.0.0.1:{self._servers['registry'].server_port}"
        self.url = f"http://{self.host}"
        self.cdn_url = f"http://127.0.0.1:{self._servers['cdn'].server_port}"

    def _serve(self, name: str) -> ThreadingHTTPServer:
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                front.answer(self, name)

            do_HEAD = do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # a client that went away

        return Server(("127.0.0.1", 0), Handler)

    def __enter__(self) -> "Front":
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def requests(self, text: str = "", port: str = "") -> list[Seen]:
        """What was asked for so far, of the paths that hold a text."""
        return [seen for seen in self.seen if text in seen.path and port in ("", seen.port)]

    def answer(self, handler: BaseHTTPRequestHandler, port: str) -> None:
        parts, headers = urlsplit(handler.path), handler.headers
        authorization = headers.get("Authorization", "")
        self.seen.append(
            Seen(
                port,
                handler.command,
                parts.path,
                parts.query,
                authorization,
                headers.get("Range", ""),
                time.time(),
            )
        )
        for text, codes in self.now.statuses.items():
            if text in parts.path and codes:
                return _say(handler, codes.pop(0), {"Retry-After": self.now.retry_after}, b"{}")
        if parts.path == "/token":
            return self._give_token(handler, parts.query, authorization)
        if port == "cdn":
            refused = authorization or not parts.query
            return _say(handler, 400, {}, b"one way of signing only") if refused else self._pass_on(handler)
        if not self._is_allowed(parts.path, authorization):
            return self._challenge(handler, parts.path)
        if "/blobs/sha256:" in parts.path and self.now.cdn:
            return _say(handler, 307, {"Location": f"{self.cdn_url}{parts.path}?signature=x"})
        return self._pass_on(handler)

    def _is_allowed(self, path: str, authorization: str) -> bool:
        scope, expires = self.tokens.get(authorization.removeprefix("Bearer "), ("", 0.0))
        wanted = _scope(path)
        return time.time() < expires and wanted in ("", scope)

    def _challenge(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        realm = self.now.realm or f"{self.url}/token"
        scope = f',scope="{_scope(path)}"' if _scope(path) else ""
        challenge = f'Bearer realm="{realm}",service="mdl-test"{scope}'
        text = challenge if self.now.challenge is None else self.now.challenge
        body = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]})
        return _say(handler, 401, {"WWW-Authenticate": text} if text else {}, body.encode())

    def _give_token(self, handler: BaseHTTPRequestHandler, query: str, authorization: str) -> None:
        fields = parse_qs(query)
        known = authorization == BASIC
        if handler.command == "POST":
            size = int(handler.headers.get("Content-Length", "0"))
            fields = parse_qs(handler.rfile.read(size).decode())
            known = fields.get("refresh_token", [""])[0] in self.refresh_tokens
        if (self.now.private or handler.command == "POST" or authorization) and not known:
            return _say(handler, 401, {}, b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}')
        token = secrets.token_hex(16)
        self.tokens[token] = fields.get("scope", [""])[0], time.time() + self.now.seconds
        name = "access_token" if handler.command == "POST" else "token"
        return _say(handler, 200, {}, json.dumps({name: token, "expires_in": 300}).encode())

    def _pass_on(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        name = parts.path.rpartition("/")[2]
        if "/manifests/" in parts.path and name in self.now.manifests:
            body = self.now.manifests[name]
            found = re.search(rb'"mediaType": "([^"]+)"', body)
            kind = found[1].decode() if found else MANIFEST
            return _say(handler, 200, {"Content-Type": kind, **self.now.headers}, body)
        wanted = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP}
        query = f"?{parts.query}" if parts.query and "/blobs/" not in parts.path else ""
        status, headers, body = self.registry.request(handler.command, parts.path + query, None, wanted)
        kept = {name: value for name, value in headers.items() if name not in (*_HOP, "content-length")}
        if "/manifests/" in parts.path:
            kept |= {name.lower(): value for name, value in self.now.headers.items()}
        if "/blobs/" in parts.path and body:
            body = bytes([body[0] ^ 1]) + body[1:] if self.now.flip else body
            if self.now.cut and len(body) > self.now.cut[0]:
                return _say(handler, status, kept, body, self.now.cut.pop(0))
        return _say(handler, status, kept, body)


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """A server that nobody should talk to: its address, and the Authorization of all who do."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("Authorization", ""))
            _say(self, 200, {}, b'{"token": "stolen"}')

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.2", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.2:{server.server_port}", heard
        server.shutdown()


def _scope(path: str) -> str:
    match = re.fullmatch(r"/v2/(.+)/(manifests|blobs|tags)/.*", path)
    return f"repository:{match[1]}:pull" if match else ""


def _say(
    handler: BaseHTTPRequestHandler,
    status: int,
    headers: Mapping[str, str],
    body: bytes = b"",
    keep: int | None = None,
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body if keep is None else body[:keep])
    if keep is not None:
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
