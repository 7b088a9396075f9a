"""GGUF files at plain web addresses, asked over real HTTP."""

import base64
import hashlib
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from ggufmaker import model
from hub import Answer, Hub, page, sha256

from mdl.config import Settings
from mdl.errors import AuthError, MdlError, NetworkError, NotFound, UnsupportedModel
from mdl.library import Library
from mdl.model import Manifest
from mdl.reference import Reference
from mdl.transports.http import Http

CONTENT = model({"general.name": "plain"})
PARTS = [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
SECRET = "X-Signature=very-secret"


def manifest(settings: Settings, text: str) -> Manifest:
    return Http(settings).manifest(Reference.parse(text))


def failure(settings: Settings, text: str) -> MdlError:
    with pytest.raises(MdlError) as caught:
        manifest(settings, text)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint
    return caught.value


def test_size_and_validator_are_known_after_a_few_bytes(hub: Hub, settings: Settings) -> None:
    address = hub.put("/some dir/m.gguf", CONTENT)
    found = manifest(settings, address)
    assert [(file.name, file.size, file.role) for file in found.files] == [
        ("m.gguf", len(CONTENT), "weights")
    ]
    assert (found.revision.kind, found.revision.commit) == ("etag", sha256(CONTENT))
    assert str(found.reference) == found.source == unquote(address)
    assert [seen.range for seen in hub.seen] == ["bytes=0-3"]


def test_a_server_without_ranges_is_good_enough(hub: Hub, settings: Settings) -> None:
    address = hub.put("/m.gguf", CONTENT)
    hub.answer("/m.gguf", Answer(200, CONTENT))
    found = manifest(settings, address)
    assert found.files[0].size == len(CONTENT)
    assert found.revision.commit == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Linked-Etag", f'"{sha256(CONTENT)}"'),
        ("Repr-Digest", f"sha-256=:{base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()}:"),
        ("Digest", f"md5=abc,SHA-256={base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()}"),
    ],
)
def test_a_digest_that_the_server_tells_is_checked(
    hub: Hub, settings: Settings, name: str, value: str
) -> None:
    address = hub.put("/m.gguf", CONTENT, **{name: value})
    assert manifest(settings, address).files[0].sha256 == sha256(CONTENT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Linked-Etag", '"short"'),
        ("X-Linked-Etag", "../" * 20),
        ("Repr-Digest", "sha-256=:not base64:"),
        ("Digest", "SHA-256=AAAA"),
        ("Digest", "SHA-256=" + "A" * 5000),
    ],
)
def test_a_digest_that_is_none_is_ignored(hub: Hub, settings: Settings, name: str, value: str) -> None:
    assert manifest(settings, hub.put("/m.gguf", CONTENT, **{name: value})).files[0].sha256 is None


@pytest.mark.parametrize("part", PARTS)
def test_of_a_split_model_all_parts_are_found_whichever_was_named(
    hub: Hub, settings: Settings, part: str
) -> None:
    for name in PARTS:
        hub.put(f"/dir/{name}", CONTENT)
    transport = Http(settings)
    found = transport.manifest(Reference.parse(f"{hub.url}/dir/{part}?{SECRET}"))
    assert [file.name for file in found.files] == PARTS
    assert transport.remote(found, found.files[1]).url == f"{hub.url}/dir/{PARTS[1]}?{SECRET}"


def test_a_part_that_is_missing_is_named(hub: Hub, settings: Settings) -> None:
    hub.put(f"/{PARTS[0]}", CONTENT)
    hub.put(f"/{PARTS[2]}", CONTENT)
    error = failure(settings, f"{hub.url}/{PARTS[0]}")
    assert isinstance(error, NotFound)
    assert PARTS[1] in error.message


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (page(), NetworkError, "a web page instead of the file"),
        (Answer(200, b"<!doctype html>"), NetworkError, "a web page instead of the file"),
        (Answer(200, b"GGML1234"), UnsupportedModel, "is no GGUF file"),
        (Answer(200, b""), UnsupportedModel, "is no GGUF file"),
        (Answer(401, b""), AuthError, "401"),
        (Answer(403, b""), AuthError, "403"),
        (Answer(404, b""), NotFound, "does not exist"),
        (Answer(418, b""), NetworkError, "418"),
        (Answer(200, b"\x1f\x8b", {"Content-Encoding": "gzip"}), NetworkError, "compressed"),
    ],
)
def test_what_is_no_model_is_called_what_it_is(
    hub: Hub, settings: Settings, answer: Answer, kind: type[MdlError], words: str
) -> None:
    hub.answer("/m.gguf", answer)
    error = failure(settings, f"{hub.url}/m.gguf?{SECRET}")
    assert isinstance(error, kind)
    assert words in error.message


@pytest.mark.parametrize("way", ["download", "get"])
def test_a_query_opens_the_door_and_is_kept_nowhere(hub: Hub, library: Library, way: str) -> None:
    hub.put("/m.gguf", CONTENT)
    library.settings = replace(library.settings, pull="missing")
    found = getattr(library, way)(f"{hub.url}/m.gguf?{SECRET}")
    assert all(SECRET in seen.path for seen in hub.requests("/m.gguf"))
    assert str(found.reference) == f"{hub.url}/m.gguf"
    files = [path for path in library.settings.home.rglob("*") if path.is_file()]
    assert not [path for path in files if b"secret" in path.read_bytes() or "secret" in str(path)]


def test_an_address_is_found_again_without_asking(hub: Hub, library: Library) -> None:
    address = hub.put("/m.gguf", CONTENT)
    first = library.download(address)
    assert (first.version, first.folder.name, first.files[0].sha256) == ("latest", "latest", sha256(CONTENT))
    hub.forget()
    assert library.get(address).folder == first.folder
    assert library.get(f"{address}?other=signature").folder == first.folder
    assert hub.seen == []


def test_an_unchanged_address_costs_no_transfer_and_a_changed_one_is_fetched(
    hub: Hub, library: Library
) -> None:
    address = hub.put("/m.gguf", CONTENT)
    library.download(address)
    hub.forget()
    library.download(address)
    assert [seen.range for seen in hub.seen] == ["bytes=0-3"]
    changed = model({"general.name": "changed"})
    hub.put("/m.gguf", changed)
    assert (library.download(address).folder / "m.gguf").read_bytes() == changed


def test_the_file_is_named_by_the_address_and_nothing_else(
    hub: Hub, library: Library, tmp_path: Path
) -> None:
    disposition = 'attachment; filename="../../evil.gguf"'
    address = hub.put("/m.gguf", CONTENT, Content_Disposition=disposition)
    library.download(address)
    assert [path.name for path in tmp_path.rglob("*.gguf") if path.is_file()] == ["m.gguf"]
