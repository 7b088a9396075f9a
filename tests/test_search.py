"""mdl search: parts of names, asked of a real hub on loopback and of the catalog."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Mdl, command
from hub import GOOD, Answer, Hub
from hub import page as web_page

from mdl import estimate
from mdl.errors import MdlError, NetworkError, NotFound, UsageError
from mdl.library import Library
from mdl.machine import Machine
from mdl.search import Found, query, search

HERE = Machine(16 << 30, 12 << 30)
BILLION = 10**9
FILES = {f"m.{name}.gguf": b"x" for name in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q8_0", "F16")}


@pytest.fixture
def mdl(tmp_path: Path, hub: Hub) -> Mdl:
    """Runs `mdl` with nothing of the user's, and the hub."""
    return command(tmp_path, HF_ENDPOINT=hub.url)


def add(hub: Hub, name: str, billions: float = 7, downloads: int = 0, **options: Any) -> None:
    info = {
        "downloads": downloads,
        "likes": 1000 - downloads,
        "lastModified": "2025-01-02T03:04:05.000Z",
        "gguf": {"total": int(billions * BILLION), "architecture": "llama", "context_length": 4096},
    }
    hub.add(name, options.pop("files", FILES), info=info, **options)


@pytest.fixture
def models(hub: Hub) -> Hub:
    add(hub, "TheBloke/Llama-2-7B-Chat-GGUF", 6.74, downloads=900)
    add(hub, "TheBloke/Llama-2-70B-GGUF", 69, downloads=500)
    add(hub, "TheBloke/Mistral-7B-GGUF", 7.2, downloads=700)
    add(hub, "TheBlokeToo/Llama-3-GGUF", 8, downloads=100)
    add(hub, "someone/my-thebloke-llama-GGUF", 8, downloads=50)
    add(hub, "meta/Llama-2-7b", 6.74, downloads=5000, files={"model.safetensors": b"x"})
    return hub


def find(library: Library, *terms: str, sort: str = "downloads", limit: int = 20, page: int = 1) -> Found:
    return search(library, terms, sort, limit, page, HERE)


def names(found: Found) -> list[str]:
    return [match.listed.reference.path for match in found.matches]


# D7: `mdl search` also asks Hugging Face with partial terms (`TheBloke/llama`)


def test_search_asks_hugging_face_with_partial_terms(models: Hub, library: Library) -> None:
    assert names(find(library, "TheBloke/llama")) == [
        "TheBloke/Llama-2-7B-Chat-GGUF",
        "TheBloke/Llama-2-70B-GGUF",
    ]
    assert names(find(library, "llama", "7B")) == names(find(library, "7b llama"))
    assert names(find(library, "llama 7b")) == ["TheBloke/Llama-2-7B-Chat-GGUF"]
    assert names(find(library, "no-such-model")) == []


@pytest.mark.parametrize("prefix", ["", "huggingface.co/", "hf.co/", "hf://", "https://huggingface.co/"])
def test_the_host_may_stand_before_the_owner(prefix: str, models: Hub, library: Library) -> None:
    assert names(find(library, f"{prefix}TheBloke/mistral")) == ["TheBloke/Mistral-7B-GGUF"]


def test_the_beginning_of_an_owner_is_enough(models: Hub, library: Library) -> None:
    """Where nobody is called just so: and what has the words somewhere else is not theirs."""
    assert names(find(library, "thebl/llama")) == [
        "TheBloke/Llama-2-7B-Chat-GGUF",
        "TheBloke/Llama-2-70B-GGUF",
        "TheBlokeToo/Llama-3-GGUF",
    ]
    assert len(models.requests("/api/models")) == 2
    assert names(find(library, "TheBloke/")) == [
        "TheBloke/Llama-2-7B-Chat-GGUF",
        "TheBloke/Mistral-7B-GGUF",
        "TheBloke/Llama-2-70B-GGUF",
    ]


def test_what_the_catalog_has_comes_first(models: Hub, mdl: Mdl) -> None:
    lines = mdl("search", "mistral", "7b").stdout.splitlines()
    assert lines[0] == "Catalog"
    assert lines[2].startswith("mistral:7b ")
    assert lines[-3] == "Hugging Face"
    assert lines[-1].startswith("TheBloke/Mistral-7B-GGUF ")
    assert "Catalog" not in mdl("search", "mistral", "7b", "--page", "2").stdout


