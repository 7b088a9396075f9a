"""What tests share: a hub on loopback, and a library on an empty cache."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub
from hypothesis import settings as searching
from registry import Front, Registry
from turns import pytest_collection_modifyitems as pytest_collection_modifyitems
from turns import pytest_runtest_protocol as pytest_runtest_protocol

from mdl.config import Settings
from mdl.library import Library

# A job in the background ignores Ctrl-C, and so does all that it starts: tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine takes its time, and whoever runs the tests tries the same cases as everybody else.
searching.register_profile("mdl", deadline=None, derandomize=True)
searching.load_profile("mdl")

# Whoever runs the tests may be logged in somewhere; huggingface_hub reads this when it is imported.
_places = tempfile.TemporaryDirectory(prefix="mdl-tests-")
os.environ["HF_HOME"] = f"{_places.name}/hf"
for _name in ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_ENDPOINT"):
    os.environ.pop(_name, None)

# Nor may credentials of theirs, for registries, be found.
for _name in ("MDL_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
    os.environ.pop(_name, None)
for _name in ("MDL_CONFIG_HOME", "MDL_DATA_HOME", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
    os.environ[_name] = f"{_places.name}/{_name.lower()}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that everybody may read from and write to; a test takes a repository of its own."""
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def front(registry: Registry) -> Iterator[Front]:
    with Front(registry) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path, hub: Hub) -> Settings:
    return Settings(tmp_path / "home", hf_endpoint=hub.url)


@pytest.fixture
def library(settings: Settings) -> Library:
    return Library(settings)
