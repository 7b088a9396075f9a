"""Who may import whom, and which third-party package has which home. Read from the source, nothing is run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mdl"

# package of ours -> packages of ours that it may import (errors may be imported by all)
ALLOWED = {
    "__init__": set(),
    "__main__": {"cli", "complete"},
    "complete": {"catalog", "checkpoints", "config", "profilefile", "reader", "reference", "settings"},
    "cli": {
        *("configfile", "settings"),
        "importing",
        "modeljson",
        "catalog",
        "estimate",
        "refreshing",
        "search",
        "layers",
        "profilefile",
        "profiletext",
        "matching",
        "foreign",
        "ui",
        "bench",
        "chart",
        "progress",
        "config",
        "library",
        "engine",
        "chat",
        "server",
        "listing",
        "documents",
        "inspection",
        "survey",
        "card",
        "garbage",
        "usage",
        "verification",
        "reference",
        "model",
        "client",
        "upstream",
        "apiengine",
        "placement",
        "machine",
        "memory",
        "complete",
        "credentials",
        "transports",
        "weights",
        "profiles",
        "cli",
        "__init__",
    },
    "progress": {"ui", "library"},
    "upstream": {"config", "credentials", "model", "modeljson", "reference", "remote", "transports"},
    "apiengine": {"config", "engine", "events", "remote", "upstream"},
    "events": set(),
    "ui": set(),
    "chat": {"chat", "engine", "config", "ui", "profiles"},
    "server": {
        "profilefile",
        "upstream",
        "remote",
        "catalog",
        "documents",
        "fetch",
        "inspection",
        "layers",
        "weights",
        "placement",
        "memory",
        "machine",
        "gguf",
        "profiles",
        "server",
        "engine",
        "library",
        "config",
        "model",
        "reference",
        "__init__",
    },
    "library": {
        "disk",
        "describing",
        "carded",
        "dropped",
        "importing",
        "modeljson",
        "sources",
        "profilefile",
        "catalog",
        "adapters",
        "checkpoints",
        "store",
        "transports",
        "profiles",
        "config",
        "model",
        "reference",
        "card",
        "fetch",
        "download",
        "remote",
        "variants",
        "weights",
        "header",
        "traffic",
    },
    "adapters": {"peft", "gguf", "safetensors", "header", "store", "weights"},
    "checkpoints": {"safetensors", "header"},
    "catalog": {"config", "estimate", "filename", "header", "parameters", "profiles", "reference"},
    "estimate": {"machine", "memory"},
    "search": {
        *("card", "catalog", "estimate", "filename", "library", "machine", "reference", "transports"),
    },
    "refreshing": {"reference", "remote", "settings", "transports"},
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
        "catalog",
        "library",
        "transports",
        "card",
        "fitting",
        "ranges",
        "reference",
        "remote",
        "gguf",
        "header",
        "machine",
        "memory",
        "model",
        "partial",
    },
    "fitting": {"card", "gguf", "machine", "memory", "partial"},
    "ranges": {"remote", "gguf", "header"},
    "documents": {
        "catalog",
        "estimate",
        "search",
        "checkpoints",
        "machine",
        "memory",
        "model",
        "fetch",
        "library",
        "card",
        "header",
        "survey",
        "garbage",
        "usage",
        "verification",
    },
    "listing": {"model"},
    "matching": {"catalog", "model", "reference", "weights"},
    "profiletext": {"engine", "header", "matching", "parameters", "profiles"},
    "profilefile": {
        *("config", "matching", "model", "profiles", "profiletext", "reference", "refreshing", "settings"),
    },
    "foreign": {"gojinja", "header", "parameters", "profiles", "profiletext"},
    "bench": {"engine"},
    "client": set(),
    "chart": set(),
    "fetch": {
        *("archive", "disk", "download", "filename", "leftovers", "metadata", "model", "partial"),
        *("reference", "store", "transports"),
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
    "verification": {"disk", "store", "model", "weights"},
    "credentials": {"config"},
    "transports": {
        "archive",
        "credentials",
        "transports",
        "download",
        "remote",
        "model",
        "reference",
        "config",
        "filename",
        "variants",
        "weights",
        "card",
        "readme",
        "refusal",
        "header",
    },
    "variants": {"filename", "reference", "refusal"},
    "card": {"filename", "header", "model", "reference"},
    "readme": set(),
    "download": {"gather", "partial", "remote", "traffic"},
    "gather": {"partial", "remote", "traffic"},
    "partial": set(),
    "remote": {"__init__", "traffic"},
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
        *("archive", "ziparchive", "describing", "disk", "dropped", "modeljson", "filename", "metadata"),
        *("model", "partial", "places", "reference", "refusal", "store", "weights"),
    },
    "sources": {"carded", "modeljson", "filename", "model", "reference", "remote", "transports"},
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
    "urllib3": {"remote"},
    "llama_cpp": {"engine/llama"},
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
    "numpy": {"peft", "engine/grammar", "engine/llama"},
    "llguidance": {"engine/grammar"},
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")


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


@pytest.mark.parametrize("path", modules(), ids=place)
def test_a_third_party_package_stays_at_home(path: Path) -> None:
    for package, homes in HOMES.items():
        if any(name.split(".")[0] == package for name in imports(path)):
            assert any(place(path) == home or place(path).startswith(f"{home}/") for home in homes), package


@pytest.mark.parametrize("path", modules(), ids=place)
def test_only_the_edges_print_exit_and_read_the_environment(path: Path) -> None:
    source = path.read_text()
    where = place(path)
    names = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    if where not in ("config", "engine/process", "engine/worker"):
        assert not names & {"environ", "getenv"}
    if not where.startswith(("cli", "ui", "__main__", "engine/worker")):
        assert "sys.exit" not in source
    calls = {node.func.id for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
    assert "print" not in calls


def test_every_module_says_what_it_is() -> None:
    assert [place(path) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))] == []
