"""Registries: manifests, tags, contents and tokens, from a real one and from one that lies and fails."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from faultserver import FaultServer, Reply, Request
from registry import BASIC, PASSWORD, USER, Front, digest, listening, manifest, titled
from registry import Registry as RealRegistry

from mdl import credentials
from mdl.config import Settings
from mdl.credentials import Credentials
from mdl.download import Downloader, Expected
from mdl.errors import AuthError, IntegrityError, MdlError, NetworkError, NotFound, UsageError
from mdl.reference import Reference
from mdl.remote import Client, Limits
from mdl.transports.huggingface import HuggingFace
from mdl.transports.registry import MOST_PAGES, MOST_TAGS, Registry
from mdl.transports.token import Session, challenges

LAYER = titled("model.gguf", b"weights" * 1000)


@pytest.fixture
def repository(registry: RealRegistry, request: pytest.FixtureRequest) -> str:
    """The name of a repository that no other test uses, with one artifact."""
    path = f"tests/r{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"
    registry.push(path, "v1", [LAYER])
    return path


@pytest.fixture(autouse=True)
def own_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDL_CONFIG", str(tmp_path / "config" / "config.toml"))


def opened(host: str, path: str, settings: Settings) -> Registry:
    return Registry(Reference.parse(f"{host}/{path}"), settings)


def failure(source: Registry, name: str = "v1") -> MdlError:
    with pytest.raises(MdlError) as caught:
        source.document(name)
    told = f"{caught.value!r} {caught.value.message} {caught.value.hint}"
    assert PASSWORD not in told
    assert BASIC.removeprefix("Basic ") not in told
    assert "\n" not in told
    return caught.value


@pytest.fixture
def liar() -> Iterator[FaultServer]:
    """A server that answers what it is told to, and nothing else."""
    with contextlib.closing(FaultServer()) as server:
        server.pages["/v2/"] = lambda _: said({})
        yield server


def said(content: object, **headers: str) -> Reply:
    body = json.dumps(content).encode()
    return Reply(200, {"Content-Length": str(len(body)), **headers}, body)


# What a registry has


def test_a_manifest_comes_by_its_tag_and_by_its_digest(
    registry: RealRegistry, repository: str, settings: Settings
) -> None:
    source = opened(registry.host, repository, settings)
    document = source.document("v1")
    assert document.content["layers"][0]["digest"] == LAYER.digest
    assert source.document(document.digest) == document
    assert source.blob(LAYER.digest, len(LAYER.content)) == LAYER.content


def test_tags_come_in_pages(registry: RealRegistry, repository: str, settings: Settings) -> None:
    for number in range(12):
        registry.push(repository, f"v1.{number}", [LAYER])
    source = opened(registry.host, repository, settings)
    assert set(source.tags()) == {"v1", *(f"v1.{number}" for number in range(12))}


def test_what_is_not_there_is_said_with_what_is(
    registry: RealRegistry, repository: str, settings: Settings
) -> None:
    registry.push(repository, "v1.10", [LAYER])
    missing = failure(opened(registry.host, repository, settings), "v1.1")
    assert isinstance(missing, NotFound)
    assert "no tag 'v1.1'" in missing.message
    assert missing.hint in ("there are: v1.10, v1", "there are: v1, v1.10")
    nowhere = failure(opened(registry.host, "tests/nowhere", settings))
    assert isinstance(nowhere, NotFound)
    assert "has no tests/nowhere" in nowhere.message


# Tokens


def test_a_public_repository_wants_a_token_that_anybody_gets(
    front: Front, repository: str, settings: Settings
) -> None:
    source = opened(front.host, repository, settings)
    assert source.document("v1").content["layers"]
    assert source.blob(LAYER.digest, len(LAYER.content)) == LAYER.content
    assert len(front.requests("/token")) == 1
    assert all(not seen.authorization for seen in front.requests(port="cdn"))


def test_a_private_repository_wants_credentials(front: Front, repository: str, settings: Settings) -> None:
    front.now.private = True
    refused = failure(opened(front.host, repository, settings))
    assert isinstance(refused, AuthError)
    assert f"mdl login {front.host}" in refused.hint
    credentials.store(front.host, Credentials(USER, PASSWORD))
    source = opened(front.host, repository, settings)
    assert source.document("v1")
    assert [seen.authorization for seen in front.requests("/token")] == ["", BASIC]
    assert all(not seen.authorization.startswith("Basic") for seen in front.requests("/v2/"))


def test_an_identity_token_stands_for_a_password(front: Front, repository: str, settings: Settings) -> None:
    front.now.private = True
    file = credentials.auth_paths()[0]
    file.parent.mkdir()
    file.write_text(json.dumps({"auths": {front.host: {"identitytoken": "identity"}}}))
    assert opened(front.host, repository, settings).document("v1")
    assert [seen.method for seen in front.requests("/token")] == ["POST"]


def test_basic_authentication_is_what_htpasswd_wants(tmp_path: Path, settings: Settings) -> None:
    with RealRegistry(tmp_path / "private", private=True) as private:
        private.push("org/m", "v1", [LAYER])
        refused = failure(opened(private.host, "org/m", settings))
        assert isinstance(refused, AuthError)
        credentials.store(private.host, Credentials(USER, "wrong"))
        assert isinstance(failure(opened(private.host, "org/m", settings)), AuthError)
        credentials.store(private.host, Credentials(USER, PASSWORD))
        assert opened(private.host, "org/m", settings).document("v1")


def test_a_token_that_expires_is_renewed(front: Front, repository: str, settings: Settings) -> None:
    front.now.seconds = 0.5
    source = opened(front.host, repository, settings)
    assert source.document("v1")
    time.sleep(0.6)
    assert source.document("v1")
    assert len(front.requests("/token")) == 2


def test_a_token_that_is_never_good_is_renewed_only_once(
    front: Front, repository: str, settings: Settings
) -> None:
    front.now.seconds = -1
    refused = failure(opened(front.host, repository, settings))
    assert isinstance(refused, AuthError)
    assert len(front.requests("/token")) <= 2


@pytest.mark.parametrize("cdn", [True, False])
def test_a_download_goes_on_however_often_its_token_expires(
    front: Front, registry: RealRegistry, settings: Settings, tmp_path: Path, cdn: bool
) -> None:
    content = bytes(range(256)) * (8 << 10)
    registry.push("tests/large", "v1", [titled("large.gguf", content)])
    front.now.seconds, front.now.cdn = 0.05, cdn
    source = opened(front.host, "tests/large", settings)
    source.document("v1")
    expected = Expected(len(content), hashlib.sha256(content).hexdigest())
    front.now.cut = [300_000] * 5  # so that it is asked for again, with a pause
    limits = Limits(backoff=0.2)
    remote = source.remote(digest(content))
    time.sleep(0.1)
    received = Downloader(limits).fetch("large.gguf", remote, expected, tmp_path / "partial")
    assert received.size == len(content)
    assert (tmp_path / "partial").read_bytes() == content
    assert len(front.requests("/token")) >= (2 if cdn else 5)
    assert all(not seen.authorization for seen in front.requests(port="cdn"))


def test_many_who_find_a_token_expired_renew_it_once(
    front: Front, repository: str, settings: Settings
) -> None:
    front.now.seconds = 0.5
    source = opened(front.host, repository, settings)
    source.document("v1")
    time.sleep(0.6)
    front.now.seconds = 300
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(source.document, ["v1"] * 32))
    assert len(front.requests("/token")) == 2


def test_an_expired_token_is_renewed_where_it_came_from(
    front: Front, repository: str, settings: Settings
) -> None:
    front.now.seconds = 0.2
    source = opened(front.host, repository, settings)
    source.document("v1")
    time.sleep(0.3)
    front.now.challenge = f'Bearer realm="{front.url}/elsewhere",error="invalid_token"'
    assert source.document("v1")


@pytest.mark.parametrize(
    "realm",
    ["http://registry.example/token", "http://127.0.0.1:{port}/token", "https://[", "ftp://x/", "/token",
     "https://registry.example\\\\@127.0.0.1:{port}/token"],
)  # fmt: skip
def test_tokens_are_asked_of_no_address_that_is_not_safe(
    front: Front, settings: Settings, realm: str
) -> None:
    session = Session("registry.example", "r", settings, Client())
    with pytest.raises(NetworkError, match="no safe address"):
        session.renew({}, f'Bearer realm="{realm.format(port=front.host.partition(":")[2])}"')
    assert front.seen == []


@pytest.mark.parametrize(
    "answer",
    [None, [], "x", {}, {"token": 1}, {"token": ""}, {"token": "a b"}, {"token": "a\r\nX-Evil: 1"},
     {"token": "x" * 70_000}, {"access_token": ["a"]}, {"token": "x" * (2 << 20)}],
    ids=range(11),
)  # fmt: skip
def test_a_token_that_is_none_is_not_used(liar: FaultServer, settings: Settings, answer: object) -> None:
    challenge = f'Bearer realm="{liar.url("/token")}"'
    liar.pages["/token"] = lambda _: said(answer)
    liar.pages["/v2/r/manifests/v1"] = lambda _: Reply(
        401, {"Content-Length": "0", "WWW-Authenticate": challenge}
    )
    assert isinstance(failure(opened(f"127.0.0.1:{liar.port}", "r", settings)), NetworkError)
    assert [request.path for request in liar.requests].count("/v2/r/manifests/v1") == 1


def test_another_address_of_a_registry_gets_no_credentials_of_its_name(
    front: Front, repository: str, settings: Settings
) -> None:
    front.now.private = True
    credentials.store("registry.example", Credentials(USER, PASSWORD))
    source = Registry(Reference.parse(f"registry.example/{repository}"), settings, front.url)
    assert f"mdl login {front.host}" in failure(source).hint
    assert all(seen.authorization == "" for seen in front.seen)
    credentials.store(front.host, Credentials(USER, PASSWORD))
    assert Registry(Reference.parse(f"registry.example/{repository}"), settings, front.url).document("v1")


@pytest.mark.alone
@pytest.mark.parametrize(
    "challenge", ["", "Digest realm=x", 'Bearer realm="file:///etc/passwd"', "Bearer", "\x01,=,"]
)
def test_a_refusal_that_leads_nowhere_is_told_within_three_seconds(
    front: Front, repository: str, settings: Settings, challenge: str
) -> None:
    front.now.challenge = challenge
    began = time.monotonic()
    assert isinstance(failure(opened(front.host, repository, settings)), AuthError | NetworkError)
    assert time.monotonic() - began < 3


def test_a_password_goes_to_no_other_host(front: Front, repository: str, settings: Settings) -> None:
    credentials.store(front.host, Credentials(USER, PASSWORD))
    with listening() as (stranger, heard):
        front.now.realm = f"{stranger}\\\\@{front.host}/token"  # one host to some parsers, another to others
        assert isinstance(failure(opened(front.host, repository, settings)), NetworkError)
        front.now.realm = f"{stranger}/token"
        refused = failure(opened(front.host, repository, settings))
        assert isinstance(refused, AuthError)
        assert "127.0.0.2" in refused.message
        assert heard == []
        listed = replace(settings, realms=(stranger.removeprefix("http://"),))
        failure(opened(front.host, repository, listed))
        assert heard[0] == BASIC


def test_a_challenge_of_basic_gets_no_password_of_another_host(
    front: Front, repository: str, settings: Settings
) -> None:
    credentials.store("127.0.0.1:1", Credentials(USER, PASSWORD))
    front.now.challenge = 'Basic realm="x"'
    assert isinstance(failure(opened(front.host, repository, settings)), AuthError)
    assert all(not seen.authorization for seen in front.seen)


# Lies and failures


def test_a_manifest_that_is_not_what_its_digest_says_is_refused(
    front: Front, repository: str, settings: Settings
) -> None:
    source = opened(front.host, repository, settings)
    real = source.document("v1").digest
    other = json.dumps(manifest([titled("model.gguf", b"other")])).encode()
    front.now.manifests[real] = other
    assert isinstance(failure(source, real), IntegrityError)
    front.now.manifests["v1"] = other
    front.now.headers["Docker-Content-Digest"] = real
    assert isinstance(failure(source, "v1"), IntegrityError)
    del front.now.headers["Docker-Content-Digest"]
    assert source.document("v1").digest == digest(other)


def test_a_content_that_is_not_what_its_digest_says_is_refused(
    front: Front, repository: str, settings: Settings
) -> None:
    front.now.flip = True
    source = opened(front.host, repository, settings)
    with pytest.raises(IntegrityError):
        source.blob(LAYER.digest, len(LAYER.content))
    with pytest.raises(MdlError):
        source.blob(LAYER.digest, len(LAYER.content) - 1)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000,
        b'{"a":' * 50 + b"1" + b"}" * 50, b"<html>", b'{"x": "' + b"x" * (5 << 20) + b'"}',
    ],
    ids=range(11),
)  # fmt: skip
def test_a_manifest_that_is_none_is_an_error_of_one_line(
    front: Front, repository: str, settings: Settings, body: bytes
) -> None:
    front.now.manifests["v1"] = body
    refused = failure(opened(front.host, repository, settings))
    assert isinstance(refused, NetworkError)
    assert "\n" not in refused.message


@pytest.mark.parametrize(("news", "most"), [(False, 2), (True, MOST_PAGES)])
def test_a_list_of_tags_without_end_ends(
    liar: FaultServer, settings: Settings, news: bool, most: int
) -> None:
    def page(request: Request) -> Reply:
        number = len(liar.requests)
        link = f'</v2/r/tags/list?last={number}>; rel="next"'
        return said({"tags": [f"v{number if news else 1}"]}, Link=link)

    liar.pages["/v2/r/tags/list"] = page
    tags = opened(f"127.0.0.1:{liar.port}", "r", settings).tags()
    assert len(tags) == (MOST_PAGES if news else 1)
    assert len(liar.requests) - 1 <= most


def test_a_huge_list_of_tags_is_cut(liar: FaultServer, settings: Settings) -> None:
    many = [f"v{number}" for number in range(MOST_TAGS + 5)]
    liar.pages["/v2/r/tags/list"] = lambda _: said({"tags": [*many, 1, None, "no tag", "-x"]})
    assert opened(f"127.0.0.1:{liar.port}", "r", settings).tags() == many[:MOST_TAGS]


@pytest.mark.parametrize("tags", [None, 5, "v1", {"v1": 1}, [[["v1"]]]])
def test_a_list_of_tags_that_is_none_is_empty(liar: FaultServer, settings: Settings, tags: object) -> None:
    liar.pages["/v2/r/tags/list"] = lambda _: said({"tags": tags})
    assert opened(f"127.0.0.1:{liar.port}", "r", settings).tags() == []


def test_the_next_page_is_asked_of_no_other_server(
    liar: FaultServer, front: Front, settings: Settings
) -> None:
    for link in (
        f"{front.url}/v2/r/tags/list",
        f"http://127.0.0.1:{liar.port}\\@{front.host}/v2/",
        "file:///x",
    ):
        liar.pages["/v2/r/tags/list"] = lambda _, link=link: said(
            {"tags": ["v1"]}, Link=f'<{link}>; rel="next"'
        )
        assert opened(f"127.0.0.1:{liar.port}", "r", settings).tags() == ["v1"]
    assert front.seen == []


def test_a_content_that_was_never_pushed_is_said_to_be_missing(
    registry: RealRegistry, repository: str, settings: Settings
) -> None:
    with pytest.raises(NotFound, match="has no content sha256:000"):
        opened(registry.host, repository, settings).blob(f"sha256:{'0' * 64}", 3)


def test_what_a_registry_says_of_an_error_cannot_fool_a_terminal(
    liar: FaultServer, settings: Settings
) -> None:
    body = json.dumps({"errors": [{"code": "X", "message": "\x1b[31mred\u202e\nline" + "x" * 9999}]}).encode()
    liar.pages["/v2/r/manifests/v1"] = lambda _: Reply(418, {"Content-Length": str(len(body))}, body)
    told = failure(opened(f"127.0.0.1:{liar.port}", "r", settings)).message
    assert "\\u001b[31mred\\u202e\\u000aline" in told
    assert len(told) < 300


# Encryption


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, str]:
    made, file = trustme.CA(), tmp_path / "ca.pem"
    made.cert_pem.write_to_path(str(file))
    return made, str(file)


@pytest.mark.filterwarnings("error")
def test_a_certificate_has_to_be_trusted(authority: tuple[trustme.CA, str], settings: Settings) -> None:
    document = json.dumps(manifest([LAYER])).encode()
    with contextlib.closing(FaultServer(authority[0], "localhost")) as server:
        server.pages["/v2/"] = lambda _: said({})
        server.put(document, path="/v2/r/manifests/v1")
        server.put(LAYER.content, path=f"/v2/r/blobs/{LAYER.digest}")
        host = f"localhost:{server.port}"
        assert "not trusted" in failure(opened(host, "r", settings)).message
        for trusting in (replace(settings, ca=authority[1]), replace(settings, insecure=(host,))):
            source = opened(host, "r", trusting)
            assert source.document("v1").digest == digest(document)
            assert source.remote(LAYER.digest).url.startswith("https://")
            assert source.blob(LAYER.digest, len(LAYER.content)) == LAYER.content


def test_a_registry_on_this_machine_may_speak_https_only(
    authority: tuple[trustme.CA, str], tmp_path: Path, settings: Settings
) -> None:
    with RealRegistry(tmp_path / "encrypted", authority=authority[0]) as encrypted:
        encrypted.push("org/m", "v1", [LAYER])
        assert "not trusted" in failure(opened(encrypted.host, "org/m", settings)).message
        trusting = replace(settings, insecure=(encrypted.host,))  # plain http is tried first here
        assert opened(encrypted.host, "org/m", trusting).document("v1")


def test_a_hub_of_one_s_own_authority_is_trusted_too(
    authority: tuple[trustme.CA, str], tmp_path: Path, settings: Settings
) -> None:
    with RealRegistry(tmp_path / "encrypted", authority=authority[0]) as encrypted:  # which is no hub
        there = replace(settings, hf_endpoint=f"https://{encrypted.host}")
        with pytest.raises(NetworkError, match="not trusted"):
            HuggingFace(there).manifest(Reference.parse("org/m"))
        with pytest.raises(NetworkError, match="answered 404"):
            HuggingFace(replace(there, ca=authority[1])).manifest(Reference.parse("org/m"))


def test_a_file_of_authorities_that_is_none_is_said(tmp_path: Path, settings: Settings) -> None:
    for name, content in (("empty", ""), ("text", "hello")):
        (tmp_path / name).write_text(content)
        asked = opened("localhost:1", "r", replace(settings, ca=str(tmp_path / name)))
        assert "no certificate authorities" in failure(asked).message
    missing = failure(opened("localhost:1", "r", replace(settings, ca=str(tmp_path / "missing"))))
    assert "no certificate authorities" in missing.message


def test_plain_http_is_spoken_only_where_it_may_be(front: Front, repository: str, settings: Settings) -> None:
    host = f"0.0.0.0:{front.host.partition(':')[2]}"  # leads to this machine, and is no name of it
    refused = failure(opened(host, repository, settings))
    assert "does not speak https" in refused.message
    assert "--insecure" in refused.hint
    assert front.seen == []
    front.now.realm = f"http://{host}/token"
    assert opened(host, repository, replace(settings, insecure=(host,))).tags() == ["v1"]


def test_a_registry_that_is_busy_is_asked_again(front: Front, repository: str, settings: Settings) -> None:
    front.now.statuses["/manifests/"] = [429, 503]
    assert opened(front.host, repository, settings).document("v1")


def test_names_cannot_lead_elsewhere(front: Front, repository: str, settings: Settings) -> None:
    source = opened(front.host, repository, settings)
    assert isinstance(failure(source, "../../../token?x="), UsageError)
    assert front.requests() == []
    with pytest.raises(IntegrityError):
        source.remote("sha256:../../x")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Bearer realm="https://a/b",service="c d",scope="repository:x:pull"',
         [("bearer", {"realm": "https://a/b", "service": "c d", "scope": "repository:x:pull"})]),
        ('basic realm="a\\"b", Bearer realm=x', [("basic", {"realm": 'a"b'}), ("bearer", {"realm": "x"})]),
        ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("", []),
        (",,,", []),
        ("=x", []),
    ],
)  # fmt: skip
def test_challenges_are_read_as_rfc_9110_has_them(text: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert challenges(text) == found
