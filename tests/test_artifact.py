"""Manifests of all kinds, read as files; and of what is none, said."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry import INDEX, Blob, manifest, titled

from mdl.errors import IntegrityError, MdlError, UnsupportedModel
from mdl.transports import artifact
from mdl.transports.artifact import MOST_LAYERS, chosen, holds_model, is_image, is_index, kind_of, read

PATH = "org.cncf.model.filepath"
MODELPACK = "application/vnd.cncf.model."
DOCKER = "application/vnd.docker.ai."
KIT = "application/vnd.kitops.modelkit."
IMAGE = Blob(b"{}", "application/vnd.oci.image.config.v1+json")


def named(name: str, media_type: str, content: bytes = b"x") -> Blob:
    return Blob(content, media_type, {PATH: name})


def names(layers: Sequence[Blob], config: Blob | None = None, **more: Any) -> list[str]:
    return [file.name for file in read(manifest(layers, config, **more)).files]


def roles(layers: Sequence[Blob], config: Blob | None = None) -> dict[str, str]:
    return {file.name: file.role for file in read(manifest(layers, config)).files}


def refused(content: Mapping[str, Any]) -> MdlError:
    with pytest.raises(MdlError) as caught:
        read(content)
    assert "\n" not in caught.value.message
    return caught.value


# What the field's tools push


def test_titled_files_are_files_whatever_their_type() -> None:
    layers = [
        titled(
            "model.gguf", b"m", "application/vnd.oci.image.layer.v1.tar"
        ),  # what oras push says of any file
        titled("LICENSE", b"l", "text/plain"),
        titled("./conf/config.json", b"c", "application/json"),
    ]
    unknown = Blob(b"{}", "application/vnd.unknown.config.v1+json")
    assert roles(layers, unknown) == {
        "model.gguf": "weights",
        "LICENSE": "license",
        "conf/config.json": "config",
    }
    assert names([*layers], IMAGE) == ["model.gguf", "LICENSE", "conf/config.json"]


def test_a_model_may_have_a_bill_of_materials_beside_it() -> None:
    found = read(manifest([titled("sbom.json", b"{}", "application/spdx+json"), titled("demo.gguf", b"m")]))
    assert [file.name for file in found.files] == ["sbom.json", "demo.gguf"]


def test_a_titled_folder_is_an_archive() -> None:
    layer = Blob(
        b"x",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        {"org.opencontainers.image.title": "model", "io.deis.oras.content.unpack": "true"},
    )
    found = read(manifest([layer]))
    assert [archive.packed for archive in found.archives] == ["tar+gzip"]


def test_a_modelpack_names_its_files_and_packs_some() -> None:
    layers = [
        named("model-00001-of-00002.gguf", f"{MODELPACK}weight.v1.raw"),
        named("model-00002-of-00002.gguf", f"{MODELPACK}weight.v1.raw", b"y"),
        named("mmproj.gguf", f"{MODELPACK}weight.v1.raw", b"z"),
        named("README.md", f"{MODELPACK}doc.v1.raw"),
        named("tokenizer", f"{MODELPACK}weight.config.v1.tar"),
        named("all", f"{MODELPACK}weight.v1.tar+zstd"),
        named("data", f"{MODELPACK}dataset.v1.tar+gzip"),
        named("train.py", f"{MODELPACK}code.v1.raw"),
    ]
    found = read(manifest(layers, Blob(b"{}", f"{MODELPACK}config.v1+json")))
    assert found.kind == "a ModelPack"
    assert [file.name for file in found.files] == [layer.annotations[PATH] for layer in layers[:4]]
    assert [archive.packed for archive in found.archives] == ["tar", "tar+zstd"]
    assert found.left_out == "layers of data and code left out: 2"


def test_docker_s_first_models_have_no_names() -> None:
    config = Blob(b"{}", f"{DOCKER}model.config.v0.1+json")
    layers = [
        Blob(b"1", f"{DOCKER}gguf.v3"), Blob(b"2", f"{DOCKER}gguf.v3"), Blob(b"3", f"{DOCKER}gguf.v3.mmproj"),
        Blob(b"4", f"{DOCKER}license"), Blob(b"5", f"{DOCKER}license"),
        Blob(b"6", f"{DOCKER}chat.template.jinja"), Blob(b"7", f"{DOCKER}gguf.v3.lora"),
    ]  # fmt: skip
    assert roles(layers, config) == {
        "model-00001-of-00002.gguf": "weights", "model-00002-of-00002.gguf": "weights",
        "mmproj.gguf": "projector", "LICENSE": "license", "LICENSE-2": "license",
        "chat_template.jinja": "template", "adapter.gguf": "adapter",
    }  # fmt: skip
    assert names(layers[1:2], config) == ["model.gguf"]
    assert names([Blob(b"m", f"{DOCKER}mmproj"), *layers[:1]], config) == ["mmproj.gguf", "model.gguf"]


def test_docker_s_later_models_have_names() -> None:
    config = Blob(b"{}", f"{DOCKER}model.config.v0.2+json")
    layers = [
        named("m-Q4_K_M.gguf", f"{DOCKER}gguf.v3"),
        named("x/config.json", f"{DOCKER}model.file"),
        named("extra", f"{DOCKER}vllm.config.tar"),
    ]
    assert names(layers, config) == ["m-Q4_K_M.gguf", "x/config.json"]
    assert kind_of(manifest(layers, config)) == "a model of Docker's"


def test_a_modelkit_is_all_archives() -> None:
    layers = [
        Blob(b"x", f"{KIT}{kind}.v1.tar+gzip") for kind in ("model", "modelpart", "docs", "dataset", "code")
    ]
    found = read(manifest(layers, Blob(b"{}", f"{KIT}config.v1+json")))
    assert found.kind == "a ModelKit"
    assert [layer.media_type for layer in found.archives] == [layer.media_type for layer in layers[:3]]


def test_a_container_image_is_a_model_only_if_it_says_so() -> None:
    content = manifest([Blob(b"x", "application/vnd.oci.image.layer.v1.tar+gzip")], IMAGE)
    assert is_image(content)
    assert refused(content).message == "a container image"
    assert len(read(content, image=True).archives) == 1
    assert holds_model({"config": {"Labels": {"org.containers.type": "ai.image.model.raw"}}})
    for config in (
        {},
        {"config": None},
        {"config": {"Labels": {"org.containers.type": "x"}}},
        {"config": {"Labels": 1}},
    ):
        assert not holds_model(config)


@pytest.mark.parametrize(
    ("config", "artifact_type", "words"),
    [
        ("application/vnd.cncf.helm.config.v1+json", None, "a Helm chart"),
        (
            "application/vnd.oci.empty.v1+json",
            "application/vnd.dev.cosign.artifact.sig.v1+json",
            "a signature",
        ),
        ("application/vnd.wasm.config.v0+json", None, "a WebAssembly module"),
        ("application/x-mine", None, "an artifact of the type 'application/x-mine'"),
    ],
)
def test_what_is_no_model_is_refused_with_what_it_is(
    config: str, artifact_type: str | None, words: str
) -> None:
    more = {"artifactType": artifact_type} if artifact_type else {}
    failure = refused(manifest([titled("a.txt", b"x")], Blob(b"{}", config), **more))
    assert isinstance(failure, UnsupportedModel)
    assert failure.message in (words, f"{words} without weights: 'a.txt'")


# Indexes


def index(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}


def entry(number: int, architecture: str = "", **annotations: str) -> dict[str, Any]:
    place = {"platform": {"architecture": architecture, "os": "linux"}} if architecture else {}
    return {**Blob(bytes([number]), "application/vnd.oci.image.manifest.v1+json").descriptor, **place,
            "annotations": annotations}  # fmt: skip


def digest_of(content: dict[str, Any]) -> str:
    return f"sha256:{chosen(content, 'amd64').digest}"


def test_an_index_leads_to_the_model() -> None:
    one, two, unknown = entry(1, "arm64"), entry(2, "amd64"), entry(3, "unknown")
    assert is_index(index(one)) and not is_index(manifest([]))
    assert digest_of(index(one)) == one["digest"]
    assert digest_of(index(one, two, unknown)) == two["digest"]
    assert digest_of(index(one, two, entry(4))) == entry(4)["digest"]
    marked = entry(5, "arm64", **{"org.cnai.model.model": "true"})
    assert digest_of(index(one, two, marked)) == marked["digest"]
    for content in (index(), index(one, entry(6, "arm64")), {"manifests": "x"}, index(*[entry(1)] * 1000)):
        with pytest.raises(UnsupportedModel):
            chosen(content, "amd64")


# Lies


@pytest.mark.parametrize(
    "name",
    ["../evil.gguf", "/etc/passwd.gguf", "a/../../b.gguf", "a\\b.gguf", "a\0.gguf", "a\n.gguf", ".metadata",
     ".", "..", "a" * 300 + ".gguf", "a:b.gguf", "\u202egguf.gguf", "x/" * 600 + "a.gguf"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    assert isinstance(refused(manifest([titled(name, b"x"), titled("model.gguf", b"y")])), IntegrityError)


def test_the_same_name_twice_is_refused() -> None:
    for other in ("model.gguf", "Model.GGUF", "./model.gguf"):
        failure = refused(manifest([titled("model.gguf", b"x"), titled(other, b"y")]))
        assert "would be one file" in failure.message


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:short"}, {"digest": "sha512:" + "0" * 128}, {"digest": None}, {"digest": 7},
        {"size": -1}, {"size": "1"}, {"size": True}, {"size": 1 << 60}, {"size": 1.5}, {"mediaType": None},
        {"annotations": []}, {"urls": ["https://elsewhere/x"]},
        {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
        {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar"},
    ],
)  # fmt: skip
def test_a_descriptor_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    content = manifest([titled("model.gguf", b"x")])
    content["layers"][0] |= change
    refused(content)


def test_a_manifest_without_end_is_refused() -> None:
    content = manifest([titled("model.gguf", b"x")])
    content["layers"] *= MOST_LAYERS + 1
    assert isinstance(refused(content), IntegrityError)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["sha256:" + "0" * 64]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["mediaType", "digest", "size", "annotations", "layers", "config", "manifests", "platform"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(["layers", "config", "manifests", "artifactType", "mediaType"]), ANYTHING)
)
def test_whatever_a_manifest_says_is_read_or_refused(content: dict[str, Any]) -> None:
    for attempt in (
        lambda: read(content),
        lambda: read(content, image=True),
        lambda: is_image(content),
        lambda: chosen(content, "amd64"),
        lambda: artifact.config_of(content),
    ):
        with contextlib.suppress(MdlError):
            attempt()
