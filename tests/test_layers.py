"""Who may import whom, and which third-party package has which home. Read from the source, nothing is run."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mdl"

# package of ours -> packages of ours that it may import (errors may be imported by all)
ALLOWED = {
    "__init__": set(),
    "__main__": {"cli", "complete"},
    "complete": {"catalog", "checkpoints", "config", "profilefile", "reader", "reference", "settings"},
    "cli": {
        *("__init__", "apiengine", "bench", "card", "catalog", "chart", "chat", "cli", "client"),
        *("complete", "config", "configfile", "credentials", "documents", "engine", "estimate", "foreign"),
        *("garbage", "importing", "inspection", "layers", "library", "listing", "machine", "matching"),
        *("memory", "model", "modeljson", "parameters", "placement", "profilefile", "profiles"),
        *("profiletext", "progress", "reference", "refreshing", "runnable", "search", "server", "settings"),
        *("survey", "transports", "ui", "upstream", "usage", "verification", "weights"),
    },
    "progress": {"ui", "library"},
    "upstream": {
        *("address", "config", "connection", "credentials", "model", "modeljson", "reference", "remote"),
        *("transports",),
    },
    "apiengine": {"address", "config", "engine", "events", "remote", "response", "trouble", "upstream"},
    "events": set(),
    "ui": set(),
    "chat": {"chat", "engine", "config", "ui", "profiles"},
    "server": {
        *("__init__", "address", "apiengine", "catalog", "config", "connection", "documents", "engine"),
        *("fetch", "gguf", "inspection", "layers", "library", "machine", "memory", "model", "placement"),
        *("profilefile", "profiles", "reference", "resolution", "resolver", "runnable", "server"),
        *("upstream", "weights"),
    },
    "library": {
        *("adopting", "cached", "card", "carded", "checkpoints", "config", "connection", "describing"),
        *("disk", "download", "fetch", "model", "modeljson", "reference", "remote", "resolution"),
        *("resolver", "runnable", "sources", "store", "traffic", "transports"),
    },
    "resolver": {
        *("cached", "catalog", "checkpoints", "config", "describing", "model", "profilefile", "reference"),
        *("resolution", "store"),
    },
    "resolution": {"catalog", "model", "reference"},
    "cached": {"adopting", "model", "reference", "resolution", "store", "variants"},
    "adopting": {"dropped", "importing", "store"},
    "runnable": {"adapters", "describing", "model", "store", "weights"},
    "adapters": {"peft", "gguf", "safetensors", "header", "store", "weights"},
    "checkpoints": {"safetensors", "header"},
    "catalog": {"config", "estimate", "filename", "header", "parameters", "profiles", "reference"},
    "estimate": {"machine", "memory"},
    "search": {
        *("card", "catalog", "estimate", "filename", "library", "machine", "reference", "transports"),
    },
    "refreshing": {"address", "connection", "reference", "remote", "settings", "transports", "trouble"},
    "peft": {"safetensors", "header"},
    "inspection": {
        "modeljson",
        "layers",
        "packaged",
        "profiles",
        "library",
        "documents",
        "fitting",
        "gguf",
        "safetensors",
        "header",
        "machine",
        "memory",
        "model",
        "placement",
        "weights",
        "survey",
    },
    "placement": {"gguf", "machine", "memory", "engine"},
    "survey": {
        *("address", "card", "catalog", "connection", "fitting", "gguf", "header", "library", "machine"),
        *("memory", "model", "partial", "ranges", "reference", "resolution", "transports"),
    },
    "fitting": {"card", "gguf", "machine", "memory", "partial"},
    "ranges": {"address", "connection", "gguf", "header", "remote", "response"},
    "documents": {
        *("card", "catalog", "checkpoints", "estimate", "fetch", "garbage", "header", "machine", "memory"),
        *("model", "resolution", "search", "survey", "usage", "verification"),
    },
    "listing": {"model"},
    "matching": {"catalog", "model", "reference", "weights"},
    "profiletext": {"adapters", "engine", "header", "matching", "parameters", "profiles", "reference"},
    "profilefile": {"config", "model", "profiles", "profiletext", "reference", "refreshing", "settings"},
    "foreign": {"gojinja", "header", "parameters", "profiles", "profiletext"},
    "bench": {"engine"},
    "client": set(),
    "chart": set(),
    "fetch": {
        *("archive", "disk", "download", "leftovers", "metadata", "model", "partial", "reference", "store"),
        *("transports",),
    },
    "archive": {"model", "filename", "partial", "reference"},
    "store": {"disk", "locks", "metadata", "model", "places", "reader"},
    "reader": {"disk", "index", "metadata", "model", "places", "reference"},
    "index": {"disk", "model", "places"},
    "places": {"disk", "filename", "model"},
    "metadata": {"model"},
    "locks": {"disk"},
    "disk": set(),
    "leftovers": {"disk", "store"},
    "garbage": {"disk", "leftovers", "locks", "places", "store", "partial", "gguf", "peft"},
    "usage": {"disk", "garbage", "places", "store", "model"},
    "verification": {"disk", "metadata", "model", "modeljson", "store", "weights"},
    "credentials": {"config"},
    "transports": {
        *("address", "archive", "card", "config", "connection", "credentials", "filename", "header"),
        *("model", "readme", "reference", "remote", "response", "transports", "trouble", "variants"),
        *("weights",),
    },
    "variants": {"filename", "reference", "refusal"},
    "card": {"filename", "header", "model", "reference"},
    "readme": set(),
    "download": {"address", "connection", "gather", "partial", "remote", "response", "traffic", "trouble"},
    "gather": {"address", "partial", "remote", "response", "traffic", "trouble"},
    "partial": set(),
    "remote": {"__init__", "address", "connection", "response", "traffic", "trouble"},
    "address": set(),
    "trouble": {"address"},
    "response": {"address", "trouble"},
    "connection": {"address", "trouble"},
    "traffic": set(),
    "model": {"reference"},
    "reference": {"filename"},
    "config": {"configfile", "settings"},
    "configfile": {"settings"},
    "settings": {"reference"},
    "profiles": {"engine"},
    "packaged": {"model", "engine", "gojinja", "header", "profiles", "parameters"},
    "parameters": {"engine", "header", "profiles"},
    "layers": {
        "modeljson",
        "catalog",
        *("config", "engine", "library", "model", "packaged", "parameters", "profilefile", "profiles"),
        "weights",
    },
    "gojinja": {"gotemplate"},
    "gotemplate": set(),
    "weights": {"gguf", "safetensors", "header", "filename", "refusal"},
    "gguf": {"header"},
    "lenient": set(),
    "modeljson": {"lenient", "header", "model", "parameters", "profiles"},
    "carded": {"modeljson", "filename", "model", "reference", "refusal", "weights"},
    "dropped": {"disk", "describing", "modeljson", "filename", "header", "model", "store", "weights"},
    "ziparchive": {"archive", "filename", "model", "partial", "reference"},
    "importing": {
        *("archive", "describing", "disk", "dropped", "filename", "metadata", "model", "modeljson"),
        *("partial", "places", "reference", "store", "weights", "ziparchive"),
    },
    "sources": {"address", "carded", "filename", "model", "modeljson", "reference", "transports"},
    "describing": {"carded", "modeljson", "model", "reference", "filename", "refusal", "weights"},
    "safetensors": {"header"},
    "header": set(),
    "memory": {"engine", "gguf", "machine", "shape"},
    "shape": {"gguf", "header"},
    "machine": set(),
    "refusal": {"header"},
    "filename": set(),
    "errors": set(),
    "engine": {"engine"},
}

HOMES = {
    "typer": {"cli"},
    "rich": {"progress"},
    "prompt_toolkit": {"chat"},
    "huggingface_hub": {"transports/huggingface"},
    "httpx2": {"transports/huggingface", "server/passing"},
    "oras": {"transports/oci"},
    "urllib3": {"connection", "remote", "response", "trouble"},
    "llama_cpp": {"engine/native"},
    "jinja2": {"engine/template"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "platformdirs": {"config"},
    "tomli_w": {"metadata", "profiletext"},
    "backports": {"archive"},
    "yaml": {"foreign"},
    "tomlkit": {"configfile"},
    "portalocker": {"locks", "configfile"},
    "gguf": {"peft"},
    "numpy": {"peft", "engine/grammar", "engine/likely"},
    "llguidance": {"engine/grammar"},
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")


@cache
def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=place)
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    own = place(path).split("/")[0]
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("mdl.")}
    ours = {"__init__" if name == "__version__" else name for name in ours}
    assert ours <= ALLOWED[own] | {"errors"}


def test_no_two_modules_need_each_other() -> None:
    needs: dict[str, set[str]] = {place(path): set() for path in modules()}
    for path in modules():
        for name in (name.removeprefix("mdl.").replace(".", "/") for name in imports(path)):
            found = name if name in needs else name.rpartition("/")[0]
            needs[place(path)] |= {found} & needs.keys() - {place(path)}
    TopologicalSorter(needs).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("path", modules(), ids=place)
def test_a_third_party_package_stays_at_home(path: Path) -> None:
    for package, homes in HOMES.items():
        if any(name.split(".")[0] == package for name in imports(path)):
            assert any(place(path) == home or place(path).startswith(f"{home}/") for home in homes), package


@pytest.mark.parametrize("path", modules(), ids=place)
def test_only_the_edges_print_exit_and_read_the_environment(path: Path) -> None:
    source = path.read_text()
    where = place(path)
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    if where not in ("config", "engine/process", "engine/worker"):
        assert not names & {"environ", "getenv"}
    if not where.startswith(("cli", "ui", "__main__", "engine/worker")):
        assert "sys.exit" not in source
    calls = {node.func.id for node in nodes
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
    assert "print" not in calls


def test_every_module_says_what_it_is() -> None:
    assert [place(path) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))] == []
