"""What mdl recommends: short names, good settings, newer copies. With a real hub, a real registry on loopback
and real inference."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pexpect
import pytest
from commands import Mdl, command
from hub import Answer, Hub
from hub import page as web_page
from hypothesis import given
from hypothesis import strategies as st
from registry import Blob, Registry, titled

from mdl import catalog as module
from mdl import estimate, parameters, refreshing
from mdl.catalog import SHIPPED, catalog, checked, parse, profile
from mdl.config import Settings
from mdl.errors import AuthError, IntegrityError, MdlError, NetworkError, NotFound, UsageError
from mdl.library import Library
from mdl.machine import Gpu, Machine
from mdl.reference import Reference

DEMO = SHIPPED.parent / "models" / "mdl-demo-Q8_0.gguf"
MISTRAL = "bartowski/Mistral-7B-Instruct-v0.3-GGUF"
OURS = """
version = 1
updated = "2026-01-02"

[models.house]
description = "Our own model"
license = "mit"
context = 512
capabilities = ["tools"]
parameters = { temperature = 0.25, stop = ["END"] }
default = "big"

[models.house.sizes.big]
reference = "huggingface.co/house/big-GGUF:Q4_K_M"
parameter_count = 8_000_000_000
download = 4_900_000_000
memory = 5_900_000_000

