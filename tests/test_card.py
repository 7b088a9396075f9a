"""Cards of models that are elsewhere, read from a real hub on loopback: what they tell and what they cost."""

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ggufmaker import F16, MODEL, make, model, vocabulary
from hub import GOOD, STRANGER, Answer, Hub
from hypothesis import HealthCheck, given
from hypothesis import settings as with_settings
from hypothesis import strategies as st
from registry import Blob, Registry, titled

from mdl.card import About, Offer
from mdl.config import Settings
from mdl.errors import AuthError, MdlError, NetworkError, NotFound, UnsupportedModel, UsageError
from mdl.fitting import best
from mdl.header import LONGEST_LINE
from mdl.library import Library
from mdl.memory import Fit, Need, Part
from mdl.model import File
from mdl.ranges import MOST_READ
from mdl.readme import LONGEST, introduction
from mdl.survey import Survey, survey
from mdl.transports import artifactcard, hubcard

NAME = "Org/Model-GGUF"
FULL = f"huggingface.co/{NAME}"
DEMO = Path(__file__).parent.parent / "mdl" / "models" / "mdl-demo-Q8_0.gguf"
README = b"""---
license: apache-2.0
---
# A model

![logo](logo.png)

It is the **first** of its [kind](https://example.org/kind), made for tests of a tool that shows what it is.

More follows.
"""
INFO = {
    "cardData": {"license": "apache-2.0", "base_model": "Org/Model", "language": ["en", "de"]},
    "config": {"model_type": "llama"},
    "downloads": 123456,
    "gguf": {"total": 1000, "architecture": "llama", "context_length": 2048},
    "lastModified": "2026-09-01T10:00:00.000Z",
    "library_name": "transformers",
    "likes": 210,
    "pipeline_tag": "text-generation",
    "tags": ["gguf", "chat", "license:apache-2.0", "region:us"],
}
WEIGHTS = model() + bytes(1 << 20)
FILES = {
    "README.md": README,
    "m-Q4_K_M.gguf": WEIGHTS,
    "m-Q8_0.gguf": WEIGHTS + bytes(1 << 20),
    "m-F16-00001-of-00002.gguf": model({"split.no": 0, "split.count": 2}),
    "m-F16-00002-of-00002.gguf": model({"split.no": 1, "split.count": 2}),
    "m-Q6_K-00001-of-00002.gguf": model(),
    "mmproj-F16.gguf": bytes(4000),
}

