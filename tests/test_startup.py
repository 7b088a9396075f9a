"""A command pays only for what it uses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = """
    rich huggingface_hub oras gguf llama_cpp numpy pydantic starlette uvicorn requests httpx urllib3 asyncio
    jinja2 prompt_toolkit portalocker tomli_w tomlkit ssl
""".split()


def loaded_by(code: str, home: Path) -> set[str]:
    """The heavy packages that are loaded in a fresh interpreter after it ran `code`."""
    code += f"\nprint(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    environment = {**os.environ, "MDL_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.splitlines()[-1].split())


def test_the_command_line_itself_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded_by("import mdl.cli", tmp_path) == set()


@pytest.mark.parametrize(
    "arguments", [["--version"], ["list"], ["list", "--json"], ["resolve", "demo"], ["inspect", "demo"]]
)
def test_looking_at_what_is_here_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert loaded_by(f"from mdl.cli import run\nassert run({arguments!r}) == 0", tmp_path) == set()


def test_completing_a_name_does_not_even_load_typer(tmp_path: Path) -> None:
    code = "import mdl.__main__, mdl.complete\nassert mdl.complete.complete(['model', '']) == 0"
    code += "\nassert 'typer' not in sys.modules"
    assert loaded_by(code, tmp_path) == set()


def test_the_handle_of_an_engine_is_light(tmp_path: Path) -> None:
    assert loaded_by("import mdl.engine, mdl.engine.request", tmp_path) == set()
