"""Small answers and parts of files, with the same care as whole ones."""

import contextlib
import gc
import time
from dataclasses import replace
from pathlib import Path

import pytest
from faultserver import FaultServer, Reply, cut, redirect, status

from mdl.address import Remote, shown
from mdl.errors import NetworkError, NotFound, UsageError
from mdl.remote import Client, Limits

LIMITS = Limits(backoff=0.01, retries=2, read_timeout=0.5)
SECRET = {"Authorization": "s3cret-token"}
BODY = b'{"schemaVersion": 2}'


@pytest.fixture
def server():
    with contextlib.closing(FaultServer()) as server:
        server.put(BODY)
        yield server


@pytest.fixture
def other():
    with contextlib.closing(FaultServer()) as server:
        server.put(BODY)
        yield server


@pytest.fixture
def client():
    with contextlib.closing(Client(LIMITS, {})) as client:
        yield client


def test_a_small_body_comes_with_its_status_headers_and_address(client, server):
    server.put(b"", path="/start", always=redirect("/file"))
    response = client.get(Remote(server.url("/start")), 100)
    assert (response.status, response.body, response.url) == (200, BODY, server.url())
    assert response.headers["etag"] == server.files["/file"].etag


@pytest.mark.parametrize("code", [401, 403, 404, 418])
def test_a_refusal_is_the_callers_to_judge(client, server, code):
    server.put(b"", always=status(code, WWW_Authenticate='Bearer realm="x"'))
    response = client.get(Remote(server.url()), 100)
    assert response.status == code and response.headers["www-authenticate"] == 'Bearer realm="x"'
    assert len(server.requests) == 1


def test_a_head_has_headers_and_no_body(client, server):
    response = client.get(Remote(server.url()), 0, method="HEAD")
    assert response.headers["content-length"] == str(len(BODY)) and response.body == b""


def test_a_body_may_be_as_long_as_was_said_and_no_longer(client, server):
    assert client.get(Remote(server.url()), len(BODY)).body == BODY
    server.put(bytes(64 << 20))
    with pytest.raises(NetworkError, match="more than 100 bytes"):
        client.get(Remote(server.url()), 100)


def test_a_compressed_body_is_refused(client, server):
    server.put(BODY, always=lambda _, honest: honest.having(Content_Encoding="gzip"))
    with pytest.raises(NetworkError, match="compressed"):
        client.get(Remote(server.url()), 100)


@pytest.mark.parametrize("body", [b"", BODY])
def test_a_connection_is_used_again_after_an_answer_that_is_still_remembered(client, server, body):
    server.put(body)
    answers = []
    for _ in range(4):
        answers.append(client.send(Remote(server.url()), {}))
        assert not body or answers[-1].read(100) == body
        answers[-1].close()
    assert len(server.connections) == 1


def test_a_client_that_nobody_has_any_more_takes_its_connections_along(server):
    def descriptors():
        gc.collect()
        return len(list(Path("/dev/fd").iterdir()))

    Client().get(Remote(server.url()), 100)
    before = descriptors()
    for _ in range(20):
        Client().get(Remote(server.url()), 100)
    time.sleep(0.2)  # the server notices it, too
    assert descriptors() < before + 10


def test_a_small_body_that_is_cut_is_asked_for_again(client, server):
    server.put(BODY, cut(3), cut(3, reset=True))
    assert client.get(Remote(server.url()), 100).body == BODY
    server.put(BODY, always=cut(3))
    with pytest.raises(NetworkError, match="broke"):
        client.get(Remote(server.url()), 100)


def test_a_secret_does_not_follow_a_redirect_to_another_origin(client, server, other):
    server.put(b"", always=redirect(other.url()))
    client.get(Remote(server.url(), SECRET | {"Accept": "text/plain"}), 100)
    assert other.requests[0].headers["accept"] == "text/plain"
    assert "authorization" in server.requests[0].headers and "authorization" not in other.requests[0].headers


def test_a_redirect_cannot_bring_a_user_and_password(client, server):
    server.put(b"", path="/start", always=redirect(server.url().replace("://", "://user:password@")))
    response = client.get(Remote(server.url("/start")), 100)
    assert response.url == server.url() and "authorization" not in server.requests[1].headers


def test_the_start_of_a_large_file_can_be_read(client, server):
    server.put(bytes(64 << 20))
    assert client.peek(Remote(server.url()), 0, 1000) == bytes(1000)
    assert server.requests[0].range == (0, 1000)


@pytest.mark.parametrize(("start", "size"), [(0, 5), (3, 5), (15, 99), (0, 99)])
def test_any_part_can_be_read(client, server, start, size):
    assert client.peek(Remote(server.url()), start, size) == BODY[start : start + size]


def test_a_server_without_ranges_gives_the_start_and_nothing_else(client, server):
    server.put(BODY, ranges=False)
    assert client.peek(Remote(server.url()), 0, 5) == BODY[:5]
    with pytest.raises(NetworkError, match="part"):
        client.peek(Remote(server.url()), 3, 5)


def test_a_part_from_elsewhere_is_refused(client, server):
    server.put(BODY, always=lambda _, honest: honest.having(Content_Range="bytes 1-5/20"))
    with pytest.raises(NetworkError, match="part"):
        client.peek(Remote(server.url()), 0, 5)


@pytest.mark.parametrize("fault", [status(416), lambda *_: Reply(206, {"Content-Length": "0"})])
def test_a_part_that_is_not_there_is_an_error(client, server, fault):
    server.put(BODY, always=fault)
    with pytest.raises(NetworkError):
        client.peek(Remote(server.url()), 0, 5)
    server.put(BODY, always=status(404))
    with pytest.raises(NotFound):
        client.peek(Remote(server.url()), 0, 5)


def test_a_part_has_no_more_than_was_asked_for(client, server):
    server.put(
        BODY, always=lambda _, honest: replace(honest, headers={"Content-Range": "bytes 0-4/20"}, body=BODY)
    )
    assert client.peek(Remote(server.url()), 0, 5) == BODY[:5]


@pytest.mark.parametrize(("url", "text"), [
    ("https://user:pw@Example.org/a/b?X-Amz-Signature=1#frag", "https://example.org/a/b"),
    ("http://[::1]:8080/x", "http://[::1]:8080/x"),
    ("https://example.org:443", "https://example.org"),
    ("https://example.org/%1b[31m", "https://example.org/%1b%5B31m"),
    ("https://example.org/‮evil", "https://example.org/%E2%80%AEevil"),
])  # fmt: skip
def test_addresses_are_shown_without_what_may_be_secret_or_harmful(url, text):
    assert shown(url) == text


def test_an_address_means_one_host_to_everybody(client, server, other):
    """What comes before a backslash is the host to one parser, what comes after it to the other."""
    forked = f"http://127.0.0.1:{other.port}\\@127.0.0.1:{server.port}/file"
    with pytest.raises(UsageError, match="backslash"):
        client.get(Remote(forked, SECRET), 100)
    server.put(b"", path="/start", always=redirect(forked))
    with pytest.raises(NetworkError, match="no web address"):
        client.get(Remote(server.url("/start"), SECRET), 100)
    assert other.requests == []
