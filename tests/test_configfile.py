"""config.toml (D9): each key is documented; what is wrong is told with line and column; older versions are
converted; changes keep all else, and are whole."""

import os
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl import config, configfile
from mdl.errors import Busy, DiskError, MdlError, UsageError
from mdl.settings import KEYS, TABLES, Key


def load(tmp_path: Path, text: str | None = None, **variables: str) -> config.Settings:
    path = tmp_path / "config.toml"
    if text is not None:
        path.write_text(text)
    return config.load({"MDL_CONFIG": str(path), **variables})


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the configuration is; there is none."""
    path = tmp_path / "config.toml"
    monkeypatch.setenv("MDL_CONFIG", str(path))
    return path


def test_the_configuration_is_one_toml_file_with_a_version_number(path: Path) -> None:
    config.save("jobs", 3)
    config.save_alias("fast", "org/name")
    document = tomllib.loads(path.read_text())
    assert document == {"version": 2, "network": {"jobs": 3}, "aliases": {"fast": "org/name"}}
    assert configfile.template().startswith("version = 2\n")


# Every key

# Two values of each type, as text.
TWO = {
    "ask, missing, never, always or newer": ("never", "always"),
    "size": ("1GB", "2GB"),
    "list of hosts": ("quay.io,ghcr.io", "docker.io"),
    "true or false": ("1", "0"),
    "number, 1 to 64": ("2", "3"),
    "address": ("http://one:1", "http://other:1"),
}


def test_each_key_is_documented_with_type_default_and_environment_variable(tmp_path: Path) -> None:
    for name, key in KEYS.items():
        assert key.name == name
        assert key.type and key.help
        assert key.variable == ("" if key.type.startswith("table") else f"MDL_{name.upper()}")
        assert key.default is None or key.parse(key.default, name) == key.default
    defaults = config.Settings(tmp_path)
    assert all(getattr(defaults, name) == key.default for name, key in KEYS.items() if name != "home")


def test_a_new_file_tells_all_keys_and_sets_none() -> None:
    text = configfile.template()
    assert configfile.check(text, Path("config.toml")) == {"aliases": {}}
    assert all(f"# {name} = " in text or f"[{name}]" in text for name in KEYS)
    assert all(f"[{table}]" in text for table in TABLES)


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.variable])
def test_the_environment_overrides_the_file_for_each_key(tmp_path: Path, name: str) -> None:
    key = KEYS[name]
    one, other = TWO.get(key.type, ("/one", "/other"))
    settings = load(tmp_path, configfile.with_value("", key, one))
    assert getattr(settings, name) == key.parse(one, name)
    settings = load(tmp_path, **{key.variable: other})
    assert getattr(settings, name) == key.parse(other, name)
    environment = {"MDL_CONFIG": str(tmp_path / "config.toml")}
    assert config.values(environment)[name].source == "config.toml"
    assert config.values({**environment, key.variable: other})[name].source == key.variable


# Line and column


@pytest.mark.parametrize(
    ("text", "line", "column", "told"),
    [
        ("version = 2\njobs = ", 2, 8, "Invalid value"),
        ("pull = 'ask'\n\n  hosts = ['a b']\n", 3, 3, "hosts: 'a b'"),
        ("[network]\n# many\njobs = 0 # none\n", 3, 1, "network.jobs cannot be 0"),
        ("[network]\nca = ''\n\nrealms = [\n  'quay.io',\n  'x y',\n]\n", 4, 1, "network.realms"),
        ("aliases = {a = 1}\n", 1, 1, "aliases cannot be"),
        ("home = 'here'\n", 1, 1, "home cannot be 'here'"),
        ("version = 2\njobs = 3\n", 2, 1, "jobs stands at the wrong place"),
        ("[network]\npull = 'ask'\n", 2, 1, "pull stands at the wrong place"),
        ("[network]\njobz = 3\n", 2, 1, "jobz is not a setting"),
        ("server.url = 'nowhere'\n", 1, 1, "server.url cannot be 'nowhere'"),
        ("network = 1\n", 1, 1, "network is a table"),
        ("version = 2\npull = 'ask'\npull = 'ask'\n", 3, 13, "Cannot overwrite a value"),
        ("pull = 'ask", 1, 12, "Expected"),
        ("version = 'two'\n", 1, 1, "'two' is no version"),
        ("jobs = 70\n", 1, 1, "network.jobs cannot be 70"),  # of version 1
    ],
)
def test_a_broken_file_gives_line_and_column(
    tmp_path: Path, text: str, line: int, column: int, told: str
) -> None:
    with pytest.raises(UsageError) as refused:
        load(tmp_path, text)
    assert refused.value.message.startswith(f"{tmp_path}/config.toml, line {line}, column {column}: {told}")
    assert (tmp_path / "config.toml").read_text() == text


def test_a_file_that_is_no_text_gives_line_and_column_too(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"pull = 'ask'\n# \xff")
    with pytest.raises(DiskError, match="line 2, column 3"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "#" * (1 << 20) + "#", f"[network]\njobs = {'9' * 5000}"]
)
def test_a_monstrous_file_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(MdlError):
        load(tmp_path, text)


@given(st.text(st.sampled_from("versionjb=[]'\"#.\n\\ 12{}é\x00,"), max_size=60))
def test_no_file_raises_anything_but_an_error_that_names_it(text: str) -> None:
    try:
        configfile.check(text, Path("config.toml"))
    except MdlError as failure:
        assert "config.toml" in failure.message


# Older versions

OLD = """\
# Mine.