Mdl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mdl(tmp_path: Path, hub: Hub) -> Mdl:
    """Runs `mdl` with an empty cache and the hub."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "MDL_HOME": str(tmp_path / "home"),
            "MDL_CONFIG": str(tmp_path / "config.toml"),
            "HF_ENDPOINT": hub.url,
            **variables,
        }
        command = [sys.executable, "-m", "mdl", *arguments]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# What a card tells


def test_a_card_tells_what_owner_and_hub_say(hub: Hub, library: Library) -> None:
    repository = hub.add(NAME, FILES, info=INFO)
    repository.tags["v1.0"] = commit = repository.branches["main"]
    card = survey(library, NAME).card
    assert card.about == About(
        description="It is the first of its kind, made for tests of a tool that shows what it is.",
        license="apache-2.0",
        private=False,
        downloads=123456,
        likes=210,
        modified=card.about.modified,
        task="text-generation",
        library="transformers",
        topics=("gguf", "chat"),
        languages=("en", "de"),
        base_models=("Org/Model",),
        architecture="llama",
        parameters=1000,
        context_length=2048,
    )
    assert str(card.about.modified) == "2026-09-01 10:00:00+00:00"
    assert (card.branches, card.tags, card.revision.commit) == (("main",), ("v1.0",), commit)
    assert (str(card.reference), card.source) == (FULL, f"{hub.url}/{NAME}")


def test_every_version_is_listed_with_its_parts_and_projector(hub: Hub, library: Library) -> None:
    hub.add(NAME, FILES)
    card = survey(library, NAME).card
    offers = {offer.version: offer for offer in card.offers}
    assert list(offers) == ["Q4_K_M", "Q6_K", "Q8_0", "F16"]  # the best first
    assert card.chosen == "Q4_K_M"
    split = offers["F16"]
    assert [file.name for file in split.weights] == [f"m-F16-0000{n}-of-00002.gguf" for n in (1, 2)]
    assert split.projector and split.projector.name == "mmproj-F16.gguf"
    assert split.size == sum(len(FILES[file.name]) for file in split.files)
    assert (split.format, split.quantization) == ("gguf", "F16")
    assert "1 of 2 parts" in offers["Q6_K"].problem
    assert [offer.problem for offer in card.offers if offer.version != "Q6_K"] == ["", "", ""]


@pytest.mark.parametrize(("version", "chosen"), [("q8_0", "Q8_0"), ("m-F16", "F16"), ("main", "Q4_K_M")])
def test_the_version_that_is_named_is_the_one_that_is_chosen(
    hub: Hub, library: Library, version: str, chosen: str
) -> None:
    hub.add(NAME, FILES)
    assert survey(library, f"{NAME}:{version}").card.chosen == chosen


def test_a_revision_shows_what_it_holds(hub: Hub, library: Library) -> None:
    repository = hub.add(NAME, FILES)
    repository.commit({"old-Q5_K_M.gguf": WEIGHTS}, "old")
    for name in (f"{NAME}:old", f"{NAME}@old"):
        card = survey(library, name).card
        assert ([offer.version for offer in card.offers], card.chosen) == (["Q5_K_M"], "Q5_K_M")
        assert card.revision.name == "old"


def test_what_cannot_be_chosen_is_shown_all_the_same(hub: Hub, library: Library) -> None:
    hub.add(NAME, {"a-Q4_K_M.gguf": WEIGHTS, "b-Q4_K_M.gguf": WEIGHTS})
    card = survey(library, NAME).card
    assert [offer.version for offer in card.offers] == ["a-Q4_K_M", "b-Q4_K_M"]
    assert (card.chosen, card.problem) == (
        None,
        "the model may be any of 'a-Q4_K_M, b-Q4_K_M'",
    )


def test_what_cannot_run_here_is_called_what_it_is(hub: Hub, library: Library) -> None:
    hub.add("org/pickle", {"pytorch_model.bin": b"x"})
    found = survey(library, "org/pickle")
    assert (found.card.offers, found.kind) == ((), None)
    assert found.card.problem.startswith("only PyTorch pickles")


def test_a_safetensors_model_is_shown_and_none_of_it_read(hub: Hub, library: Library) -> None:
    info = {
        "safetensors": {"parameters": {"BF16": 7000}, "total": 7000},
        "config": {"model_type": "qwen2", "quantization_config": {"quant_method": "awq"}},
    }
    hub.add("org/model", {"config.json": b"{}", "model.safetensors": bytes(999), "x.bin": b""}, info=info)
    found = survey(library, "org/model")
    (offer,) = found.card.offers
    assert [file.name for file in offer.files] == ["model.safetensors", "config.json"]
    assert (offer.version, offer.format, found.kind) == ("main", "safetensors", "model")
    assert (found.architecture, found.parameters, found.card.about.quantizer) == ("qwen2", 7000, "awq")
    assert not hub.requests(port="cdn")


def test_an_adapter_is_shown_with_its_base_model(hub: Hub, library: Library) -> None:
    header = {"general.type": "adapter", "adapter.type": "lora"}
    files = {"lora-F16.gguf": make({**MODEL, **header}, [("blk.0.attn_q.weight.lora_a", (32, 8), F16)])}
    hub.add("org/adapter", files, info={"cardData": {"base_model": ["org/base"]}})
    found = survey(library, "org/adapter")
    assert (found.kind, found.card.about.base_models) == ("adapter", ("org/base",))
    assert found.facts and found.facts.adapter and found.facts.adapter.rank == 8


@pytest.mark.parametrize(
    ("token", "access"), [("", False), (STRANGER, False), (GOOD, True)], ids=["nobody", "stranger", "member"]
)
def test_a_gate_is_shown_and_whether_it_is_open(mdl: Mdl, hub: Hub, token: str, access: bool) -> None:
    hub.add(NAME, FILES, gated="manual", info=INFO)
    found = document(mdl("inspect", NAME, "--json", HF_TOKEN=token))
    assert (found["gate"], found["access"]) == ("manual", access)
    assert bool(found["bytes_read"]) == bool(found["description"]) == access
    assert bool(hub.requests(port="cdn")) == access
    assert (found["architecture"], found["context_length"]) == ("llama", 2048)  # the hub tells everybody
    assert found["versions"][0]["version"] == found["version"] == "Q4_K_M"
    text = mdl("inspect", NAME, HF_TOKEN=token)
    assert ("you have access" in text.stdout, "accept its conditions" in text.stderr) == (access, not access)


@pytest.mark.parametrize("token", ["", STRANGER])
def test_what_is_private_or_not_there_is_not_found(mdl: Mdl, hub: Hub, token: str) -> None:
    hub.add(NAME, FILES, private=True)
    for name in (NAME, "nobody/nothing"):
        done = mdl("inspect", name, HF_TOKEN=token)
        assert done.returncode == NotFound.code
        assert done.stderr.startswith(f"mdl: huggingface.co/{name} does not exist or is private\n")
    assert document(mdl("inspect", NAME, "--json", HF_TOKEN=GOOD))["private"] is True


def test_a_version_that_is_not_there_is_not_found(mdl: Mdl, hub: Hub) -> None:
    hub.add(NAME, FILES)
    done = mdl("inspect", f"{NAME}:Q3_K_M")
    assert done.returncode == NotFound.code
    assert "versions: Q4_K_M" in done.stderr


def test_offline_nothing_is_asked(mdl: Mdl, hub: Hub) -> None:
    hub.add(NAME, FILES)
    for arguments in (["--offline"], ["--remote", "--offline"]):
        done = mdl("inspect", NAME, *arguments)
        assert (done.returncode, done.stdout) == (NotFound.code, "")
        assert len(done.stderr.splitlines()) == 2
    assert mdl("inspect", NAME, MDL_PULL="never").returncode == NotFound.code
    assert hub.seen == []


# What it costs


def asked(hub: Hub) -> int:
    """Bytes of files that a hub was asked for, all of them as ranges."""
    ranges = [(seen.range or "").removeprefix("bytes=").split("-") for seen in hub.requests(port="cdn")]
    return sum(int(last) + 1 - int(first) for first, last in ranges)


def test_a_header_is_read_by_ranges_and_no_weights(hub: Hub, library: Library) -> None:
    words = {**MODEL, **vocabulary(20_000, 20_000)}
    head = make(words, [("token_embd.weight", (32, 2), F16)])
    hub.add(NAME, {"m-Q4_K_M.gguf": head + bytes(8 << 20)})
    found = survey(library, NAME)
    assert found.facts and (found.facts.vocabulary, found.context_length) == (20_000, 2048)
    assert len(head) < found.read == asked(hub) < 2 * len(head)


def test_all_parts_of_a_split_model_are_told_from_their_headers(hub: Hub, library: Library) -> None:
    parts = {
        f"m-Q8_0-0000{n}-of-00003.gguf": model({"split.no": n - 1, "split.count": 3}) + bytes(1 << 20)
        for n in (1, 2, 3)
    }
    hub.add(NAME, parts)
    found = survey(library, NAME)
    assert found.header and len(found.header.tensors) == 3
    assert found.read == asked(hub) < 1 << 20


def test_a_server_without_ranges_is_not_made_to_send_all(hub: Hub, library: Library) -> None:
    words = {**MODEL, **vocabulary(20_000, 20_000)}
    head = make(words, [("token_embd.weight", (32, 2), F16)])
    hub.pages["/m.gguf"] = Answer(200, head + bytes(64 << 20), {"ETag": '"x"'})
    found = survey(library, f"{hub.url}/m.gguf")
    assert found.facts and found.facts.vocabulary == 20_000
    assert found.read < 4 * len(head)
    assert hub.sent["hub"] < 40 << 20  # what the kernel's buffers swallowed included


def test_a_header_without_end_is_given_up(hub: Hub, library: Library) -> None:
    endless = make({**MODEL, "tokenizer.ggml.tokens": endless_texts(5_000_000)})
    hub.add(NAME, {"m-Q4_K_M.gguf": endless})
    found = survey(library, NAME)
    assert (found.header, found.unread) == (None, "its header takes more than 32 MiB")
    assert found.read <= MOST_READ
    assert found.card.offers[0].version == "Q4_K_M"


def endless_texts(count: int) -> bytes:
    return b"\x09\0\0\0\x08\0\0\0" + count.to_bytes(8, "little") + bytes(8 * count)


@pytest.mark.parametrize("content", [b"GGUF" + b"\xff" * 64, b"<html>", b"GGUF", model(cut=40)])
def test_a_broken_header_is_told_beside_the_rest(hub: Hub, library: Library, content: bytes) -> None:
    hub.add(NAME, {"m-Q4_K_M.gguf": content})
    found = survey(library, NAME)
    assert found.header is None
    assert found.unread
    assert found.card.chosen == "Q4_K_M"


def test_a_long_readme_is_not_read_to_its_end(hub: Hub, library: Library) -> None:
    hub.add(NAME, {**FILES, "README.md": b"# Long\n\n" + b"This is a sentence of some length. " * 300_000})
    description = survey(library, NAME).card.about.description
    assert description.startswith("This is a sentence")
    assert len(description) <= LONGEST + 2
    assert hub.sent["hub"] < 200_000


# Other sources


def test_a_model_of_the_ollama_registry_is_read_by_ranges(registry: Registry, settings: Settings) -> None:
    kind = "application/vnd.ollama.image."
    layers = [
        Blob(DEMO.read_bytes() + bytes(8 << 20), f"{kind}model"),
        Blob(b"You are terse.", f"{kind}system"),
        Blob(b"MIT License", f"{kind}license"),
    ]
    for tag in ("1b", "8b"):
        registry.push("library/carded", tag, layers)
    library = Library(replace(settings, ollama_endpoint=registry.url))
    found = survey(library, "ollama://carded:8b")
    assert (found.card.chosen, sorted(found.card.tags)) == ("8b", ["1b", "8b"])
    assert {file.role for file in found.card.offers[0].files} >= {"weights", "system", "license"}
    assert (found.architecture, found.license) == ("llama", "MIT")
    assert found.fitting and found.fitting.best == "8b"
    assert found.read < 1 << 20


def test_an_artifact_of_a_registry_is_shown_with_its_tags(registry: Registry, settings: Settings) -> None:
    notes = {"org.opencontainers.image.licenses": "MIT", "org.opencontainers.image.description": "Carded."}
    config = Blob(json.dumps({"config": {"parameters": "3.7M"}}).encode(), "application/json")
    weights = titled("m-Q8_0.gguf", DEMO.read_bytes() + bytes(8 << 20))
    for tag in ("v1", "v2"):
        registry.push("carded/model", tag, [weights], config, annotations=notes)
    found = survey(Library(settings), f"{registry.host}/carded/model:v1")
    assert (found.card.chosen, sorted(found.card.tags)) == ("v1", ["v1", "v2"])
    assert (found.card.about.description, found.license) == ("Carded.", "MIT")
    assert found.card.about.parameters == 3_700_000
    assert (found.card.offers[0].quantization, found.architecture) == ("Q8_0", "llama")
    assert found.read < 1 << 20


def test_artifacts_tell_what_their_tools_wrote() -> None:
    docker = {"config": {"parameters": "361.82 M", "architecture": "llama", "context_size": 8192}}
    assert artifactcard.about({}, docker) == About(
        architecture="llama", parameters=361_820_000, context_length=8192
    )
    pack = {"descriptor": {"licenses": ["MIT"]}, "config": {"paramSize": "8b", "architecture": "transformer"}}
    notes = {"org.opencontainers.image.description": "A model.\nFor tests."}
    assert artifactcard.about({"annotations": notes}, pack) == About(
        description="A model. For tests.", license="MIT", architecture="transformer", parameters=8 * 10**9
    )


def test_a_split_file_at_an_address_is_one_version(hub: Hub, library: Library) -> None:
    for number in (1, 2):
        header = {"split.no": number - 1, "split.count": 2, "general.license": "mit"}
        hub.put(f"/dir/m-Q8_0-0000{number}-of-00002.gguf", model(header))
    found = survey(library, f"{hub.url}/dir/m-Q8_0-00001-of-00002.gguf")
    (offer,) = found.card.offers
    assert (offer.version, len(offer.weights), offer.quantization) == ("latest", 2, "Q8_0")
    assert found.license == "mit"


def test_what_lies_on_this_machine_has_no_card(mdl: Mdl) -> None:
    done = mdl("inspect", "--remote", str(DEMO))
    assert done.returncode == UnsupportedModel.code
    assert len(done.stderr.splitlines()) == 2


# What is hostile

HOSTILE = "\x1b]0;pwned\x07\x1b[2Jred \u202egnp.exe\u200b \x9b31m line\nline"


def test_no_text_of_a_hub_reaches_the_terminal_as_it_is(mdl: Mdl, hub: Hub) -> None:
    info = {
        "cardData": {"license": HOSTILE, "license_link": HOSTILE, "base_model": HOSTILE, "language": HOSTILE},
        "config": {"model_type": HOSTILE, "quantization_config": {"quant_method": HOSTILE}},
        "gated": HOSTILE,
        "library_name": HOSTILE,
        "pipeline_tag": HOSTILE,
        "tags": [HOSTILE],
    }
    header = {**MODEL, "general.architecture": HOSTILE, "general.name": HOSTILE}
    files = {"README.md": f"# x\n\n{HOSTILE * 3}".encode(), "m-Q4_K_M.gguf": make(header)}
    repository = hub.add(NAME, files, info=info)
    repository.tags[HOSTILE] = repository.branches[HOSTILE] = repository.branches["main"]
    for arguments in ([], ["--json"], ["--metadata"], ["--files"]):
        done = mdl("inspect", NAME, *arguments)
        assert done.returncode == 0, done.stderr
        odd = {c for c in done.stdout + done.stderr if unicodedata.category(c) in ("Cc", "Cf")}
        assert odd <= {"\n"}
        assert done.stdout.count("red") or arguments == ["--files"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.just(HOSTILE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted({*hubcard.EXPAND.split(), "id", "sha", "siblings"})
CARD_FIELDS = ("license", "license_name", "license_link", "base_model", "language", "pipeline_tag")
WITHIN = st.dictionaries(st.sampled_from((*CARD_FIELDS, "total", "architecture", "model_type")), ANYTHING)


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING | WITHIN))
def test_whatever_a_hub_says_is_taken_or_left_out(said: Mapping[str, Any]) -> None:
    about = hubcard.about(said)
    texts = [about.license, about.license_link, about.gate, about.task, about.library, about.architecture]
    texts += [*about.topics, *about.languages, *about.base_models]
    for text in filter(None, texts):
        assert len(text) <= LONGEST_LINE
        assert "\n" not in text
        text.encode()
    for number in (about.downloads, about.likes, about.parameters, about.context_length):
        assert number is None or (type(number) is int and number >= 0)


PARTS = ("architecture", "paramSize", "parameters", "context_size", "licenses", "createdAt", "description")
NOTED = st.dictionaries(
    st.sampled_from([f"{artifactcard.ANNOTATION}{name}" for name in ("licenses", "created", "description")]),
    ANYTHING,
)


@given(
    st.fixed_dictionaries({"annotations": ANYTHING | NOTED}),
    st.dictionaries(
        st.sampled_from(["descriptor", "config"]),
        ANYTHING | st.dictionaries(st.sampled_from(PARTS), ANYTHING),
    ),
)
def test_whatever_an_artifact_says_is_taken_or_left_out(
    manifest: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    about = artifactcard.about(manifest, config)
    for text in filter(None, (about.description, about.architecture)):
        assert len(text) <= LONGEST_LINE
    for number in (about.parameters, about.context_length):
        assert number is None or (type(number) is int and number >= 0)


@with_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING | WITHIN))
def test_nonsense_over_the_wire_is_a_card_or_an_error_in_one_line(
    hub: Hub, library: Library, said: dict[str, Any]
) -> None:
    hub.add(NAME, {"m-Q4_K_M.gguf": WEIGHTS}, info=said)
    try:
        found = survey(library, NAME)
    except MdlError as error:
        assert isinstance(error, NetworkError)
        assert "\n" not in error.message
    else:
        assert found.card.chosen == "Q4_K_M"


@pytest.mark.parametrize("body", [b"", b"null", b"[" * 100_000, b'{"refs": 1}', b"<html></html>", b"\xff"])
@pytest.mark.parametrize("part", ["/refs", "expand=cardData", "README.md"])
def test_garbage_instead_of_an_answer_is_an_error_or_leaves_it_out(
    hub: Hub, library: Library, part: str, body: bytes
) -> None:
    hub.add(NAME, FILES)
    hub.answer(part, *[Answer(200, body)] * 9)
    try:
        assert survey(library, NAME).card.chosen == "Q4_K_M"
    except NetworkError as error:
        assert "\n" not in error.message
        assert part == "/refs" or body.startswith(b"<")


@given(st.binary(max_size=2000) | st.text(alphabet="#[]()<>!*_`~|-\n a&;\x1b", max_size=2000).map(str.encode))
def test_any_readme_is_a_bounded_line(content: bytes) -> None:
    text = introduction(content)
    assert len(text) <= LONGEST + 2
    assert "\n" not in text


@pytest.mark.parametrize(
    "unit", [b"[", b"<", b"<!--", b"![", b"---\n", b"*", b"[a](", b"`", b"_ ", b"&#", b"a\n\n"]
)
def test_no_readme_takes_long(unit: bytes) -> None:
    import time

    started = time.process_time()
    introduction(b"a " + unit * 100_000)
    assert time.process_time() - started < 1


def test_unsafe_names_of_files_are_a_problem_of_their_version(hub: Hub, library: Library) -> None:
    hub.add(NAME, {"m-Q4_K_M.gguf": WEIGHTS, "m:\x1b-Q8_0.gguf": WEIGHTS})
    offers = survey(library, NAME).card.offers
    assert [(offer.version, bool(offer.problem)) for offer in offers] == [("Q4_K_M", False), ("Q8_0", True)]


def test_collections_of_thousands_are_bounded(settings: Settings) -> None:
    with Hub(page=10_000) as hub:
        hub.add(NAME, {f"m{n}-Q4_K_M.gguf": b"" for n in range(3000)})
        found = survey(Library(Settings(settings.home, hf_endpoint=hub.url)), NAME)
    assert len(found.card.offers) == 300


# What fits


@pytest.fixture
def sized(hub: Hub) -> Hub:
    """The demo in three sizes, of which the larger ones are padded: it still answers."""
    demo = DEMO.read_bytes()
    pads = {"m-Q4_K_M.gguf": 0, "m-Q8_0.gguf": 24 << 20, "m-F16.gguf": 60 << 20}
    hub.add(NAME, {name: demo + bytes(pad) for name, pad in pads.items()})
    return hub


def total(found: Survey, version: str) -> int:
    """Bytes that a version takes."""
    assert found.fitting
    return found.fitting.fits[version].need.total


def bounded(library: Library, memory: int) -> Library:
    return Library(replace(library.settings, memory=memory))


def test_each_version_is_told_whether_it_fits_and_which_is_best(sized: Hub, library: Library) -> None:
    needs = [total(survey(library, NAME), version) for version in ("Q4_K_M", "Q8_0", "F16")]
    assert needs == sorted(needs)
    for number, wanted in enumerate(["Q4_K_M", "Q8_0", "Q8_0"]):  # F16 is no better than Q8_0
        found = survey(bounded(library, needs[number]), NAME).fitting
        assert found
        assert found.best == wanted
        assert [fit.fits for fit in found.fits.values()] == [n <= number for n in range(3)]


def test_versions_whose_header_was_not_read_are_reckoned_by_their_files(sized: Hub, library: Library) -> None:
    found = survey(library, NAME)
    for version, pad in (("Q8_0", 24 << 20), ("F16", 60 << 20)):
        assert total(found, version) - total(found, "Q4_K_M") == pytest.approx(pad, rel=0.05)
    assert found.read < 1 << 20


def test_a_larger_context_takes_more(sized: Hub, library: Library) -> None:
    small, large = (survey(library, NAME, context) for context in (256, 2048))
    assert total(small, "Q4_K_M") < total(large, "Q4_K_M")
    assert total(survey(library, NAME), "Q4_K_M") == total(large, "Q4_K_M")  # what mdl chat takes: all
    with pytest.raises(UsageError, match="more than the model learned, 2,048"):
        survey(library, NAME, 2049)


def test_what_was_never_quantized_is_taken_where_there_is_nothing_else(hub: Hub, library: Library) -> None:
    hub.add(NAME, {"m-F16.gguf": DEMO.read_bytes()})
    found = survey(library, NAME).fitting
    assert found and found.best == "F16"


def test_what_a_gpu_holds_whole_goes_before_what_is_larger() -> None:
    need = Need(Part(weights=1))
    offers = [Offer(f"{n}", (File(f"m-Q{n}_0.gguf", n << 30, role="weights"),)) for n in (4, 5, 6, 8)]
    layers = {"4": 33, "5": 33, "6": 20, "8": 0}
    fits = {name: Fit(name != "8", layers[name], 33, 4096, need) for name in layers}
    assert best(offers, fits) == "5"
    assert best(offers, {name: fit._replace(gpu_layers=0) for name, fit in fits.items()}) == "6"
    assert best(offers, {name: fit._replace(fits=False) for name, fit in fits.items()}) is None


def test_only_models_are_told_whether_they_fit(hub: Hub, library: Library) -> None:
    hub.add(NAME, {"mmproj-F16.gguf": make({**MODEL, "general.type": "mmproj"})})
    found = survey(library, NAME)
    assert (found.kind, found.fitting) == ("projector", None)


def test_the_best_that_fits_is_downloaded_and_said(mdl: Mdl, sized: Hub, library: Library) -> None:
    found = survey(library, NAME)
    memory = str(total(found, "F16") - 1)
    done = mdl("download", "--fit", NAME, MDL_MEMORY=memory)
    assert done.stdout.rstrip().endswith(f"{FULL}/Q8_0")
    assert done.stderr.startswith("Q8_0 was chosen, the best that fits: ")
    again = mdl("download", "--fit", NAME, MDL_MEMORY=str(total(found, "Q4_K_M")))
    assert again.stdout.rstrip().endswith(f"{FULL}/Q4_K_M")
    assert (
        mdl("chat", f"{NAME}:Q8_0", "What is 7 plus 5?", "--temperature", "0").stdout == "7 plus 5 is 12.\n"
    )
    assert mdl("download", "--fit", "Model-GGUF", "--offline").returncode == NotFound.code


def test_nothing_is_downloaded_where_nothing_fits(mdl: Mdl, sized: Hub) -> None:
    done = mdl("download", "--fit", NAME, MDL_MEMORY="1M")
    assert done.returncode == UnsupportedModel.code
    assert done.stderr.startswith(f"mdl: no version of {FULL} fits: at 2,048 tokens Q4_K_M needs ")
    assert " of memory, where 1.0 MB may be used\n" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert mdl("list", "-q").stdout == ""


def test_fit_chooses_and_so_does_a_version(mdl: Mdl, sized: Hub) -> None:
    wrong = (["--fit", f"{NAME}:Q8_0"], ["--ctx", "512", NAME], ["--fit", "--ctx", "0", NAME])
    for arguments in wrong:
        assert mdl("download", *arguments).returncode == UsageError.code
    assert sized.seen == []


@pytest.mark.parametrize(
    ("files", "options", "code"),
    [
        ({"config.json": b"{}", "model.safetensors": b""}, {}, UnsupportedModel.code),
        ({"m-Q4_K_M.gguf": b"GGUF"}, {}, UnsupportedModel.code),
        ({"m-Q4_K_M.gguf": WEIGHTS}, {"gated": "auto"}, AuthError.code),
    ],
    ids=["safetensors", "damaged", "gated"],
)
def test_what_cannot_be_told_to_fit_is_not_downloaded(
    mdl: Mdl, hub: Hub, files: dict[str, bytes], options: dict[str, Any], code: int
) -> None:
    hub.add(NAME, files, **options)
    done = mdl("download", "--fit", NAME)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 2


def test_a_model_that_is_here_is_told_what_it_takes(mdl: Mdl) -> None:
    found = document(mdl("inspect", "demo", "--json", "--ctx", "512"))["memory"]
    assert (found["context"], found["fits"]) == (512, True)
    assert found["total"] == found["weights"] + found["cache"] + found["compute"]
    assert found["weights"] == pytest.approx(DEMO.stat().st_size, rel=0.05)
    assert "does not fit: " in mdl("inspect", "demo", MDL_MEMORY="1M").stdout


def test_a_table_fits_eighty_columns_and_marks_the_best(mdl: Mdl, sized: Hub) -> None:
    text = mdl("inspect", NAME, MDL_MEMORY="20GB")
    assert all(len(line) <= 80 for line in text.stdout.splitlines() if not line.startswith("source"))
    table = text.stdout.partition("\n\n")[2].splitlines()
    assert [line.split()[0] for line in table] == ["VERSION", "Q4_K_M", "Q8_0", "F16"]
    assert [line.split(None, 7)[7:] for line in table[1:]] == [["default"], ["best"], []]
    assert text.stderr.splitlines() == [
        f"not on this machine: mdl download {FULL}",
        f"the best that fits: mdl download --fit {FULL}",
    ]
