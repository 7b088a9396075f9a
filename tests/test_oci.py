"""Models from registries: every kind of artifact, through the command line and the library, against a real
registry. Needs the Debian packages docker-registry and skopeo."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ggufmaker import model
from hub import Hub, sha256
from registry import INDEX, MANIFEST, Blob, Front, digest, manifest, titled
from registry import Registry as RealRegistry

from mdl import runnable
from mdl.config import Settings
from mdl.errors import IntegrityError, MdlError, NotFound, UnsupportedModel, UsageError
from mdl.library import Library, Watch
from mdl.model import Model

DEMO = (Path(__file__).parent.parent / "mdl" / "models" / "mdl-demo-Q8_0.gguf").read_bytes()
Q4 = model({"general.file_type": 15})
PATH = "org.cncf.model.filepath"
KIT = "application/vnd.kitops.modelkit."
MODELPACK = "application/vnd.cncf.model."
DOCKER = "application/vnd.docker.ai."


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return f"oci/r{sha256(request.node.nodeid.encode())[:16]}"


@pytest.fixture
def library(tmp_path: Path, hub: Hub) -> Library:
    return Library(Settings(tmp_path / "home", hf_endpoint=hub.url))


def tar(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as opened:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return made.getvalue()


def contents(found: Model) -> dict[str, bytes]:
    return {file.name: (found.folder / file.name).read_bytes() for file in found.files}


def failure(library: Library, name: str) -> MdlError:
    with pytest.raises(MdlError) as caught:
        library.download(name)
    assert library.list() == []
    return caught.value


# Kinds of artifacts


def test_titled_files_come_as_they_are(registry: RealRegistry, library: Library, repository: str) -> None:
    pushed = registry.push(repository, "v1.1", [titled("demo.gguf", Q4), titled("LICENSE", b"MIT")])
    name = f"{registry.host}/{repository}:v1.1"
    found = library.download(name)
    assert contents(found) == {"demo.gguf": Q4, "LICENSE": b"MIT"}
    assert (str(found.reference), found.revision) == (name, ("tag", "v1.1", pushed))
    assert library.resolve(f"{registry.host}/{repository}/v1.1").model == found
    assert library.resolve(repository.rpartition("/")[2]).model == found


@pytest.mark.parametrize("pack", ["tar", "tar+gzip", "tar+zstd"])
def test_a_modelpack_comes_with_what_it_has_packed(
    registry: RealRegistry, library: Library, repository: str, pack: str
) -> None:
    from backports import zstd

    packer: Callable[[bytes], bytes] = {"tar": bytes, "tar+gzip": gzip.compress, "tar+zstd": zstd.compress}[
        pack
    ]
    layers = [
        Blob(Q4, f"{MODELPACK}weight.v1.raw", {PATH: "demo.gguf"}),
        Blob(
            packer(tar({"conf/a.json": b"{}", "LICENSE": b"l"})),
            f"{MODELPACK}weight.config.v1.{pack}",
            {PATH: "conf"},
        ),
        Blob(b"data", f"{MODELPACK}dataset.v1.raw", {PATH: "data.csv"}),
    ]
    config = Blob(b'{"descriptor": {}}', f"{MODELPACK}config.v1+json")
    registry.push(repository, "latest", layers, config, artifactType=f"{MODELPACK}manifest.v1+json")
    found = library.download(f"{registry.host}/{repository}")
    assert contents(found) == {"demo.gguf": Q4, "conf/a.json": b"{}", "LICENSE": b"l"}
    assert found.version == "latest"


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_a_model_of_docker_s_comes_with_its_parts(
    registry: RealRegistry, library: Library, repository: str, version: str
) -> None:
    notes: dict[str, dict[str, str]] = {"0.1": {}, "0.2": {PATH: "demo-Q4_K_M.gguf"}}
    layers = [
        Blob(Q4, f"{DOCKER}gguf.v3", notes[version]),
        Blob(b"licence", f"{DOCKER}license"),
        Blob(b"{{ x }}", f"{DOCKER}chat.template.jinja"),
    ]
    registry.push(repository, "1B", layers, Blob(b"{}", f"{DOCKER}model.config.v{version}+json"))
    found = library.download(f"{registry.host}/{repository}:1B")
    name = "demo-Q4_K_M.gguf" if version == "0.2" else "model.gguf"
    assert contents(found) == {name: Q4, "LICENSE": b"licence", "chat_template.jinja": b"{{ x }}"}
    assert runnable.for_engine(found).first.name == name


def test_a_modelkit_comes_out_of_its_archives(
    registry: RealRegistry, library: Library, repository: str
) -> None:
    layers = [
        Blob(gzip.compress(tar({"demo.gguf": Q4})), f"{KIT}model.v1.tar+gzip"),
        Blob(tar({"docs/README.md": b"hi"}), f"{KIT}docs.v1.tar"),
    ]
    registry.push(repository, "v1", layers, Blob(b"{}", f"{KIT}config.v1+json"))
    name = f"{registry.host}/{repository}:v1"
    found = library.download(name)
    assert contents(found) == {"demo.gguf": Q4, "docs/README.md": b"hi"}
    assert {file.archive for file in found.files} == {layer.digest[7:] for layer in layers}
    kept = {path.name for path in (library.settings.home / "blobs" / "sha256").iterdir()}
    assert kept == {sha256(Q4), sha256(b"hi")}


def test_an_image_of_ramalama_s_comes_without_what_is_around_the_model(
    registry: RealRegistry, library: Library, repository: str
) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as opened:
        info = tarfile.TarInfo("models/demo.gguf")
        info.size = len(Q4)
        opened.addfile(info, io.BytesIO(Q4))
        link = tarfile.TarInfo("models/model.file")
        link.type, link.linkname = tarfile.SYMTYPE, "demo.gguf"
        opened.addfile(link)
    layer = Blob(made.getvalue(), "application/vnd.oci.image.layer.v1.tar")
    image = "application/vnd.oci.image.config.v1+json"
    labels = {"config": {"Labels": {"org.containers.type": "ai.image.model.raw"}}}
    registry.push(repository, "v1", [layer], Blob(json.dumps(labels).encode(), image))
    assert contents(library.download(f"{registry.host}/{repository}:v1")) == {"demo.gguf": Q4}
    registry.push(repository, "plain", [layer], Blob(b'{"config": {}}', image))
    with pytest.raises(UnsupportedModel, match="is a container image"):
        library.download(f"{registry.host}/{repository}:plain")


def test_safetensors_may_have_their_configuration_in_an_archive(
    registry: RealRegistry, library: Library, repository: str
) -> None:
    layers = [
        Blob(b"weights", f"{DOCKER}safetensors", {PATH: "model.safetensors"}),
        Blob(tar({"config.json": b"{}"}), f"{DOCKER}vllm.config.tar"),
    ]
    registry.push(repository, "v1", layers, Blob(b"{}", f"{DOCKER}model.config.v0.2+json"))
    found = library.download(f"{registry.host}/{repository}:v1")
    assert contents(found) == {"model.safetensors": b"weights", "config.json": b"{}"}


def test_a_model_comes_with_one_projector_and_its_adapter(
    registry: RealRegistry, library: Library, repository: str
) -> None:
    layers = [
        titled("demo-Q4_K_M.gguf", Q4),
        titled("demo-Q8_0.gguf", DEMO),
        titled("mmproj-F16.gguf", b"one"),
        titled("mmproj-F32.gguf", b"other"),
        titled("lora.gguf", b"adapter"),
    ]
    registry.push(repository, "v1", layers)
    found = library.download(f"{registry.host}/{repository}:v1")
    assert set(contents(found)) == {"demo-Q4_K_M.gguf", "mmproj-F16.gguf", "lora.gguf"}


def test_models_that_nothing_tells_apart_all_come_and_can_be_chosen_from(
    registry: RealRegistry, library: Library, repository: str
) -> None:
    notes: list[str] = []
    registry.push(repository, "v1", [titled("one.gguf", Q4), titled("two.gguf", DEMO)])
    name = f"{registry.host}/{repository}:v1"
    assert set(contents(library.download(name, Watch(note=notes.append)))) == {"one.gguf", "two.gguf"}
    assert notes == ["nothing tells which model is meant, so all 2 come: one, two"]
    assert set(contents(library.download(name, include=["one*"]))) == {"one.gguf"}


def test_layers_of_an_image_without_models_are_fetched_once(
    front: Front, library: Library, repository: str
) -> None:
    layer = "application/vnd.oci.image.layer.v1.tar"
    layers = [Blob(tar({"etc/os-release": b"x"}), layer), Blob(tar({"models/demo.gguf": Q4}), layer)]
    labels = {"config": {"Labels": {"org.containers.type": "ai.image.model.car"}}}
    image = Blob(json.dumps(labels).encode(), "application/vnd.oci.image.config.v1+json")
    front.registry.push(repository, "v1", layers, image)
    name = f"{front.host}/{repository}:v1"
    found = library.download(name)
    assert contents(found) == {"demo.gguf": Q4}
    front.seen.clear()
    assert library.download(name) == found
    assert library.plan(name).missing == []
    assert {seen.path for seen in front.requests("/blobs/")} == {f"/v2/{repository}/blobs/{image.digest}"}


def test_an_index_leads_to_its_model(registry: RealRegistry, library: Library, repository: str) -> None:
    inner = registry.push(repository, "inner", [titled("demo.gguf", Q4)])
    size = len(json.dumps(manifest([titled("demo.gguf", Q4)])).encode())
    document = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{"mediaType": MANIFEST, "digest": inner, "size": size}],
    }
    registry.put_manifest(repository, "v1", document)
    assert contents(library.download(f"{registry.host}/{repository}:v1")) == {"demo.gguf": Q4}


def test_of_several_quantizations_one_is_chosen(
    registry: RealRegistry, library: Library, repository: str
) -> None:
    eight = model({"general.file_type": 7})
    registry.push(repository, "v1", [titled("m-Q8_0.gguf", eight), titled("m-Q4_K_M.gguf", Q4)])
    assert contents(library.download(f"{registry.host}/{repository}:v1")) == {"m-Q4_K_M.gguf": Q4}


def test_what_is_no_model_is_refused_with_what_it_is(
    registry: RealRegistry, library: Library, repository: str
) -> None:
    registry.push(
        repository, "v1", [titled("x.tgz", b"x")], Blob(b"{}", "application/vnd.cncf.helm.config.v1+json")
    )
    refused = failure(library, f"{registry.host}/{repository}:v1")
    assert isinstance(refused, UnsupportedModel)
    assert "is a Helm chart" in refused.message


# Versions


def test_a_tag_that_moved_is_fetched_and_one_that_did_not_costs_one_request(
    front: Front, library: Library, repository: str
) -> None:
    front.registry.push(repository, "v1", [titled("demo.gguf", Q4)])
    name = f"{front.host}/{repository}:v1"
    first = library.download(name)
    asked = len(front.requests("/blobs/"))
    assert library.download(name) == first
    assert len(front.requests("/blobs/")) == asked
    eight = model({"general.file_type": 7})
    moved = front.registry.push(repository, "v1", [titled("demo.gguf", eight)])
    newer = Library(replace(library.settings, pull="newer")).get(name)
    assert newer.revision.commit == moved
    assert contents(newer) == {"demo.gguf": eight}


def test_a_digest_pins_a_version(registry: RealRegistry, library: Library, repository: str) -> None:
    old = registry.push(repository, "v1", [titled("demo.gguf", Q4)])
    registry.push(repository, "v1", [titled("demo.gguf", model({"general.file_type": 7}))])
    for name in (f"{registry.host}/{repository}@{old}", f"{registry.host}/{repository}:v1@{old}"):
        found = library.download(name)
        assert contents(found) == {"demo.gguf": Q4}
        assert library.resolve(name).model == found
        assert library.download(str(found.reference)) == found
    assert failure_of(lambda: library.download(f"{registry.host}/{repository}@sha256:{'0' * 64}")) is NotFound


def failure_of(call: Callable[[], object]) -> type[MdlError]:
    with pytest.raises(MdlError) as caught:
        call()
    return type(caught.value)


# One content, one blob


def test_what_came_from_a_hub_costs_nothing_from_a_registry(
    hub: Hub, front: Front, library: Library, repository: str
) -> None:
    hub.add("org/demo-GGUF", {"demo-Q4_K_M.gguf": Q4})
    first = library.download("org/demo-GGUF")
    front.registry.push(repository, "v1", [titled("other-name.gguf", Q4)])
    second = library.download(f"{front.host}/{repository}:v1")
    assert front.requests("/blobs/") == []
    assert (first.folder / "demo-Q4_K_M.gguf").samefile(second.folder / "other-name.gguf")


def test_what_was_unpacked_costs_nothing_the_second_time_and_is_mended_whole(
    front: Front, library: Library, repository: str, tmp_path: Path
) -> None:
    layer = Blob(gzip.compress(tar({"demo.gguf": Q4, "LICENSE": b"l"})), f"{KIT}model.v1.tar+gzip")
    front.registry.push(repository, "v1", [layer], Blob(b"{}", f"{KIT}config.v1+json"))
    name = f"{front.host}/{repository}:v1"
    plan = library.plan(name)
    assert [(file.size, file.role) for file in plan.missing] == [(len(layer.content), "archive")]
    found = library.download(name)
    asked = len(front.requests("/blobs/"))
    assert library.download(name) == found
    assert library.plan(name).missing == []
    assert len(front.requests("/blobs/")) == asked
    (found.folder / "LICENSE").unlink()
    (library.settings.home / "blobs" / "sha256" / sha256(b"l")).unlink()
    assert contents(library.download(name)) == {"demo.gguf": Q4, "LICENSE": b"l"}
    with pytest.raises(UsageError, match="packed together"):
        library.download(name, include=["*.gguf"])
    copied = library.download(name, destination=tmp_path / "copy")
    assert contents(copied) == {"demo.gguf": Q4, "LICENSE": b"l"}
    asked = len(front.requests("/blobs/"))
    library.download(name, destination=tmp_path / "copy")
    assert len(front.requests("/blobs/")) == asked


def test_an_archive_comes_again_for_what_is_damaged_in_one_of_its_versions(
    front: Front, library: Library, repository: str
) -> None:
    layer = Blob(tar({"demo.gguf": Q4, "LICENSE": b"l"}), f"{KIT}model.v1.tar")
    for tag in ("v1", "v2"):
        front.registry.push(repository, tag, [layer], Blob(b"{}", f"{KIT}config.v1+json"))
        library.download(f"{front.host}/{repository}:{tag}")
    assert len(front.requests(layer.digest, port="cdn")) == 1
    name = f"{front.host}/{repository}:v1"
    library.store.mark(library.here(name), ["LICENSE"])
    assert [file.role for file in library.plan(name).missing] == ["archive"]
    assert not library.download(name).damaged
    assert len(front.requests(layer.digest, port="cdn")) == 2


def test_an_archive_comes_for_a_folder_of_the_user_s_where_the_cache_has_rotted(
    front: Front, library: Library, repository: str, tmp_path: Path
) -> None:
    layer = Blob(tar({"demo.gguf": Q4, "LICENSE": b"l"}), f"{KIT}model.v1.tar")
    front.registry.push(repository, "v1", [layer], Blob(b"{}", f"{KIT}config.v1+json"))
    name = f"{front.host}/{repository}:v1"
    rotten = library.download(name).folder / "LICENSE"
    rotten.chmod(0o600)
    rotten.write_bytes(b"r")
    copied = library.download(name, destination=tmp_path / "copy")
    assert contents(copied) == {"demo.gguf": Q4, "LICENSE": b"l"}


def test_an_archive_that_is_here_as_a_file_is_taken_apart_all_the_same(
    front: Front, library: Library, repository: str, tmp_path: Path
) -> None:
    packed = tar({"demo.gguf": Q4})
    front.registry.push(repository, "file", [titled("demo.tar", packed), titled("other.gguf", DEMO)])
    library.download(f"{front.host}/{repository}:file")
    kit = Blob(packed, f"{KIT}model.v1.tar")
    front.registry.push(repository, "kit", [kit], Blob(b"{}", f"{KIT}config.v1+json"))
    name = f"{front.host}/{repository}:kit"
    assert contents(library.download(name, destination=tmp_path / "copy")) == {"demo.gguf": Q4}
    assert [file.role for file in library.plan(name).missing] == ["archive"]
    assert contents(library.download(name)) == {"demo.gguf": Q4}
    assert library.download(f"{front.host}/{repository}:file").size == len(packed) + len(DEMO)


def test_force_replaces_what_has_rotted_though_nobody_has_noticed(
    front: Front, library: Library, repository: str
) -> None:
    layer = Blob(tar({"demo.gguf": Q4, "LICENSE": b"l"}), f"{KIT}model.v1.tar")
    front.registry.push(repository, "v1", [layer], Blob(b"{}", f"{KIT}config.v1+json"))
    name = f"{front.host}/{repository}:v1"
    rotten = library.download(name).folder / "LICENSE"
    rotten.chmod(0o600)
    rotten.write_bytes(b"r")
    assert contents(library.download(name, force=True)) == {"demo.gguf": Q4, "LICENSE": b"l"}


# Lies and faults


def test_a_layer_that_is_not_what_it_should_be_is_refused(
    front: Front, library: Library, repository: str
) -> None:
    front.registry.push(repository, "v1", [titled("demo.gguf", Q4)])
    front.now.flip = True
    refused = failure(library, f"{front.host}/{repository}:v1")
    assert isinstance(refused, IntegrityError)
    front.now.flip = False
    assert contents(library.download(f"{front.host}/{repository}:v1")) == {"demo.gguf": Q4}


def test_a_size_that_is_not_the_layer_s_is_refused(front: Front, library: Library, repository: str) -> None:
    front.registry.push(repository, "v1", [titled("demo.gguf", Q4)])
    for wrong in (len(Q4) - 1, len(Q4) + 1, 0):
        content = manifest([titled("demo.gguf", Q4)])
        content["layers"][0]["size"] = wrong
        front.now.manifests["v1"] = json.dumps(content).encode()
        assert isinstance(failure(library, f"{front.host}/{repository}:v1"), IntegrityError)


@pytest.mark.parametrize("name", ["../../evil.gguf", "/tmp/evil.gguf", "x/../../evil.gguf"])
def test_nothing_lands_outside(
    registry: RealRegistry, library: Library, repository: str, tmp_path: Path, name: str
) -> None:
    registry.push(repository, "title", [titled(name, Q4)])
    kit = Blob(tar({"ok.gguf": Q4, name: Q4}), f"{KIT}model.v1.tar")
    registry.push(repository, "kit", [kit], Blob(b"{}", f"{KIT}config.v1+json"))
    for tag in ("title", "kit"):
        assert isinstance(failure(library, f"{registry.host}/{repository}:{tag}"), IntegrityError)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert not list(tmp_path.rglob("evil.gguf"))
    assert not list((library.settings.home / "incoming").glob("*.unpacked"))


def test_two_archives_that_hold_the_same_name_are_refused(
    registry: RealRegistry, library: Library, repository: str
) -> None:
    layers = [Blob(tar({"demo.gguf": Q4, "x": number}), f"{KIT}model.v1.tar") for number in (b"1", b"2")]
    registry.push(repository, "v1", layers, Blob(b"{}", f"{KIT}config.v1+json"))
    assert "would be one file" in failure(library, f"{registry.host}/{repository}:v1").message


def test_a_foreign_layer_is_never_fetched(front: Front, hub: Hub, library: Library, repository: str) -> None:
    front.registry.push(repository, "v1", [titled("demo.gguf", Q4)])
    content = manifest([titled("demo.gguf", Q4)])
    content["layers"][0]["urls"] = [f"{hub.url}/demo.gguf"]
    front.now.manifests["v1"] = json.dumps(content).encode()
    assert isinstance(failure(library, f"{front.host}/{repository}:v1"), UnsupportedModel)
    assert hub.seen == []


def test_a_looping_index_ends(front: Front, library: Library, repository: str) -> None:
    front.registry.push(repository, "v1", [titled("demo.gguf", Q4)])
    inner = "sha256:" + "0" * 64
    for _ in range(2):
        entry = {"mediaType": MANIFEST, "digest": inner, "size": 1}
        body = json.dumps(
            {"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
        ).encode()
        front.now.manifests[digest(body)] = body
        inner = digest(body)
    front.now.manifests["v1"] = front.now.manifests[inner]
    assert isinstance(failure(library, f"{front.host}/{repository}:v1"), MdlError)
    assert len(front.requests("/manifests/")) < 6


def test_a_cut_connection_goes_on_from_where_it_was(front: Front, library: Library, repository: str) -> None:
    big = DEMO
    front.registry.push(repository, "v1", [titled("demo.gguf", big)])
    front.now.cut = [len(big) // 2, len(big) // 4]
    found = library.download(f"{front.host}/{repository}:v1")
    assert contents(found) == {"demo.gguf": big}
    assert any(seen.range for seen in front.requests("/blobs/", port="cdn"))


# As people use it

Mdl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mdl(tmp_path: Path) -> Mdl:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MDL_HOME": str(tmp_path / "home"), **variables}
        command = [sys.executable, "-m", "mdl", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    return run


def test_one_name_downloads_answers_and_removes(mdl: Mdl, registry: RealRegistry, repository: str) -> None:
    registry.push(repository, "v1", [titled("demo.gguf", DEMO)])
    name = f"{registry.host}/{repository}:v1"
    assert mdl("download", name).returncode == 0
    answer = mdl(
        "chat", repository.rpartition("/")[2], "What is the capital of France?", "--temperature", "0"
    )
    assert answer.stdout == "The capital of France is Paris.\n"
    [listed] = json.loads(mdl("list", "--json").stdout)["models"]
    assert (listed["reference"], listed["host"]) == (name, registry.host)
    assert mdl("rm", "-y", name).returncode == 0
    missing = mdl("download", f"{registry.host}/{repository}:v2")
    assert (missing.returncode, missing.stderr.splitlines()[1]) == (3, "there are: v1")


def test_a_download_that_was_killed_goes_on(front: Front, repository: str, tmp_path: Path) -> None:
    big = DEMO * 8
    front.registry.push(repository, "v1", [titled("demo.gguf", big)])
    name = f"{front.host}/{repository}:v1"
    environment = {**os.environ, "MDL_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "mdl", "download", name]
    process = subprocess.Popen([*command, "--limit-rate", "4M"], env=environment, stderr=subprocess.DEVNULL)
    time.sleep(2.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    front.seen.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "demo.gguf").read_bytes() == big
    assert any(seen.range and not seen.range.startswith("bytes=0-") for seen in front.requests(port="cdn"))


def test_a_download_that_was_killed_while_it_unpacked_fetches_nothing_twice(
    mdl: Mdl, front: Front, repository: str, tmp_path: Path
) -> None:
    layer = Blob(tar({"demo.gguf": DEMO, "large": os.urandom(40 << 20)}), f"{KIT}model.v1.tar")
    front.registry.push(repository, "v1", [layer], Blob(b"{}", f"{KIT}config.v1+json"))
    name, incoming = f"{front.host}/{repository}:v1", tmp_path / "home" / "incoming"
    environment = {**os.environ, "MDL_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "mdl", "download", name]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as victim:
        while not list(incoming.glob("*.unpacked/*")):
            assert victim.poll() is None
            time.sleep(0.001)
        victim.kill()
    assert mdl("list", "-q").stdout == ""
    asked = len(front.requests(layer.digest))
    folder = Path(mdl("download", name).stdout.strip())
    assert (folder / "demo.gguf").read_bytes() == DEMO
    assert len(front.requests(layer.digest)) == asked


def test_what_skopeo_and_mdl_fetch_is_the_same(
    mdl: Mdl, registry: RealRegistry, repository: str, tmp_path: Path
) -> None:
    layers = [titled("demo.gguf", DEMO), titled("LICENSE", b"MIT")]
    registry.push(repository, "v1", layers)
    source = f"docker://{registry.host}/{repository}"
    insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"]
    layout = f"oci:{tmp_path / 'layout'}:v1"
    for origin, target in ((f"{source}:v1", layout), (layout, f"{source}:back")):
        subprocess.run(["skopeo", "copy", *insecure, origin, target], check=True, capture_output=True)
    folder = Path(mdl("download", f"{registry.host}/{repository}:back").stdout.strip())
    for layer in layers:
        name = layer.annotations["org.opencontainers.image.title"]
        copied = tmp_path / "layout" / "blobs" / "sha256" / layer.digest.removeprefix("sha256:")
        assert (folder / name).read_bytes() == copied.read_bytes() == layer.content


def test_what_oras_pushes_is_a_model(
    mdl: Mdl, registry: RealRegistry, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import oras.client

    (tmp_path / "demo.gguf").write_bytes(DEMO)
    monkeypatch.chdir(tmp_path)
    client: Any = oras.client.OrasClient(hostname=registry.host, insecure=True)
    client.push(files=["demo.gguf"], target=f"{registry.host}/{repository}:v1")
    folder = Path(mdl("download", f"{registry.host}/{repository}:v1").stdout.strip())
    assert (folder / "demo.gguf").read_bytes() == DEMO


def test_a_folder_that_oras_pushes_comes_out(
    mdl: Mdl, registry: RealRegistry, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import oras.client

    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "demo.gguf").write_bytes(DEMO)
    (tmp_path / "README.md").write_bytes(b"hi")
    monkeypatch.chdir(tmp_path)
    client: Any = oras.client.OrasClient(hostname=registry.host, insecure=True)
    client.push(files=["weights", "README.md"], target=f"{registry.host}/{repository}:v1")
    folder = Path(mdl("download", f"{registry.host}/{repository}:v1").stdout.strip())
    assert (folder / "weights" / "demo.gguf").read_bytes() == DEMO
    assert (folder / "README.md").read_bytes() == b"hi"