# Never more: the line is slow.
# Ask Ann.
jobs = 2  # two
hosts = ["quay.io"]  # ours
api_key = "secret"

[aliases]
fast = "org/name"  # the small one
"""

NEW = """\
version = 2
# Mine.

hosts = ["quay.io"]  # ours

[aliases]
fast = "org/name"  # the small one

[network]
# Never more: the line is slow.
# Ask Ann.
jobs = 2  # two

[server]
api_key = "secret"
"""


def without_blank_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line]


@pytest.mark.parametrize("head", ["", "version = 1\n"])
def test_an_older_version_is_converted_automatically_with_a_backup(tmp_path: Path, head: str) -> None:
    settings = load(tmp_path, head + OLD)
    assert (settings.jobs, settings.api_key, settings.hosts) == (2, "secret", ("quay.io",))
    assert settings.aliases == {"fast": "org/name"}
    assert without_blank_lines(tmp_path / "config.toml") == [line for line in NEW.splitlines() if line]
    assert (tmp_path / "config.toml.v1.bak").read_text() == head + OLD
    assert load(tmp_path) == settings


def test_what_is_converted_stays_as_private_as_its_secrets_are(tmp_path: Path) -> None:
    load(tmp_path, OLD)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.glob("config.toml*") if path.stat().st_size}
    assert modes == {0o600}


def test_a_backup_is_never_overwritten(tmp_path: Path) -> None:
    for text in ("jobs = 2\n", "jobs = 3\n", "jobs = 3\n"):
        load(tmp_path, text)
    kept = {path.name: path.read_text() for path in tmp_path.glob("*.bak*")}
    assert kept == {"config.toml.v1.bak": "jobs = 2\n", "config.toml.v1.bak2": "jobs = 3\n"}


@pytest.mark.parametrize("text", [NEW, "pull = 'never'\n", "\n", "[network]\njobs = 3\n"])
def test_a_file_of_this_version_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    load(tmp_path, text)
    assert (tmp_path / "config.toml").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_a_newer_version_is_an_error_that_says_to_update(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        load(tmp_path, "version = 3\nfuture = 1\n")
    assert "version 3" in refused.value.message
    assert refused.value.hint == "update mdl"


def test_where_nothing_can_be_written_an_older_file_works_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.toml.lock").mkdir()  # refuses to be written even to root
    assert load(tmp_path, OLD).jobs == 2
    assert (tmp_path / "config.toml").read_text() == OLD
    assert not list(tmp_path.glob("*.bak*"))


def test_an_older_file_that_is_broken_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2, column 1"):
        load(tmp_path, "jobs = 2\nconnections = 0\n")
    assert (tmp_path / "config.toml").read_text() == "jobs = 2\nconnections = 0\n"
    assert not list(tmp_path.glob("*.bak*"))


def test_many_that_convert_at_once_leave_one_backup_and_one_file(path: Path) -> None:
    path.write_text(OLD)
    command = [sys.executable, "-c", "from mdl import config; print(config.load().jobs)"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(6)]
    assert [process.communicate()[0] for process in started] == [b"2\n"] * 6
    assert configfile.check(path.read_text(), path)["jobs"] == 2
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["config.toml", "config.toml.lock", "config.toml.v1.bak"]


VALUES = {
    "jobs": ("1", "64"),
    "connections": ("1", "2"),
    "pull": ('"ask"', '"never"'),
    "hosts": ("[]", '["quay.io"]'),
    "insecure": ("[]", '["quay.io",\n  "docker.io"]'),
    "api_key": ('""', "'x'"),
    "offline": ("true", "false"),
}


@given(st.dictionaries(st.sampled_from(sorted(VALUES)), st.integers(0, 1)), st.booleans())
def test_a_conversion_changes_no_value(chosen: dict[str, int], versioned: bool) -> None:
    text = "".join(f"# {name}\n{name} = {VALUES[name][number]}\n" for name, number in chosen.items())
    found = configfile.check("version = 1\n" * versioned + text, Path("config.toml"))
    assert found == {name: KEYS[name].parse(value, name) for name, value in tomllib.loads(text).items()}


# Where the file is broken


def test_without_a_broken_file_there_are_defaults_and_no_network(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("offline = maybe\n")
    settings, broken = config.load_usable({"MDL_CONFIG": str(path), "MDL_OFFLINE": "0", "MDL_JOBS": "2"})
    assert broken is not None
    assert "line 1, column 11" in broken.message
    assert (settings.offline, settings.jobs, settings.pull) == (True, 2, "ask")
    path.write_text("")
    settings, broken = config.load_usable({"MDL_CONFIG": str(path)})
    assert (settings.offline, broken) == (False, None)


# Changes


def test_a_change_keeps_comments_and_order(path: Path) -> None:
    path.write_text(NEW)
    config.save("jobs", 3)
    config.save("pull", "never")
    config.save("aliases", "org/other", "slow")
    text = path.read_text()
    assert "# Ask Ann.\njobs = 3  # two\n" in text
    assert 'fast = "org/name"  # the small one\nslow = "org/other"\n' in text
    config.save("jobs", 2)
    config.save("pull", None)
    config.save("aliases", None, "slow")
    assert path.read_text() == NEW


def test_lines_end_as_they_did(path: Path) -> None:
    path.write_bytes(b"# mine\r\n[network]\r\njobs = 2\r\n")
    config.save("jobs", 3)
    assert path.read_bytes() == b"# mine\r\n[network]\r\njobs = 3\r\n"
    path.write_bytes(path.read_bytes().replace(b"3", b"0"))
    with pytest.raises(UsageError, match="line 3, column 1"):
        config.load()


def test_a_byte_order_mark_is_no_part_of_the_file(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfpull = 'never'\n")
    assert config.load().pull == "never"


def test_a_change_that_breaks_the_file_is_not_written(path: Path) -> None:
    path.write_text(NEW)
    with pytest.raises(UsageError, match="jobs cannot be 1000"):
        config.save("jobs", 1000)
    assert path.read_text() == NEW


def test_secrets_are_for_nobody_else(path: Path) -> None:
    path.write_text("pull = 'ask'\n")
    path.chmod(0o644)
    config.save("jobs", 3)
    assert path.stat().st_mode & 0o777 == 0o644
    config.save("api_key", "secret")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_linked_file_stays_a_link(path: Path, tmp_path: Path) -> None:
    mine = tmp_path / "dotfiles" / "mdl.toml"
    mine.parent.mkdir()
    mine.write_text("pull = 'never'\n")
    path.symlink_to(mine)
    config.save("jobs", 3)
    assert path.is_symlink()
    assert tomllib.loads(mine.read_text())["network"] == {"jobs": 3}


def test_what_somebody_else_changed_meanwhile_is_not_overwritten(path: Path) -> None:
    path.write_text("pull = 'never'\n")
    with pytest.raises(Busy):
        configfile.replace(path, "pull = 'ask'\n", "pull = 'always'\n")
    assert path.read_text() == "pull = 'never'\n"


def test_a_file_that_another_one_changes_for_long_is_busy(path: Path) -> None:
    with configfile._locked(path), pytest.raises(Busy, match="being changed by another mdl"):  # noqa: SIM117
        with configfile._locked(path, seconds=0):
            pass


def test_what_is_no_file_is_not_replaced_by_one(path: Path) -> None:
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(b"",), daemon=True).start()  # for who reads it
    with pytest.raises(DiskError, match="is no file to write to"):
        configfile.change(path, lambda text: f"{text}jobs = 2\n")
    assert path.is_fifo()
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # the writer may go


def test_a_link_to_nowhere_is_an_error_in_words(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "gone" / "config.toml")
    with pytest.raises(DiskError, match=r"config\.toml cannot be written: No such file or directory$"):
        configfile.change(path, lambda text: f"{text}jobs = 2\n")


@pytest.mark.parametrize("text", ["", OLD])
def test_many_that_change_at_once_lose_nothing(path: Path, text: str) -> None:
    path.write_text(text)
    codes = [f"from mdl import config; config.save('aliases', 'org/m{n}', 'a{n}')" for n in range(6)]
    started = [subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ)) for code in codes]
    assert [process.wait() for process in started] == [0] * 6
    document = tomllib.loads(path.read_text())
    assert document["aliases"].items() >= {f"a{n}": f"org/m{n}" for n in range(6)}.items()
    assert document.get("network") == ({"jobs": 2} if text else None)


@given(
    st.sampled_from([key for key in KEYS.values() if key.type in TWO]),
    st.integers(0, 1),
    st.sampled_from(["", NEW, "[server]\n[network]\n", "server = {}\nnetwork.jobs = 3\n"]),
)
def test_a_value_that_is_set_is_read_back_and_gone_when_it_is_unset(key: Key, number: int, text: str) -> None:
    value = TWO[key.type][number]
    before = configfile.check(text, Path("c"))
    current = configfile.with_value(text, key, value)
    assert configfile.check(current, Path("c")) == {**before, key.name: key.parse(value, key.name)}
    before.pop(key.name, None)
    assert configfile.check(configfile.with_value(current, key, None), Path("c")) == before


def test_the_readme_documents_each_key_with_type_and_default() -> None:
    rows = (Path(__file__).parent.parent / "README.md").read_text().splitlines()
    for key in KEYS.values():
        row = next(row for row in rows if row.startswith(f"| `{key.place}` | {key.type} |"))
        if isinstance(key.default, int | str) and key.default:
            assert f"`{key.default}`" in row