# What fits


@pytest.mark.parametrize(
    ("billions", "place", "best"),
    [
        (0.5, "yes", "Q8_0"),
        (7, "yes", "Q8_0"),
        (14, "yes", "Q4_K_M"),
        (20, "no", "Q3_K_M"),
        (24, "no", "Q2_K"),
        (70, "no", None),
    ],
)
def test_what_fits_this_machine_is_told_by_parameters_and_quantizations(
    billions: float, place: str, best: str | None, hub: Hub, library: Library
) -> None:
    add(hub, "org/m-GGUF", billions)
    (match,) = find(library, "m").matches
    assert match.size == estimate.size(int(billions * BILLION), "Q4_K_M")
    assert (match.place, match.best) == (place, best)


def test_nothing_is_known_of_a_model_that_the_hub_did_not_count(hub: Hub, library: Library) -> None:
    hub.add("org/odd-GGUF", {"odd.gguf": b"x"})
    (match,) = find(library, "odd").matches
    assert (match.size, match.memory, match.place, match.best) == (None, None, None, None)


def test_a_search_is_one_request_that_reads_no_model(models: Hub, library: Library) -> None:
    find(library, "llama")
    assert len(models.seen) == 1
    assert models.seen[0].path.startswith("/api/models?filter=gguf&search=llama")


# Pages, order, output


def test_a_search_comes_in_pages_and_in_an_order(models: Hub, library: Library) -> None:
    by_downloads = names(find(library, "GGUF"))
    pages = [find(library, "GGUF", limit=2, page=page) for page in (1, 2, 3, 4)]
    assert [names(page) for page in pages] == [by_downloads[:2], by_downloads[2:4], by_downloads[4:], []]
    assert [page.more for page in pages] == [True, True, False, False]
    assert names(find(library, "GGUF", sort="likes")) == by_downloads[::-1]


def test_pages_of_the_hub_itself_are_followed(models: Hub, library: Library) -> None:
    models.page = 2
    assert len(names(find(library, "GGUF"))) == 5


def test_a_search_can_be_read_by_programs(models: Hub, mdl: Mdl) -> None:
    found = json.loads(mdl("search", "TheBloke/llama", "--json", "--limit", "1").stdout)
    assert (found["schema"], found["page"], found["more"]) == (1, 1, True)
    (model,) = found["models"]
    assert model["reference"] == "huggingface.co/TheBloke/Llama-2-7B-Chat-GGUF"
    assert (model["downloads"], model["likes"], model["version"]) == (900, 100, "Q4_K_M")
    assert model["versions"][0] == "Q4_K_M"
    assert model["modified"] == "2025-01-02T03:04:05+00:00"
    assert {entry["family"] for entry in found["catalog"]} == {"tinyllama"}
    quiet = mdl("search", "TheBloke/llama", "-q").stdout.splitlines()
    assert quiet[:2] == ["tinyllama:1.1b", model["reference"]]
    assert len(quiet) == 3


def test_people_see_downloads_likes_sizes_and_what_to_do_next(models: Hub, mdl: Mdl) -> None:
    done = mdl("search", "TheBloke/llama", "--limit", "1", MDL_MEMORY="2GB")
    head, row = done.stdout.splitlines()[-2:]
    assert head.split() == ["NAME", "PARAMETERS", "SIZE", "FITS", "DOWNLOADS", "LIKES", "MODIFIED"]
    assert row.split()[:7] == ["TheBloke/Llama-2-7B-Chat-GGUF", "6.7B", "~4.1", "GB", "no", "900", "100"]
    assert "mdl inspect TheBloke/Llama-2-7B-Chat-GGUF" in done.stderr
    assert "--page 2" in done.stderr


def test_what_is_here_and_what_is_gated_is_marked(hub: Hub, mdl: Mdl) -> None:
    add(hub, "org/here-GGUF", files={"m-Q8_0.gguf": (Path(estimate.__file__).parent / _DEMO).read_bytes()})
    add(hub, "org/gated-GGUF", gated="manual")
    assert mdl("download", "org/here-GGUF").returncode == 0
    shown = mdl("search", "org/").stdout
    assert "org/here-GGUF (here)" in shown
    assert "org/gated-GGUF (gated)" in shown


