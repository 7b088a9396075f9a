"""mdl login and logout: against real registries, at a terminal, from a pipe, and without leaking a secret."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
import trustme
from faultserver import FaultServer, Reply, Request
from hub import Answer, Hub
from registry import BASIC, PASSWORD, USER, Front, Registry, titled

Mdl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path, hub: Hub) -> dict[str, str]:
    own = {
        "MDL_HOME": str(tmp_path / "home"),
        "MDL_CONFIG": str(tmp_path / "config" / "config.toml"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
    }
    return {**os.environ, **own}


@pytest.fixture
def mdl(environment: dict[str, str]) -> Mdl:
    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mdl", *arguments]
        return subprocess.run(
            command, env=environment, input=stdin, capture_output=True, text=True, timeout=60
        )

    return run


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("private"), private=True) as running:
        running.push("org/m", "v1", [titled("m.gguf", b"x")])
        yield running


def auth_file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "auth.json"


def test_a_right_password_is_kept_and_a_wrong_one_is_not(mdl: Mdl, private: Registry, tmp_path: Path) -> None:
    wrong = mdl("login", private.host, "-u", USER, "--password-stdin", stdin="wrong\n")
    assert (wrong.returncode, wrong.stdout) == (4, "")
    assert "does not know this user" in wrong.stderr
    assert not auth_file(tmp_path).exists()
    right = mdl("login", private.host, "-u", USER, "--password-stdin", stdin=f"{PASSWORD}\n")
    assert right.returncode == 0, right.stderr
    assert json.loads(mdl("login", "--json").stdout)["logins"] == [
        {"host": private.host, "user": USER, "source": str(auth_file(tmp_path))}
    ]
    assert PASSWORD not in right.stdout + right.stderr + mdl("login").stdout
    assert mdl("logout", private.host).returncode == 0
    again = mdl("logout", private.host)
    assert (again.returncode, again.stderr.splitlines()[0]) == (
        3,
        f"mdl: mdl keeps no credentials for {private.host}",
    )


def test_a_registry_with_tokens_checks_a_password_too(mdl: Mdl, front: Front, tmp_path: Path) -> None:
    front.now.private = True
    wrong = mdl("login", front.host, "-u", USER, "--password-stdin", stdin="wrong")
    assert wrong.returncode == 4
    assert "does not know this user" in wrong.stderr
    assert mdl("login", front.host, "-u", USER, "--password-stdin", stdin=PASSWORD).returncode == 0
    assert oct(auth_file(tmp_path).stat().st_mode)[-3:] == "600"


def test_a_person_types_a_password_that_nobody_sees(
    environment: dict[str, str], private: Registry, tmp_path: Path
) -> None:
    child = pexpect.spawn(sys.executable, ["-m", "mdl", "login", private.host], env=environment, timeout=20)
    child.expect("User: ")
    child.sendline(USER)
    child.expect("Password: ")
    child.sendline(PASSWORD)
    child.expect(f"logged in at {private.host} as {USER}")
    child.expect(pexpect.EOF)
    assert PASSWORD.encode() not in (child.before or b"")
    child.close()
    assert child.exitstatus == 0


def test_a_person_who_leaves_at_the_prompt_logs_in_nowhere(
    environment: dict[str, str], private: Registry, tmp_path: Path
) -> None:
    for key, code in (("\x04", 2), ("\x03", 130)):
        child = pexpect.spawn(
            sys.executable, ["-m", "mdl", "login", private.host, "-u", USER], env=environment, timeout=20
        )
        child.expect("Password: ")
        child.send(key)
        child.expect(pexpect.EOF)
        assert b"Traceback" not in (child.before or b"")
        assert (child.before or b"").endswith(b"\r\n")
        child.close()
        assert child.exitstatus == code
    assert not auth_file(tmp_path).exists()


def test_a_password_is_in_no_list_of_processes(environment: dict[str, str], front: Front) -> None:
    front.now.private = True
    seen: list[str] = []

    def look() -> None:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                seen.append((process / "cmdline").read_text() + (process / "environ").read_text())

    answer = front.answer
    front.answer = lambda handler, port: (look(), answer(handler, port))[1]  # type: ignore[method-assign]
    command = [sys.executable, "-m", "mdl", "login", front.host, "-u", USER, "--password-stdin"]
    subprocess.run(
        command, env=environment, input="s3cr3t-of-mine", text=True, capture_output=True, timeout=60
    )
    assert any(f"login\0{front.host}" in text for text in seen)
    assert not any("s3cr3t-of-mine" in text for text in seen)


def test_a_registry_that_asks_nobody_needs_no_login(mdl: Mdl, registry: Registry, tmp_path: Path) -> None:
    told = mdl("login", registry.host, "-u", USER, "--password-stdin", stdin=PASSWORD)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == f"mdl: {registry.host} asks nobody who they are\nthere is no need to log in\n"
    assert not auth_file(tmp_path).exists()


def test_a_password_goes_only_to_whom_the_user_trusts(mdl: Mdl, tmp_path: Path) -> None:
    authority, file = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))

    def ask(request: Request) -> Reply:
        known = request.headers.get("authorization") == BASIC
        return Reply(200 if known else 401, {"Content-Length": "0", "WWW-Authenticate": "Basic realm=x"})

    with contextlib.closing(FaultServer(authority, "localhost")) as server:
        server.pages["/v2/"] = ask
        host = f"localhost:{server.port}"
        arguments = ["login", host, "-u", USER, "--password-stdin"]
        refused = mdl(*arguments, stdin=PASSWORD)
        assert refused.returncode == 5
        assert "is not trusted" in refused.stderr
        assert all("authorization" not in request.headers for request in server.requests)
        for flags in (["--ca", str(file)], ["--insecure"]):
            done = mdl(*arguments, *flags, stdin=PASSWORD)
            assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr


def test_a_script_that_forgets_something_is_told(mdl: Mdl, private: Registry) -> None:
    for arguments in (["login", private.host, "-u", USER], ["login", private.host, "--password-stdin"],
                      ["login", "no host"], ["logout"]):  # fmt: skip
        assert mdl(*arguments).returncode == 2, arguments
    for secret in ("\n", "two\nlines", "x" * 70_000, "\x1b[31m"):
        none = mdl("login", private.host, "-u", USER, "--password-stdin", stdin=secret)
        assert none.returncode == 2
        assert "this is no password" in none.stderr
        assert len(none.stderr) < 200


def test_a_token_of_hugging_face_is_kept_where_its_own_tools_look(mdl: Mdl, hub: Hub, tmp_path: Path) -> None:
    hub.pages["/api/whoami-v2"] = Answer(200, b'{"name": "somebody"}', {"Content-Type": "application/json"})
    kept = mdl("login", "huggingface.co", "--password-stdin", stdin="hf_good\n")
    assert (kept.returncode, kept.stderr) == (0, "logged in at huggingface.co as somebody\n")
    token = tmp_path / "hf" / "token"
    assert token.read_text() == "hf_good"
    assert oct(token.stat().st_mode)[-3:] == "600"
    assert json.loads(mdl("login", "--json").stdout)["logins"] == [
        {"host": "huggingface.co", "user": None, "source": str(token)}
    ]
    assert mdl("logout", "hf.co").returncode == 0
    assert not token.exists()
    hub.answer("whoami", Answer(401, b'{"error": "Invalid"}'))
    assert mdl("login", "hf.co", "--password-stdin", stdin="hf_bad\n").returncode == 4
    assert not token.exists()


def test_what_is_no_file_is_neither_replaced_by_a_token_nor_removed(
    environment: dict[str, str], mdl: Mdl, hub: Hub, tmp_path: Path
) -> None:
    hub.pages["/api/whoami-v2"] = Answer(200, b'{"name": "somebody"}', {"Content-Type": "application/json"})
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    environment["HF_TOKEN_PATH"] = str(pipe)
    for command in (("login", "huggingface.co", "--password-stdin"), ("logout", "huggingface.co")):
        done = mdl(*command, stdin="hf_good\n")
        assert (done.returncode, pipe.is_fifo()) == (7, True)
        assert "is no file to write to" in done.stderr


@pytest.mark.parametrize("name", ["huggingface.co", "api.openai.com", "quay.io"])
def test_offline_nobody_is_asked_whether_credentials_are_right(
    environment: dict[str, str], mdl: Mdl, hub: Hub, name: str
) -> None:
    environment["MDL_OFFLINE"] = "1"
    done = mdl("login", name, "--password-stdin", stdin="secret\n")
    assert (done.returncode, hub.seen) == (3, [])
    assert f"{name} cannot be asked who you are: mdl is offline\n" in done.stderr


@pytest.mark.parametrize("name", ["huggingface.co", "api.openai.com"])
def test_a_user_is_named_only_where_there_are_users(mdl: Mdl, hub: Hub, name: str) -> None:
    done = mdl("login", name, "--user", "me", "--password-stdin", stdin="secret\n")
    assert (done.returncode, hub.seen) == (2, [])
    assert "leave out --user" in done.stderr


def test_what_others_have_stored_is_said_and_left_alone(mdl: Mdl, tmp_path: Path) -> None:
    file = tmp_path / "docker" / "config.json"
    file.parent.mkdir()
    text = json.dumps({"auths": {"quay.io": {"auth": "bWU6eA=="}}, "credHelpers": {"ghcr.io": "\x1b[31mred"}})
    file.write_text(text)
    shown = mdl("login").stdout
    assert shown.splitlines()[1].split() == ["quay.io", "me", str(file)]
    assert "\x1b" not in shown
    left = mdl("logout", "quay.io")
    assert (left.returncode, left.stderr.splitlines()[1]) == (3, f"{file} has some, which mdl leaves alone")
    assert file.read_text() == text


def test_what_skopeo_has_stored_is_known(
    mdl: Mdl, environment: dict[str, str], private: Registry, tmp_path: Path
) -> None:
    file = tmp_path / "podman.json"
    environment["REGISTRY_AUTH_FILE"] = str(file)
    command = ["skopeo", "login", "--tls-verify=false", "-u", USER, "--password-stdin", private.host]
    subprocess.run(command, env=environment, input=PASSWORD, text=True, check=True, capture_output=True)
    assert json.loads(mdl("login", "--json").stdout)["logins"] == [
        {"host": private.host, "user": USER, "source": str(file)}
    ]


def test_skopeo_takes_what_mdl_has_stored(
    mdl: Mdl, environment: dict[str, str], private: Registry, tmp_path: Path
) -> None:
    mdl("login", private.host, "-u", USER, "--password-stdin", stdin=PASSWORD)
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{private.host}/org/m:v1"]
    own = {**environment, "REGISTRY_AUTH_FILE": str(auth_file(tmp_path))}
    found = subprocess.run(command, env=own, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["layers"]
