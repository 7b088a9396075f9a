"""Hugging Face as a source, asked over real HTTP: the stand-in hub answers as the real one does."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ggufmaker import model
from hub import GOOD, STRANGER, Answer, Hub, git_id, page, sha256

from mdl.config import Settings
from mdl.errors import (
    AuthError,
    IntegrityError,
    MdlError,
    NetworkError,
    NotFound,
    UnsupportedModel,
    UsageError,
)
from mdl.model import Manifest, Revision
from mdl.reference import Reference
from mdl.transports.huggingface import MOST_ENTRIES, HuggingFace

NAME = "Org/Model-GGUF"
Q4, Q8 = model({"general.name": "small"}), model({"general.name": "large"})
FILES = {"README.md": b"# A model", "m-Q4_K_M.gguf": Q4, "m-Q8_0.gguf": Q8}
FOLDER = {"config.json": b"{}", "model.safetensors": b"x" * 64, "tokenizer.json": b"{}"}


def manifest(settings: Settings, text: str) -> Manifest:
    return HuggingFace(settings).manifest(Reference.parse(text))


def failure(settings: Settings, text: str) -> MdlError:
    with pytest.raises(MdlError) as caught:
        manifest(settings, text)
    error = caught.value
    assert "\n" not in error.message + error.hint
    assert error.hint
    assert "hf_" not in f"{error.message} {error.hint}".replace("hf_token", "")
    return error


# What a repository holds


def test_sizes_and_digests_are_known_before_the_first_byte(hub: Hub, settings: Settings) -> None:
    commit = hub.add(NAME, FILES).branches["main"]
    found = manifest(settings, f"{NAME}:Q8_0")
    weights, readme = found.files
    assert (weights.name, weights.size, weights.sha256) == ("m-Q8_0.gguf", len(Q8), sha256(Q8))
    assert (weights.git_id, weights.role) == (None, "weights")
    assert (readme.sha256, readme.git_id, readme.role) == (None, git_id(FILES["README.md"]), "readme")
    assert found.revision == Revision("branch", "main", commit)
    assert str(found.reference) == f"huggingface.co/{NAME}:Q8_0"
    assert not [seen for seen in hub.seen if "resolve" in seen.path]


@pytest.mark.parametrize(
    "text",
    [
        f"huggingface.co/{NAME}",
        f"hf.co/{NAME}",
        f"hf://{NAME}",
        NAME,
        f"https://huggingface.co/{NAME}",
        f"https://huggingface.co/{NAME}/tree/main",
        f"https://huggingface.co/{NAME}/blob/main/m-Q4_K_M.gguf",
        f"https://huggingface.co/{NAME}/resolve/main/m-Q4_K_M.gguf?download=true",
        f"{NAME}/Q4_K_M",
        f"{NAME}:main",
    ],
)
def test_every_spelling_names_the_same_version(hub: Hub, settings: Settings, text: str) -> None:
    hub.add(NAME, FILES)
    assert str(manifest(settings, text).reference) == f"huggingface.co/{NAME}:Q4_K_M"


def test_all_files_come_from_the_one_commit_that_was_listed(hub: Hub, settings: Settings) -> None:
    repository = hub.add(NAME, FILES)
    commit = repository.branches["main"]
    transport = HuggingFace(settings)
    hub.before("/tree/", lambda: repository.commit({"other-Q4_K_M.gguf": b"other"}))
    found = transport.manifest(Reference.parse(NAME))
    assert [file.name for file in found.files] == ["m-Q4_K_M.gguf", "README.md"]
    urls = [transport.remote(found, file).url for file in found.files]
    assert urls == [f"{hub.url}/{NAME}/resolve/{commit}/{name}" for name in ("m-Q4_K_M.gguf", "README.md")]


def test_a_repository_that_has_moved_is_followed_and_keeps_its_name(hub: Hub, settings: Settings) -> None:
    hub.add(NAME, FILES)
    for part in ("/api/models/Old/Name?", "/tree/"):
        place = f"/api/models/{NAME}" + ("/tree/main?recursive=true" if part == "/tree/" else "")
        hub.answer(part, Answer(307, b"", {"Location": place}))
    assert str(manifest(settings, "Old/Name").reference) == "huggingface.co/Old/Name:Q4_K_M"


def test_names_are_quoted_in_addresses(hub: Hub, settings: Settings) -> None:
    hub.add(NAME, {"sub dir/m#1 100%-Q8_0.gguf": Q8})
    transport = HuggingFace(settings)
    found = transport.manifest(Reference.parse(NAME))
    assert transport.remote(found, found.files[0]).url.endswith("/sub%20dir/m%231%20100%25-Q8_0.gguf")


def test_long_listings_are_followed_page_by_page(settings: Settings) -> None:
    files = {f"m-{n:02}.txt": b"" for n in range(7)} | FILES
    with Hub(page=3) as small:
        small.add(NAME, files)
        found = manifest(replace(settings, hf_endpoint=small.url), f"{NAME}:Q8_0")
    assert found.files[0].name == "m-Q8_0.gguf"
    assert len(small.requests("/tree/")) == 4


# Revisions


@pytest.fixture
def branched(hub: Hub) -> Hub:
    repository = hub.add(NAME, FILES)
    repository.commit({"m-Q5_K_M.gguf": Q8, "m-Q6_K.gguf": Q8}, "feature/x")
    repository.tags["v1.0"] = repository.branches["main"]
    repository.branches["refs/pr/1"] = repository.branches["main"]
    return hub


@pytest.mark.parametrize(
    ("text", "reference", "revision", "file"),
    [
        (f"{NAME}@v1.0", f"{NAME}:Q4_K_M@v1.0", ("tag", "v1.0"), "m-Q4_K_M.gguf"),
        (f"{NAME}:q8_0@v1.0", f"{NAME}:Q8_0@v1.0", ("tag", "v1.0"), "m-Q8_0.gguf"),
        (f"{NAME}:v1.0", f"{NAME}:v1.0", ("tag", "v1.0"), "m-Q4_K_M.gguf"),
        (f"{NAME}:feature/x", f"{NAME}:feature/x", ("branch", "feature/x"), "m-Q5_K_M.gguf"),
        (f"{NAME}@feature/x", f"{NAME}:Q5_K_M@feature/x", ("branch", "feature/x"), "m-Q5_K_M.gguf"),
        (
            f"https://huggingface.co/{NAME}/blob/refs/pr/1/m-Q8_0.gguf",
            f"{NAME}:Q8_0@refs/pr/1",
            ("branch", "refs/pr/1"),
            "m-Q8_0.gguf",
        ),
    ],
)
def test_a_version_may_be_a_revision_and_a_pin_stays_as_it_was_written(
    branched: Hub, settings: Settings, text: str, reference: str, revision: tuple[str, str], file: str
) -> None:
    found = manifest(settings, text)
    assert str(found.reference) == f"huggingface.co/{reference}"
    assert (found.revision.kind, found.revision.name) == revision
    assert found.files[0].name == file


def test_a_commit_is_a_revision_in_full_and_abbreviated(branched: Hub, settings: Settings) -> None:
    commit = branched.repositories[NAME].branches["main"]
    for pin in (commit, commit[:7]):
        found = manifest(settings, f"{NAME}:Q8_0@{pin}")
        assert found.revision == Revision("commit", "", commit)
        assert found.reference.pin == pin


def test_what_was_chosen_at_a_revision_is_said(branched: Hub, settings: Settings) -> None:
    assert manifest(settings, f"{NAME}:feature/x").note == "Q5_K_M of feature/x was chosen"


def test_a_safetensors_version_is_its_branch_tag_or_commit(hub: Hub, settings: Settings) -> None:
    repository = hub.add(NAME, FOLDER)
    repository.tags["v2"] = repository.branches["main"]
    assert manifest(settings, NAME).reference.version == "main"
    assert manifest(settings, f"{NAME}:v2").reference.version == "v2"
    assert str(manifest(settings, f"{NAME}@v2").reference).endswith(":main@v2")
    assert manifest(settings, f"{NAME}:main@v2").revision.name == "v2"


def test_a_version_that_is_nothing_lists_what_there_is(branched: Hub, settings: Settings) -> None:
    error = failure(settings, f"{NAME}:Q3_K_M")
    assert isinstance(error, NotFound)
    assert error.message == f"huggingface.co/{NAME} has no version 'Q3_K_M'"
    assert "versions: Q4_K_M, Q8_0" in error.hint
    assert "v1.0" in error.hint
    assert "main" in error.hint
    pinned = failure(settings, f"{NAME}:Q3_K_M@feature/x")
    assert "versions: Q5_K_M, Q6_K" in pinned.hint


def test_a_revision_that_is_not_there_lists_those_spelled_alike_first(
    branched: Hub, settings: Settings
) -> None:
    error = failure(settings, f"{NAME}@v1.1")
    assert isinstance(error, NotFound)
    assert error.hint.startswith("there are: v1.0")


# Who may see what


def test_the_token_goes_to_the_hub_and_nobody_else(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD)
    hub.add(NAME, FILES, private=True)
    transport = HuggingFace(settings)
    found = transport.manifest(Reference.parse(NAME))
    assert {seen.authorization for seen in hub.seen} == {f"Bearer {GOOD}"}
    remote = transport.remote(found, found.files[0])
    assert remote.headers == {"Authorization": f"Bearer {GOOD}"}
    assert GOOD not in repr(remote)


def test_a_login_of_hf_is_used(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    """In a process of its own, because huggingface_hub reads its settings when it is imported."""
    hub.add(NAME, FILES, private=True)
    (tmp_path / "token").write_text(GOOD + "\n")
    code = (
        "import sys; from mdl.config import load; from mdl.reference import Reference;"
        "from mdl.transports.huggingface import HuggingFace;"
        "print(HuggingFace(load()).manifest(Reference.parse(sys.argv[1])).reference)"
    )
    environment = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url + "/", "MDL_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [sys.executable, "-c", code, NAME], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, f"huggingface.co/{NAME}:Q4_K_M\n"), result.stderr
    assert not hub.requests("agent-harnesses")
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_a_link_to_another_host_is_not_followed(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD)
    hub.add(NAME, FILES)
    entry = {"type": "file", "path": "a", "size": 1, "oid": "0" * 40}
    elsewhere = f'<{hub.cdn_url}/api/models/x/tree?cursor=1>; rel="next"'
    hub.answer("/tree/", Answer(200, json.dumps([entry]).encode(), {"Link": elsewhere}))
    assert isinstance(failure(settings, NAME), NetworkError)
    assert not hub.requests(port="cdn")


def test_a_hub_that_was_asked_before_gets_nothing_of_the_next_ones(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = replace(settings, hf_endpoint=hub.cdn_url)
    assert isinstance(failure(elsewhere, NAME), AuthError)
    seen = len(hub.requests(port="cdn"))
    assert seen
    monkeypatch.setenv("HF_TOKEN", GOOD)
    hub.add(NAME, FILES)
    entry = {"type": "file", "path": "a", "size": 1, "oid": "0" * 40}
    link = {"Link": f'<{hub.cdn_url}/api/models/x/tree?cursor=1>; rel="next"'}
    hub.answer("/tree/", Answer(200, json.dumps([entry]).encode(), link))
    assert isinstance(failure(settings, NAME), NetworkError)
    assert len(hub.requests(port="cdn")) == seen


def test_a_redirect_to_another_host_does_not_take_the_token_along(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD)
    hub.add(NAME, FILES)
    hub.answer("/api/models/", Answer(307, b"", {"Location": f"{hub.cdn_url}/api/models/{NAME}"}))
    failure(settings, NAME)
    assert [seen.authorization for seen in hub.requests(port="cdn")] == [None]


@pytest.mark.parametrize("private", [True, False])
def test_what_is_private_or_not_there_says_how_to_log_in(hub: Hub, settings: Settings, private: bool) -> None:
    if private:
        hub.add(NAME, FILES, private=True)
    error = failure(settings, NAME)
    assert isinstance(error, NotFound)
    assert error.message == f"huggingface.co/{NAME} does not exist or is private"
    assert "mdl login huggingface.co" in error.hint
    assert "HF_TOKEN" in error.hint


def test_a_token_that_may_not_see_it_is_told_so(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    hub.add(NAME, FILES, private=True)
    error = failure(settings, NAME)
    assert isinstance(error, NotFound)
    assert "the token may not be allowed to see it" in error.hint


def test_a_wrong_token_is_refused_as_such(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "expired-secret")
    hub.add(NAME, FILES)
    error = failure(settings, NAME)
    assert isinstance(error, AuthError)
    assert "refuses your token" in error.message
    assert "expired-secret" not in repr(error.args) + error.hint


@pytest.mark.parametrize("token", ["hf_\u00e9\u4e16", "hf_a\x1bb", "hf_a b\tc"])
def test_a_token_that_is_none_is_never_sent(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert isinstance(failure(settings, NAME), AuthError)
    assert hub.seen == []


@pytest.mark.parametrize(
    "endpoint",
    ["", "huggingface.co", "ftp://x.org", "https://", "https://me:secret@x.org", "https://x.org?a=b"],
)
def test_an_endpoint_that_is_no_plain_address_is_refused(settings: Settings, endpoint: str) -> None:
    error = failure(replace(settings, hf_endpoint=endpoint), NAME)
    assert isinstance(error, UsageError)
    assert "secret" not in error.message


@pytest.mark.parametrize(
    ("token", "message", "hint"),
    [("", "its owner wants to know", "mdl login"), (STRANGER, "has no access", "accept its conditions")],
)
def test_a_gate_is_noticed_before_the_first_byte_and_says_where_to_ask(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch, token: str, message: str, hint: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.add(NAME, FILES, gated="manual")
    error = failure(settings, NAME)
    assert isinstance(error, AuthError)
    assert message in error.message
    assert hint in error.hint
    assert f"{hub.url}/{NAME}" in error.hint


def test_who_was_let_through_the_gate_gets_the_model(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD)
    hub.add(NAME, FILES, gated="auto")
    assert manifest(settings, NAME).reference.version == "Q4_K_M"


def test_a_disabled_repository_is_called_so(hub: Hub, settings: Settings) -> None:
    hub.add(NAME, FILES, disabled=True)
    error = failure(settings, NAME)
    assert isinstance(error, NotFound)
    assert "disabled" in error.message


# Servers that are none, or have a bad day


@pytest.mark.parametrize("part", ["/api/models/", "/tree/"])
def test_a_captive_portal_is_recognised(hub: Hub, settings: Settings, part: str) -> None:
    hub.add(NAME, FILES)
    hub.answer(part, page())
    error = failure(settings, NAME)
    assert isinstance(error, NetworkError)
    assert "web page" in error.message
    assert "log in" in error.hint


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b"{}", b"null", b'"x"', b'{"id": "a/b"}', b'{"id": "a/b", "sha": "../../x"}',
        b"\xff\xfe", b"[" * 99999,
    ],
)  # fmt: skip
def test_garbage_is_a_network_error_in_one_line(hub: Hub, settings: Settings, body: bytes) -> None:
    hub.add(NAME, FILES)
    hub.answer("/api/models/", Answer(200, body, {"Content-Type": "application/json"}))
    assert isinstance(failure(settings, NAME), NetworkError)


@pytest.mark.parametrize(
    "body", [b'{"error": "x"}', b'[{"path": "a"}]', b"[1]", b'[{"type": "file", "path": 1}]']
)
def test_a_garbled_listing_is_a_network_error_in_one_line(hub: Hub, settings: Settings, body: bytes) -> None:
    hub.add(NAME, FILES)
    hub.answer("/tree/", Answer(200, body))
    assert isinstance(failure(settings, NAME), NetworkError)


def test_garbage_instead_of_the_revisions_is_a_network_error(branched: Hub, settings: Settings) -> None:
    branched.answer("/refs", Answer(200, b'{"branches": 1}'))
    assert isinstance(failure(settings, f"{NAME}@v1.0"), NetworkError)


def test_a_listing_without_end_is_given_up(hub: Hub, settings: Settings) -> None:
    hub.add(NAME, FILES)
    commit = hub.repositories[NAME].branches["main"]
    again = f'<{hub.url}/api/models/{NAME}/tree/{commit}?x=1&cursor=99>; rel="next"'
    hub.answer("/tree/", Answer(200, b"[]", {"Link": again}))
    assert isinstance(failure(settings, NAME), UnsupportedModel)
    assert len(hub.requests("/tree/")) == 1


def test_a_listing_of_too_many_files_is_refused(hub: Hub, settings: Settings) -> None:
    hub.page = MOST_ENTRIES * 2
    hub.add(NAME, {f"{n}.gguf": b"" for n in range(MOST_ENTRIES + 1)})
    assert "10,000" in failure(settings, NAME).message


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_answer_that_may_pass_is_asked_for_again(hub: Hub, settings: Settings, status: int) -> None:
    hub.add(NAME, FILES)
    hub.answer("/api/models/", Answer(status, b"{}", {"Retry-After": "0"}))
    hub.answer("/tree/", Answer(status, b"{}"))
    assert manifest(settings, NAME).reference.version == "Q4_K_M"


def test_a_hub_that_is_not_there_is_one_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = server.getsockname()[1]
    error = failure(replace(settings, hf_endpoint=f"http://127.0.0.1:{nobody}"), NAME)
    assert isinstance(error, NetworkError)
    assert "refused the connection" in error.message


# Hostile repositories


def test_a_bad_name_among_files_that_nobody_wants_does_no_harm(hub: Hub, settings: Settings) -> None:
    hub.add(NAME, {"../../evil.txt": b"", "/etc/passwd": b"", "a\nb": b"", "x/../../y.md": b"", **FILES})
    assert len(manifest(settings, NAME).files) == 2


@pytest.mark.parametrize(
    "name",
    ["../m-Q4_K_M.gguf", "/m-Q4_K_M.gguf", "a/../../m-Q4_K_M.gguf", "a\\m-Q4_K_M.gguf", "m\x1b-Q4_K_M.gguf"],
)
def test_a_bad_name_of_a_file_that_is_wanted_is_refused(hub: Hub, settings: Settings, name: str) -> None:
    hub.add(NAME, {name: Q4})
    assert isinstance(failure_without_hint(settings), IntegrityError | UsageError)


def failure_without_hint(settings: Settings) -> MdlError:
    with pytest.raises(MdlError) as caught:
        manifest(settings, NAME)
    assert caught.value.message.isprintable()
    return caught.value


def test_names_that_are_one_on_some_systems_are_refused(hub: Hub, settings: Settings) -> None:
    hub.add(NAME, {"README.md": b"a", "readme.md": b"b", "m-Q4_K_M.gguf": Q4})
    assert isinstance(failure_without_hint(settings), IntegrityError)


def test_a_file_that_is_listed_twice_is_refused(hub: Hub, settings: Settings) -> None:
    hub.add(NAME, FILES)
    twice = [{"type": "file", "path": "m-Q4_K_M.gguf", "size": n, "oid": "0" * 40} for n in (1, 2)]
    hub.answer("/tree/", Answer(200, json.dumps(twice).encode()))
    assert isinstance(failure_without_hint(settings), IntegrityError)


@pytest.mark.parametrize("digest", ["", "x" * 64, "../" * 20, "0" * 63])
def test_a_digest_that_is_none_is_refused(hub: Hub, settings: Settings, digest: str) -> None:
    hub.add(NAME, FILES)
    lfs = {"oid": digest, "size": 1, "pointerSize": 134}
    entry = {"type": "file", "path": "m-Q4_K_M.gguf", "size": 1, "oid": "0" * 40, "lfs": lfs}
    hub.answer("/tree/", Answer(200, json.dumps([entry]).encode()))
    assert isinstance(failure_without_hint(settings), IntegrityError)


def test_what_cannot_be_used_is_named_with_its_repository(hub: Hub, settings: Settings) -> None:
    hub.add(NAME, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    error = failure(settings, NAME)
    assert isinstance(error, UnsupportedModel)
    assert error.message.startswith(f"huggingface.co/{NAME} holds only PyTorch pickles")