_DEMO = "models/mdl-demo-Q8_0.gguf"


def test_nothing_found_is_no_error(models: Hub, mdl: Mdl) -> None:
    done = mdl("search", "no-such-model")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no GGUF model" in done.stderr
    assert json.loads(mdl("search", "no-such-model", "--json").stdout)["models"] == []


# Tokens, failures


def test_private_models_are_found_with_a_token(hub: Hub, mdl: Mdl) -> None:
    add(hub, "org/secret-GGUF", private=True)
    assert mdl("search", "org/secret", "-q").stdout == ""
    assert mdl("search", "org/secret", "-q", HF_TOKEN=GOOD).stdout == "huggingface.co/org/secret-GGUF\n"
    refused = mdl("search", "org/secret", HF_TOKEN="wrong")
    assert refused.returncode == 4
    assert "wrong" not in refused.stderr


def test_offline_a_search_is_an_error_that_names_the_catalog(hub: Hub, mdl: Mdl) -> None:
    done = mdl("search", "llama", "--offline")
    assert done.returncode == NotFound.code
    assert "mdl catalog" in done.stderr
    assert hub.seen == []


def test_a_hub_that_is_not_there_is_a_network_error(mdl: Mdl) -> None:
    assert mdl("search", "llama", HF_ENDPOINT="http://127.0.0.1:9").returncode == NetworkError.code


@pytest.mark.parametrize(
    "answer",
    [
        web_page(),
        Answer(200, b'{"error": "no list"}'),
        Answer(200, b"[1, 2, 3]"),
        Answer(200, b'[{"name": "no id"}]'),
        Answer(200, b'[{"id": 7}]'),
        Answer(200, b'[{"id": "a/b", "lastModified": "yesterday"}]'),
        Answer(200, b'[{"id": "a/b", "siblings": [1]}]'),
        Answer(200, b"[" * 100_000),
        Answer(200, b"not JSON"),
        Answer(404, b"{}"),
    ],
)
def test_a_hub_that_answers_nonsense_is_a_network_error(answer: Answer, hub: Hub, library: Library) -> None:
    hub.answer("/api/models", answer)
    with pytest.raises(NetworkError):
        find(library, "llama")


def test_odd_entries_of_a_list_are_left_out_or_unknown(hub: Hub, library: Library) -> None:
    odd = [
        {"id": "../../etc", "siblings": []},
        {"id": "a/b\u202egguf", "siblings": []},
        {"id": "a/" + "b" * 3000},
        {"id": "a/plain-GGUF", "downloads": "many", "likes": -1, "gguf": [], "tags": 3, "siblings": None},
        {"id": "a/big-GGUF", "gguf": {"total": 10**30}, "siblings": [{"rfilename": "big-Q4_K_M.gguf"}]},
    ]
    hub.answer("/api/models", Answer(200, json.dumps(odd).encode()))
    found = find(library, "a")
    assert names(found) == ["a/plain-GGUF", "a/big-GGUF"]
    assert found.matches[0].listed.about.downloads is None
    assert found.matches[1].size is None


def test_names_from_outside_do_nothing_to_a_terminal(hub: Hub, mdl: Mdl) -> None:
    listed = [{"id": "a/x-GGUF", "siblings": [{"rfilename": "x\x1b[2J-Q4_K_M.gguf"}], "gated": "\x1b[31m"}]
    hub.answer("/api/models", Answer(200, json.dumps(listed).encode()))
    done = mdl("search", "x")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "terms", [[], [""], ["/"], ["a/b/c"], ["a/b", "c/d"], ["x" * 101], ["a\x1b"], ["a"] * 21]
)
def test_what_cannot_be_a_part_of_a_name_is_a_usage_error(terms: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        query(terms)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("change", [{"sort": "size"}, {"limit": 100, "page": 10}, {"limit": 1, "page": 1000}])
def test_a_search_without_bounds_is_a_usage_error(change: dict[str, Any], hub: Hub, library: Library) -> None:
    with pytest.raises(MdlError) as caught:
        find(library, "llama", **change)
    assert caught.value.code == UsageError.code
    assert hub.seen == []
