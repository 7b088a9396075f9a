"""Settings: defaults < config.toml < environment < flags, and what cannot be is told."""

from pathlib import Path

import pytest

from mdl import config
from mdl.errors import DiskError, UsageError


def load(tmp_path: Path, text: str | None = None, **variables: str) -> config.Settings:
    path = tmp_path / "config.toml"
    if text is not None:
        path.write_text(text)
    return config.load({"MDL_HOME": str(tmp_path / "home"), "MDL_CONFIG": str(path), **variables})


def test_without_anything_there_are_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings == config.Settings(tmp_path / "home", checkpoints=settings.checkpoints)
    assert (settings.pull, settings.offline, settings.hf_endpoint) == ("ask", False, "https://huggingface.co")


def test_the_environment_goes_before_the_file_and_flags_before_both(tmp_path: Path) -> None:
    text = 'version = 1\npull = "never"\njobs = 2\noffline = true\n'
    assert load(tmp_path, text).pull == "never"
    settings = load(tmp_path, text, MDL_PULL="always", MDL_OFFLINE="0")
    assert (settings.pull, settings.jobs, settings.offline) == ("always", 2, False)
    assert config.with_flags(settings, pull="missing", offline=None, jobs=9).jobs == 9
    assert config.with_flags(settings, pull=None).pull == "always"


def test_what_hugging_face_s_own_tools_read_is_honoured(tmp_path: Path) -> None:
    settings = load(tmp_path, HF_ENDPOINT="http://127.0.0.1:1/", HF_HUB_OFFLINE="1")
    assert (settings.hf_endpoint, settings.offline) == ("http://127.0.0.1:1", True)
    assert load(tmp_path, 'hf_endpoint = "http://x"', HF_ENDPOINT="http://y").hf_endpoint == "http://x"


@pytest.mark.parametrize(
    "text",
    [
        "pull = 'sometimes'",
        "jobs = 0",
        "jobs = 65",
        "jobs = 'many'",
        "offline = 'perhaps'",
        "color = 1",
        "limit_rate = '20 apples'",
        "memory = 'much'",
        "limit_rate = '0.5'",
        "limit_rate = -1",
        "hosts = 1",
        "hosts = ['quay.io', 2]",
        "hosts = ['no host']",
        "hosts = ['quay.io/../x']",
        "insecure = ['http://x']",
        "insecure = ['x/y']",
        "aliases = 1",
        "aliases = {a = 1}",
        "aliases = {a = ''}",
        "version = 3",
        "[",
        "\x00",
    ],
)
def test_what_cannot_be_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        load(tmp_path, text)


@pytest.mark.parametrize(
    "variables",
    [{"MDL_PULL": "x"}, {"MDL_JOBS": "-1"}, {"MDL_OFFLINE": "perhaps"}, {"HF_HUB_OFFLINE": "perhaps"}],
)
def test_so_is_a_variable(tmp_path: Path, variables: dict[str, str]) -> None:
    with pytest.raises(UsageError) as refused:
        load(tmp_path, **variables)
    assert next(iter(variables)) in refused.value.message


@pytest.mark.parametrize(
    ("text", "rate"),
    [("0", 0), ("1", 1), ("500k", 500_000), ("1.5MB/s", 1_500_000), ("20M", 20_000_000), ("1G", 10**9)],
)
def test_a_rate_is_written_as_people_do(tmp_path: Path, text: str, rate: int) -> None:
    assert load(tmp_path, f"limit_rate = '{text}'").limit_rate == rate
    assert load(tmp_path, MDL_LIMIT_RATE=text).limit_rate == rate


def test_the_memory_that_a_model_may_take_is_a_setting(tmp_path: Path) -> None:
    assert load(tmp_path).memory == 0
    assert load(tmp_path, "memory = '8GB'").memory == 8 * 10**9
    assert load(tmp_path, "memory = '8GB'", MDL_MEMORY="500MB").memory == 500 * 10**6


def test_hosts_are_written_in_any_spelling_and_kept_in_order(tmp_path: Path) -> None:
    text = (
        "hosts = ['Quay.IO/ai-lab/models', 'hf.co', 'quay.io/ai-lab/models/']\ninsecure = ['LOCALHOST:5000']"
    )
    settings = load(tmp_path, text)
    assert settings.hosts == ("quay.io/ai-lab/models", "huggingface.co")
    assert settings.insecure == ("localhost:5000",)
    assert load(tmp_path, text, MDL_HOSTS="ghcr.io, docker.io").hosts == ("ghcr.io", "docker.io")


def test_an_alias_is_saved_and_all_else_in_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config" / "config.toml"
    monkeypatch.setenv("MDL_CONFIG", str(path))
    config.save_alias("fast", "org/name:Q8_0")
    assert path.read_text().startswith("version = 2\n")
    path.write_text("# mine\npull = 'never'  # not more\n\n[aliases]\nold = 'x/y' # kept\n")
    path.chmod(0o640)
    config.save_alias("fast", "org/name:Q8_0")
    config.save_alias("slow", "org/slow")
    config.save_alias("slow", None)
    assert config.load().aliases == {"old": "x/y", "fast": "org/name:Q8_0"}
    assert path.read_text().startswith(
        "# mine\npull = 'never'  # not more\n\n[aliases]\nold = 'x/y' # kept\n"
    )
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(file.name for file in path.parent.iterdir()) == ["config.toml", "config.toml.lock"]


def test_a_broken_file_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("MDL_CONFIG", str(path))
    path.write_text("jobs = ")
    with pytest.raises(UsageError):
        config.save_alias("fast", "org/name")
    assert path.read_text() == "jobs = "


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DiskError):
        load(tmp_path)


def test_the_home_may_be_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"home = '{tmp_path / 'elsewhere'}'")
    assert config.load({"MDL_CONFIG": str(path)}).home == tmp_path / "elsewhere"
    assert (
        config.load({"MDL_CONFIG": str(path), "MDL_HOME": str(tmp_path / "here")}).home == tmp_path / "here"
    )
