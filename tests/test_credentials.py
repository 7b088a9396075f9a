"""Credentials: from mdl's own file, podman's, docker's and programs, without letting any of them stop mdl."""

import base64
import json
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from mdl import credentials
from mdl.credentials import Credentials, Login, find, logins, remove, store
from mdl.errors import DiskError


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The files that may have credentials, none of which is there yet."""
    monkeypatch.setenv("MDL_CONFIG", str(tmp_path / "mdl" / "config.toml"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "named.json"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    found = credentials.auth_paths()
    for path in found:
        path.parent.mkdir(parents=True, exist_ok=True)
    return dict(zip(("mdl", "named", "run", "podman", "docker"), found, strict=True))


def pair(user: str, password: str = "secret") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content))


def helper(tmp_path: Path, body: str, name: str = "safe") -> None:
    program = tmp_path / "bin" / f"docker-credential-{name}"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


def test_the_first_file_that_has_some_is_believed(places: dict[str, Path]) -> None:
    for name, path in reversed(places.items()):
        write(path, auths={"quay.io": pair(name), "ghcr.io": {}})
        found = find("quay.io", "org/model")
        assert found is not None
        assert (found.user, found.password, found.source) == (name, "secret", str(path))
    assert find("ghcr.io") is None
    assert find("other.io") is None


def test_the_longest_part_of_a_host_wins(places: dict[str, Path]) -> None:
    auths = {"quay.io": pair("all"), "quay.io/org": pair("org"), "quay.io/org/model": pair("model")}
    write(places["podman"], auths=auths)
    for path, user in (("org/model", "model"), ("org/other", "org"), ("organ/model", "all"), ("", "all")):
        found = find("quay.io", path)
        assert found is not None
        assert found.user == user


@pytest.mark.parametrize(
    "key", ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"]
)
def test_docker_s_own_names_of_its_hub_are_one(places: dict[str, Path], key: str) -> None:
    write(places["docker"], auths={key: pair("me")})
    found = find("docker.io", "library/x")
    assert found is not None
    assert found.user == "me"


def test_identity_tokens_are_told_from_passwords(places: dict[str, Path]) -> None:
    write(
        places["docker"],
        auths={"a.io": {**pair("me", ""), "identitytoken": "t1"}, "b.io": pair("<token>", "t2")},
    )
    for host, token in (("a.io", "t1"), ("b.io", "t2")):
        found = find(host)
        assert found is not None
        assert found.identity_token == token


def test_a_program_is_asked_for_its_hosts(places: dict[str, Path], tmp_path: Path) -> None:
    helper(tmp_path, 'read host; printf \'{"Username": "of %s", "Secret": "s"}\' "$host"')
    write(places["docker"], credHelpers={"quay.io": "safe"}, auths={"ghcr.io": pair("file")})
    found, other = find("quay.io"), find("ghcr.io")
    assert found is not None and other is not None
    assert (found.user, other.user) == ("of quay.io", "file")
    write(places["docker"], credsStore="safe")
    hub = find("docker.io")
    assert hub is not None
    assert hub.user == "of https://index.docker.io/v1/"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("echo 'credentials not found in native keychain'; exit 1", ""),
        ("echo oh no; exit 1", "failed"),
        ("echo nonsense", "cannot be understood"),
        ("echo '[]'", "cannot be understood"),
        ("exec yes", "said too much"),
        ("head -c 2000000 /dev/zero", "said too much"),
        ('echo \'{"Username": 1, "Secret": []}\'', ""),
    ],
)
def test_a_program_that_fails_leaves_the_next_source(
    places: dict[str, Path], tmp_path: Path, body: str, told: str
) -> None:
    helper(tmp_path, body)
    write(places["podman"], credsStore="safe")
    write(places["docker"], auths={"quay.io": pair("next")})
    troubles: list[str] = []
    found = find("quay.io", "", troubles)
    assert found is not None
    assert found.user == "next"
    assert len(troubles) == bool(told)
    assert told in "".join(troubles)


def test_a_program_that_never_answers_is_not_waited_for(places: dict[str, Path], tmp_path: Path) -> None:
    helper(tmp_path, "exec sleep 30")
    write(places["docker"], credsStore="safe")
    troubles: list[str] = []
    began = time.monotonic()
    assert find("quay.io", "", troubles, patience=0.3) is None
    assert time.monotonic() - began < 5
    assert "did not answer" in troubles[0]


@pytest.mark.parametrize("name", ["../evil", "a/b", "a b", "-x", "", 1, None, ["safe"]])
def test_a_program_s_name_cannot_be_a_path(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "bin" / f"docker-credential-{name}" if "/" not in str(name) else None
    evil = evil or tmp_path / f"docker-credential-{name.partition('/')[0]}" / name.partition("/")[2]
    evil.parent.mkdir(parents=True)
    evil.write_text('#!/bin/sh\nprintf \'{"Username": "me", "Secret": "s"}\'\n')
    evil.chmod(0o755)
    write(places["docker"], credHelpers={"quay.io": name})
    assert find("quay.io") is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"auths": []}', '{"auths": {"quay.io": 1}}',
     '{"auths": {"quay.io": {"auth": 7}}}',
     '{"auths": {"quay.io": {"auth": "!!"}}}', '{"auths": {"quay.io": {"auth": "/////w=="}}}',
     "[" * 100_000],
)  # fmt: skip
def test_a_damaged_file_leaves_the_next_one(places: dict[str, Path], content: str) -> None:
    places["podman"].write_text(content)
    write(places["docker"], auths={"quay.io": pair("next")})
    found = find("quay.io")
    assert found is not None
    assert found.user == "next"


def test_what_is_stored_is_for_its_owner_alone(places: dict[str, Path]) -> None:
    places["mdl"].parent.rmdir()
    write(places["docker"], auths={"ghcr.io": pair("docker")})
    store("quay.io", Credentials("me", "p:w"))
    store("ghcr.io", Credentials("mine", "x"))
    assert stat.S_IMODE(places["mdl"].stat().st_mode) == 0o600
    assert stat.S_IMODE(places["mdl"].parent.stat().st_mode) == 0o700
    assert sorted(path.name for path in places["mdl"].parent.iterdir()) == ["auth.json"]
    found = find("quay.io")
    assert found is not None
    assert (found.user, found.password) == ("me", "p:w")
    assert logins() == [
        Login("quay.io", "me", str(places["mdl"])), Login("ghcr.io", "mine", str(places["mdl"]))
    ]  # fmt: skip
    assert remove("ghcr.io")
    assert not remove("ghcr.io")
    other = find("ghcr.io")
    assert other is not None
    assert other.user == "docker"


def test_a_damaged_file_of_mdl_s_own_is_not_overwritten(places: dict[str, Path]) -> None:
    places["mdl"].write_text('{"auths": {"quay.io": ')
    with pytest.raises(DiskError, match="cannot be read"):
        store("ghcr.io", Credentials("me", "x"))
    assert places["mdl"].read_text() == '{"auths": {"quay.io": '


def test_what_cannot_be_stored_leaves_nothing_of_it(places: dict[str, Path], tmp_path: Path) -> None:
    places["mdl"].mkdir()  # where a file should be
    with pytest.raises(DiskError):
        store("ghcr.io", Credentials("me", "x"))
    places["mdl"].rmdir()
    places["mdl"].symlink_to(tmp_path / "kept" / "auth.json")  # to a folder that is not there
    with pytest.raises(DiskError):
        store("ghcr.io", Credentials("me", "x"))
    assert [path.name for path in places["mdl"].parent.iterdir()] == ["auth.json"]
    (tmp_path / "kept").mkdir()
    store("ghcr.io", Credentials("me", "x"))
    assert places["mdl"].is_symlink()
    assert find("ghcr.io") is not None


@pytest.mark.alone
def test_a_program_that_leaves_something_running_is_not_waited_for(
    places: dict[str, Path], tmp_path: Path
) -> None:
    helper(tmp_path, 'sleep 5 & printf \'{"Username": "me", "Secret": "s"}\'')
    write(places["docker"], credsStore="safe")
    began = time.monotonic()
    assert find("quay.io") is not None
    assert time.monotonic() - began < 3


def test_secrets_are_not_shown() -> None:
    assert "hidden" not in repr(Credentials("me", "hidden", "hidden"))