[models.house.sizes.small]
reference = "quay.io/house/small:v2"
license = "apache-2.0"
parameter_count = 1_000_000_000
download = 600_000_000
memory = 1_100_000_000
"""


@pytest.fixture
def mdl(tmp_path: Path, hub: Hub) -> Mdl:
    """Runs `mdl` with nothing of the user's, and the hub."""
    return command(tmp_path, HF_ENDPOINT=hub.url)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder."""
    monkeypatch.setenv("MDL_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def put(data: Path, text: str) -> Path:
    data.mkdir(exist_ok=True)
    path = data / "catalog.toml"
    path.write_text(text)
    return path


def document(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["schema"] == 1
    return found


# D7: a catalog of recommended models with good settings ships with mdl


def test_a_catalog_of_recommended_models_ships_with_mdl(data: Path) -> None:
    entries = catalog().entries
    assert len({entry.family for entry in entries}) >= 36
    assert len({entry.name for entry in entries}) == len(entries)
    assert len({entry.reference for entry in entries}) == len(entries)
    assert {name for entry in entries for name in entry.capabilities} == set(module.CAPABILITIES)
    for entry in entries:
        if entry.reference is not None:
            assert entry.reference.scheme == "hf"
            assert entry.quantization in estimate.BITS
            assert Reference.parse(str(entry.reference)) == entry.reference


def test_every_model_of_the_catalog_has_good_settings_that_can_be_set(data: Path) -> None:
    for entry in catalog().entries:
        found = parameters.profile(entry.parameters, entry.name)
        assert not found.settings
        assert not found.ignored
    assert profile("llama3.2").sampling == {"temperature": 0.6, "top_p": 0.9}
    assert profile("demo").sampling == {"temperature": 0.0}


def test_the_sizes_in_the_catalog_are_what_its_numbers_of_parameters_come_to(data: Path) -> None:
    for entry in catalog().entries:
        if entry.file is None:
            assert entry.download is not None
            assert entry.memory is not None
            assert entry.quantization is not None
            size = estimate.size(entry.parameter_count, entry.quantization)
            assert size is not None
            least = size * 0.95
            assert least < entry.download < size * 1.05 + 1.3e9 * ("vision" in entry.capabilities), entry.name
            assert estimate.memory(entry.download) == pytest.approx(entry.memory, rel=0.06), entry.name


@pytest.mark.parametrize("name", ["mistral", "llama3.1:8b", "gemma3:12b-q8_0"])
def test_the_settings_of_a_model_are_those_of_all_its_versions(name: str, data: Path) -> None:
    entry = catalog().get(name)
    assert entry.reference is not None
    for version in ("Q4_K_M", "Q2_K", None):
        assert profile(entry.reference.with_version(version)) == profile(name)
    assert profile(Reference.parse("huggingface.co/someone/else:Q4_K_M")) == profile("nothing")


# Short names


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("mistral", f"{MISTRAL}:Q4_K_M"),
        ("mistral:7b", f"{MISTRAL}:Q4_K_M"),
        ("Mistral:7B", f"{MISTRAL}:Q4_K_M"),
        ("mistral:7b-q8_0", f"{MISTRAL}:Q8_0"),
        ("mistral:7b-Q8_0", f"{MISTRAL}:Q8_0"),
        ("mistral:7b-iq4_xs", f"{MISTRAL}:IQ4_XS"),
        ("qwen3", "Qwen/Qwen3-8B-GGUF:Q4_K_M"),
        ("qwen3:0.6b", "Qwen/Qwen3-0.6B-GGUF:Q8_0"),
        ("qwen3:30b-a3b", "Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M"),
        ("qwen3:30b-a3b-q6_k", "Qwen/Qwen3-30B-A3B-GGUF:Q6_K"),
        ("granite4:h-tiny", "ibm-granite/granite-4.0-h-tiny-GGUF:Q4_K_M"),
        ("bge-reranker", "gpustack/bge-reranker-v2-m3-GGUF:Q8_0"),
    ],
)
def test_a_short_name_is_a_model_a_size_or_a_quantization(
    name: str, reference: str, library: Library
) -> None:
    resolution = library.resolve(name)
    assert str(resolution.reference) == f"huggingface.co/{reference}"
    assert [step.step for step in resolution.steps] == ["path", "cache", "catalog", "cache", "remote"]


@pytest.mark.parametrize(
    "name", ["mistral:70b", "mistral:7b-", "mistral:7b-q9", "mistral:q8_0", "mistra", "demo:x", "mistral:7"]
)
def test_what_is_nearly_a_short_name_is_none(name: str, library: Library) -> None:
    assert library.resolve(name).reference is None


def test_a_short_name_downloads_chats_and_is_found_under_its_real_reference(hub: Hub, mdl: Mdl) -> None:
    hub.add(MISTRAL, {"Mistral-7B-Instruct-v0.3-Q4_K_M.gguf": DEMO.read_bytes()})
    missing = mdl("chat", "mistral:7b", "What is the capital of France?")
    assert missing.returncode == 3
    assert f"mdl download huggingface.co/{MISTRAL}:Q4_K_M" in missing.stderr
    folder = Path(mdl("download", "mistral:7b").stdout.strip())
    assert folder.parts[-4:] == ("huggingface.co", *MISTRAL.split("/"), "Q4_K_M")
    assert mdl("list", "-q").stdout == f"huggingface.co/{MISTRAL}\n"
    hub.forget()
    for name in ("mistral", "mistral:7b", f"{MISTRAL}:Q4_K_M"):
        assert mdl("resolve", name).stdout.endswith(f"=> {folder}\n")
    answer = mdl("chat", "mistral", "What is the capital of France?", "--temperature", "0")
    assert answer.stdout == "The capital of France is Paris.\n"
    assert "mistral:7b (here)" in mdl("catalog", "mistral:7b").stdout
    assert mdl("rm", "mistral:7b", "--yes").returncode == 0
    assert hub.seen == []


def test_the_recommended_settings_are_in_force(hub: Hub, mdl: Mdl, tmp_path: Path) -> None:
    put(tmp_path / "data", OURS)
    hub.add("house/big-GGUF", {"big-Q8_0.gguf": DEMO.read_bytes()})
    assert mdl("download", "house:big-q8_0").returncode == 0
    said = document(mdl("inspect", "house/big-GGUF", "--settings", "--json"))["parameters"]
    assert said["temperature"] == {"value": 0.25, "source": "the catalog"}
    assert said["stop"] == {"value": ["END"], "source": "the catalog"}
    drawn = {mdl("chat", "demo", "Tell me a story.", "--seed", str(seed)).stdout for seed in range(3)}
    assert len(drawn) == 1  # at temperature 0 nothing is drawn


def test_the_quantization_that_fits_can_be_chosen_for_a_short_name(hub: Hub, mdl: Mdl) -> None:
    demo = DEMO.read_bytes()
    hub.add(MISTRAL, {"m-Q4_K_M.gguf": demo, "m-Q8_0.gguf": demo + bytes(64)})
    done = mdl("download", "mistral:7b", "--fit")
    assert done.stdout.strip().endswith("/Q8_0"), done.stderr
    assert mdl("download", "mistral:7b-q4_k_m", "--fit").returncode == 2
    card = document(mdl("inspect", "mistral:7b", "--remote", "--json"))
    assert card["reference"] == f"huggingface.co/{MISTRAL}:Q4_K_M"


def test_what_is_in_the_cache_goes_before_the_catalog(library: Library, data: Path) -> None:
    from test_library import plant

    planted = plant(library, "registry.ollama.ai/library/mistral:7b")
    assert library.resolve("mistral:7b").model == planted
    assert library.resolve("mistral:7b-q8_0").model is None


# mdl catalog: listed, searched, paged


def test_the_catalog_can_be_listed_and_searched(mdl: Mdl, hub: Hub) -> None:
    everything = mdl("catalog", "-q").stdout.splitlines()
    assert everything == [entry.name for entry in parse(SHIPPED.read_bytes(), SHIPPED, shipped=True).entries]
    table = mdl("catalog", "qwen", "CODE").stdout.splitlines()
    assert table[0].split() == ["NAME", "SIZE", "MEMORY", "FITS", "CONTEXT", "LICENSE", "DESCRIPTION"]
    assert {line.split()[0] for line in table[1:]} == {
        name for name in everything if name.startswith(("qwen2.5-coder", "qwen3-coder", "qwen3-embedding"))
    }
    found = document(mdl("catalog", "rerank", "--json"))
    assert [entry["name"] for entry in found["models"]] == ["bge-reranker:v2-m3", "qwen3-reranker:0.6b"]
    assert found["total"] == 2
    nothing = mdl("catalog", "no such thing")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "mdl search" in nothing.stderr
    assert hub.seen == []


def test_the_catalog_comes_in_pages(mdl: Mdl) -> None:
    names = mdl("catalog", "--family", "qwen3", "-q").stdout.splitlines()
    pages = [mdl("catalog", "--family", "qwen3", "-q", "--limit", "3", "--page", page) for page in "1234"]
    assert [page.stdout.splitlines() for page in pages] == [names[:3], names[3:6], names[6:], []]
    first = mdl("catalog", "--family", "qwen3", "--limit", "3")
    assert "3 of 7" in first.stderr
    assert "--page 2" in first.stderr
    assert document(mdl("catalog", "--limit", "1", "--json"))["more"]
    assert mdl("catalog", "--family", "qwen33").returncode == 3


@pytest.mark.parametrize(("columns", "described"), [(200, "or not, in"), (100, "thinks be"), (60, "")])
def test_on_a_terminal_the_beginning_of_a_description_is_kept(
    columns: int, described: str, data: Path
) -> None:
    command = ["-m", "mdl", "catalog", "--family", "qwen3"]
    seen: Any = {"env": {**os.environ, "COLUMNS": ""}, "dimensions": (30, columns), "encoding": "utf-8"}
    terminal = pexpect.spawn(sys.executable, command, timeout=60, **seen)
    lines = terminal.read().splitlines()
    assert max(map(len, lines[:8])) <= columns
    assert lines[1].startswith("qwen3:0.6b ")
    assert described in lines[1]
    assert ("Alibaba" in lines[1]) == bool(described)


def test_only_what_fits_can_be_shown(mdl: Mdl) -> None:
    """A bound on memory, so that the machine does not matter."""
    small = document(mdl("catalog", "--fits", "--json", MDL_MEMORY="1GB"))["models"]
    assert "all-minilm:l6" in {entry["name"] for entry in small}
    assert all(entry["memory"] <= 1e9 and entry["fits"] for entry in small if not entry["on_gpu"])
    rows = mdl("catalog", "llama3.3", MDL_MEMORY="1GB").stdout.splitlines()
    assert rows[1].split()[5] == "no"


@pytest.mark.parametrize(
    ("gpus", "most", "expected"),
    [
        ((), 0, "yes"),
        ((), 4_000_000_000, "no"),
        ((Gpu("a", 8 << 30, 8 << 30),), 0, "on GPU"),
        ((Gpu("a", 4 << 30, 4 << 30),), 0, "yes"),
        ((Gpu("a", 4 << 30, 4 << 30),), 3_000_000_000, "yes"),
        ((Gpu("a", 8 << 30, 8 << 30, usable=False),), 4_000_000_000, "no"),
        ((Gpu("a", 8 << 30, 8 << 30, shared=True),), 0, "on GPU"),
        ((Gpu("a", 8 << 30, 8 << 30, shared=True),), 4_000_000_000, "no"),
    ],
)
def test_a_model_fits_on_gpus_in_memory_or_both(gpus: tuple[Gpu, ...], most: int, expected: str) -> None:
    here = Machine(16 << 30, 8 << 30, gpus)
    assert estimate.place(6_000_000_000, here, most) == expected


# Cards


def test_the_entries_of_the_catalog_have_cards_without_a_network(mdl: Mdl, hub: Hub) -> None:
    shown = mdl("catalog", "show", "mistral-nemo", "--offline")
    lines = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
    assert lines["name"] == "mistral-nemo:12b, or just mistral-nemo"
    assert lines["reference"] == "huggingface.co/bartowski/Mistral-Nemo-Instruct-2407-GGUF:Q4_K_M"
    assert lines["license"] == "apache-2.0"
    assert lines["recommended"] == "temperature 0.3"
    assert "mdl download mistral-nemo:12b" in shown.stderr
    card = document(mdl("catalog", "show", "mistral-nemo:12b-q8_0", "--json"))
    assert (card["name"], card["quantization"]) == ("mistral-nemo:12b-q8_0", "Q8_0")
    assert card["size"] == estimate.size(card["parameters"], "Q8_0")
    assert card["recommended"] == {"temperature": 0.3}
    assert document(mdl("catalog", "show", "demo", "--json"))["here"]
    assert hub.seen == []


def test_a_card_of_nothing_says_what_is_near(mdl: Mdl) -> None:
    done = mdl("catalog", "show", "mistrl")
    assert done.returncode == 3
    assert "did you mean mistral" in done.stderr
    assert mdl("catalog", "show").returncode == 2


# Newer copies


def test_the_catalog_can_be_refreshed_from_an_address(mdl: Mdl, hub: Hub, tmp_path: Path) -> None:
    address = hub.put("/lists/ours.toml", OURS.encode())
    done = mdl("catalog", "refresh", address, "--json")
    assert document(done)["models"] == 2
    assert (tmp_path / "data" / "catalog.toml").read_text() == OURS
    assert mdl("catalog", "-q").stdout.split() == ["demo", "house:big", "house:small"]
    assert mdl("resolve", "house:small").stdout.count("quay.io/house/small:v2")
    assert document(mdl("catalog", "show", "house:small", "--json"))["license"] == "apache-2.0"
    assert mdl("catalog", "reset").returncode == 0
    assert "mistral:7b" in mdl("catalog", "-q").stdout.split()


def test_the_catalog_can_be_refreshed_from_a_registry(
    registry: Registry, settings: Settings, data: Path
) -> None:
    """By its title among others, or as the only layer; pinned too."""
    ours = titled("catalog.toml", OURS.encode(), "application/toml")
    both = registry.push("lists/both", "v1", [titled("README.md", b"hello"), ours])
    registry.push("lists/one", "latest", [Blob(OURS.encode(), "application/toml")])
    for place in ("lists/both:v1", f"lists/both@{both}", "lists/one"):
        assert refresh(f"oci://{registry.host}/{place}", settings, data).find("house")
        (data / "catalog.toml").unlink()
    registry.push("lists/none", "v1", [titled("a", b"1"), titled("b", b"2")])
    with pytest.raises(MdlError, match="none of which is catalog"):
        refresh(f"oci://{registry.host}/lists/none:v1", settings, data)
    with pytest.raises(NotFound):
        refresh(f"oci://{registry.host}/lists/both:v9", settings, data)


def test_the_address_can_be_kept_in_the_settings(mdl: Mdl, hub: Hub) -> None:
    assert mdl("catalog", "refresh").returncode == 2
    done = mdl("catalog", "refresh", MDL_CATALOG_URL=hub.put("/ours.toml", OURS.encode()))
    assert (done.returncode, done.stderr) == (0, "the catalog of 2026-01-02, 2 models\n")


def refresh(address: str, settings: Settings, data: Path) -> module.Catalog:
    path = data / "catalog.toml"
    return refreshing.refresh(address, settings, path, module.LARGEST, lambda found: checked(found, path))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (web_page(), IntegrityError),
        (Answer(200, b"version = 1"), IntegrityError),
        (Answer(200, OURS.encode()[:200]), IntegrityError),
        (Answer(200, OURS.replace("temperature = 0.25", "temprature = 1").encode()), IntegrityError),
        (Answer(200, OURS.replace("0.25", "-3").encode()), IntegrityError),
        (Answer(200, b"#" * (module.LARGEST + 1)), NetworkError),
        (Answer(404), NotFound),
        (Answer(403), AuthError),
        (Answer(302, b"", {"Location": "http://127.0.0.1:9/elsewhere"}), NetworkError),
    ],
)
def test_what_is_no_catalog_does_not_replace_the_one_that_is_there(
    answer: Answer, error: type[MdlError], hub: Hub, settings: Settings, data: Path
) -> None:
    path = put(data, OURS)
    hub.pages["/bad.toml"] = answer
    with pytest.raises(error):
        refresh(f"{hub.url}/bad.toml", settings, data)
    assert path.read_text() == OURS
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "address",
    [
        *("http://example.com/c.toml", "file:///etc/passwd", "c.toml", "ftp://x/y", "https://", "http://["),
        *("https://me:secret@example.com/c.toml", "ftp://me:secret@x/y?key=secret"),
    ],
)
def test_a_catalog_comes_only_by_https_from_a_registry_or_from_this_machine(
    address: str, settings: Settings, data: Path
) -> None:
    with pytest.raises(UsageError) as refused:
        refresh(address, settings, data)
    assert "secret" not in refused.value.message


def test_offline_nothing_is_refreshed(mdl: Mdl, hub: Hub) -> None:
    done = mdl("catalog", "refresh", hub.put("/ours.toml", OURS.encode()), "--offline")
    assert done.returncode == 3
    assert hub.seen == []


def test_a_copy_that_is_broken_gives_way_to_the_one_that_ships(
    data: Path, mdl: Mdl, library: Library
) -> None:
    put(data, OURS + "[models.more]\n")
    found = catalog()
    assert found.path == SHIPPED
    assert "models.more" in found.problem
    assert library.resolve("mistral").reference is not None
    done = mdl("catalog", "mistral:7b")
    assert done.returncode == 0
    assert "mistral:7b" in done.stdout
    assert "the catalog that ships with mdl is shown" in done.stderr


def test_demo_is_always_there(data: Path, library: Library) -> None:
    put(data, OURS)
    assert library.get("demo").reference == Reference("short", "", "demo")
    assert catalog().find("mistral") is None
    assert catalog().of(Reference.parse("quay.io/house/small:v1")) is not None


# The file is hostile until it is read


BROKEN: Mapping[str, tuple[str, str]] = {
    "another version": ("version = 1", "version = 2"),
    "no version": ("version = 1", ""),
    "unknown at the top": ('updated = "', 'upgraded = "'),
    "unknown in a model": ("capabilities =", "capability ="),
    "unknown in a size": ("download = 6", "donwload = 6"),
    "a file": ("reference = \"quay.io", "file = \"/etc/passwd\"\nreference = \"quay.io"),
    "the name of demo": ("models.house", "models.demo"),
    "a name with spaces": ("models.house", 'models."our house"'),
    "an upper-case name": ("models.house", "models.House"),
    "a path for a size": ("sizes.small", 'sizes."../small"'),
    "a default that is not there": ('default = "big"', 'default = "huge"'),
    "a negative size": ("download = 600_000_000", "download = -1"),
    "a size that is a text": ("memory = 1_100_000_000", 'memory = "1 GB"'),
    "a number without end": ("context = 512", f"context = {'9' * 5000}"),
    "true for a number": ("context = 512", "context = true"),
    "a capability that nobody knows": ('["tools"]', '["flying"]'),
    "an escape in a text": ("Our own model", "Our \\u001b[2J model"),
    "a text of many lines": ("Our own model", "Our own\\nmodel"),
    "a text without end": ("Our own model", "x" * 401),
    "a path for a reference": ("quay.io/house/small:v2", "/etc/passwd"),
    "a file for a reference": ("quay.io/house/small:v2", "file:///etc/passwd"),
    "a short name for a reference": ("quay.io/house/small:v2", "small"),
    "a reference with a secret": ("quay.io/house/small:v2", "https://x.org/a.gguf?key=1"),
    "plain http": ("quay.io/house/small:v2", "http://x.org/a.gguf"),
    "parameters that are none": ("{ temperature = 0.25, stop = [\"END\"] }", "[]"),
    "no reference": ('reference = "quay.io/house/small:v2"', ""),
}  # fmt: skip


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_a_catalog_with_anything_wrong_in_it_is_refused(change: tuple[str, str]) -> None:
    assert len(parse(OURS.encode(), SHIPPED).entries) == 2
    broken = OURS.replace(*change)
    assert broken != OURS
    with pytest.raises(UsageError) as caught:
        parse(broken.encode(), SHIPPED)
    assert caught.value.message.isprintable()


@given(st.binary(max_size=200), st.integers(0, len(OURS)), st.integers(0, 40))
def test_whatever_is_in_the_file_is_a_catalog_or_an_error(junk: bytes, start: int, length: int) -> None:
    ours = OURS.encode()
    try:
        found = checked(ours[:start] + junk + ours[start + length :], SHIPPED)
    except UsageError as failure:
        assert "\n" not in failure.message
        assert "\x1b" not in failure.message
    else:
        assert all(entry.reference and not entry.file for entry in found.entries)


def test_a_catalog_of_nested_tables_without_end_is_an_error() -> None:
    with pytest.raises(UsageError):
        parse(b"a = " + b"[" * 100_000, SHIPPED)
    with pytest.raises(UsageError):
        parse(b"version = 1\nupdated = 'x'\n" + b"".join(b"[models.m%d]\n" % n for n in range(1001)), SHIPPED)
