"""Registries that lie and artifacts that lead astray are refused with a reason; nothing of them is kept."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ggufmaker
import pytest
from registry import EMPTY, INDEX, MANIFEST, Blob, Front, digest, manifest, titled

from mdl.errors import IntegrityError, MdlError, NotFound, UnsupportedModel
from mdl.library import Library

GGUF = ggufmaker.model()
WEIGHTS = titled("model-Q4_K_M.gguf", GGUF)
PACKED = "application/vnd.kitops.modelkit.model.v1.tar"
KIT = Blob(b'{"manifestVersion":"1.0.0"}', "application/vnd.kitops.modelkit.config.v1+json")


class Forge:
    """A front whose manifests are what a test says, whatever the registry has."""

    def __init__(self, front: Front, path: str) -> None:
        self.front, self.path = front, path
        self.reference = f"{front.host}/{path}:v1"

    def say(self, document: dict[str, Any] | bytes, name: str = "v1") -> str:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.front.now.manifests |= {name: body, digest(body): body}
        return digest(body)

    def holds(self, *blobs: Blob) -> None:
        for blob in (*blobs, Blob(b"{}", EMPTY)):
            self.front.registry.put_blob(self.path, blob.content)


@pytest.fixture
def forge(front: Front, request: pytest.FixtureRequest) -> Forge:
    front.now.headers = {"Docker-Content-Digest": ""}
    made = Forge(front, f"abuse/r{digest(request.node.name.encode())[7:23]}")
    made.holds(WEIGHTS)
    return made


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def refusal(library: Library, reference: str, kind: type[MdlError]) -> str:
    """What is said of an artifact, once nothing of it was found to be kept, or made outside of the cache."""
    with pytest.raises(kind) as caught:
        library.download(reference)
    assert type(caught.value) is kind
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert library.list() == []
    root = library.settings.home
    assert not [path for path in everything(root.parent) if not path.is_relative_to(root)]
    assert not everything(root / "blobs") or kind is IntegrityError
    return caught.value.message


def tarred(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member, io.BytesIO(bytes(member.size)))
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


# Digests and sizes


def test_a_layer_of_other_bytes_is_refused_and_comes_once_they_are_right(
    forge: Forge, library: Library
) -> None:
    forge.say(manifest([WEIGHTS]))
    forge.front.now.flip = True
    assert "not what was promised" in refusal(library, forge.reference, IntegrityError)
    forge.front.now.flip = False
    assert library.download(forge.reference).files[0].sha256 == WEIGHTS.digest.removeprefix("sha256:")


@pytest.mark.parametrize("size", [0, 1, len(GGUF) - 1, len(GGUF) + 1, 1 << 40])
def test_a_layer_of_another_size_is_refused(forge: Forge, library: Library, size: int) -> None:
    document = manifest([WEIGHTS])
    document["layers"][0]["size"] = size
    forge.say(document)
    with pytest.raises(MdlError) as caught:
        library.download(forge.reference)
    assert caught.value.code in (6, 7)
    assert library.list() == []


def test_a_manifest_of_other_bytes_than_its_pin_is_refused(forge: Forge, library: Library) -> None:
    forge.say(manifest([WEIGHTS]))
    pin = f"sha256:{'ab' * 32}"
    forge.front.now.manifests[pin] = json.dumps(manifest([WEIGHTS])).encode()
    assert "not what was promised" in refusal(library, f"{forge.reference}@{pin}", IntegrityError)


def test_a_manifest_of_other_bytes_than_the_index_says_is_refused(forge: Forge, library: Library) -> None:
    entry = {"mediaType": MANIFEST, "digest": f"sha256:{'cd' * 32}", "size": 700}
    forge.front.now.manifests[entry["digest"]] = json.dumps(manifest([WEIGHTS])).encode()
    forge.say({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
    assert "not what was promised" in refusal(library, forge.reference, IntegrityError)


def test_a_manifest_of_another_size_than_the_index_says_is_refused(forge: Forge, library: Library) -> None:
    inner = forge.say(manifest([WEIGHTS]), "inner")
    entry = {"mediaType": MANIFEST, "digest": inner, "size": 7}
    forge.say({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
    assert "7 were promised" in refusal(library, forge.reference, IntegrityError)


def test_a_manifest_that_is_another_than_the_header_says_is_refused(forge: Forge, library: Library) -> None:
    forge.say(manifest([WEIGHTS]))
    forge.front.now.headers = {"Docker-Content-Digest": f"sha256:{'ef' * 32}"}
    assert "not what was promised" in refusal(library, forge.reference, IntegrityError)


@pytest.mark.parametrize(
    "name",
    ["sha512:" + "a" * 128, "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha256:../../../../etc/passwd", "",
     "md5:0", 7, None, ["sha256:" + "a" * 64], "sha256:" + "a" * 64 + "\n"],
)  # fmt: skip
def test_a_digest_that_is_none_is_refused(forge: Forge, library: Library, name: Any) -> None:
    document = manifest([WEIGHTS])
    document["layers"][0]["digest"] = name
    forge.say(document)
    assert "which is no sha256" in refusal(library, forge.reference, IntegrityError)


@pytest.mark.parametrize("size", [-1, 1.5, True, "9", None, 1 << 70, {}])
def test_a_size_that_is_none_is_refused(forge: Forge, library: Library, size: Any) -> None:
    document = manifest([WEIGHTS])
    document["layers"][0]["size"] = size
    forge.say(document)
    assert "impossible size" in refusal(library, forge.reference, IntegrityError)


# Names


@pytest.mark.parametrize(
    "name",
    ["../model.gguf", "/tmp/model.gguf", "a/../../model.gguf", "a//model.gguf", "..", "a\\model.gguf",
     "model.gguf\n", "\x1b[2Jmodel.gguf", "\u202emodel.gguf", "c:/model.gguf", ".metadata",
     "x" * 300 + ".gguf", "a/" * 600 + "model.gguf", "model\0.gguf", "./../model.gguf"],
)  # fmt: skip
def test_a_title_that_leads_elsewhere_is_refused(forge: Forge, library: Library, name: str) -> None:
    forge.say(manifest([titled(name, GGUF)]))
    assert "a name that is not" in refusal(library, forge.reference, IntegrityError)


@pytest.mark.parametrize("other", ["model.gguf", "MODEL.gguf", "./model.gguf"])
def test_a_title_that_stands_there_twice_is_refused(forge: Forge, library: Library, other: str) -> None:
    more = titled(other, ggufmaker.model({"general.name": "other"}))
    forge.holds(more)
    forge.say(manifest([titled("model.gguf", GGUF), more]))
    assert "would be one file" in refusal(library, forge.reference, IntegrityError)


def test_a_file_and_a_folder_of_one_name_are_refused(forge: Forge, library: Library) -> None:
    more = titled("README.md/x.gguf", GGUF)
    text = titled("README.md", b"hello")
    forge.holds(text)
    forge.say(manifest([more, text]))
    refusal(library, forge.reference, IntegrityError)


# Manifests


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"{}", b'{"layers": 7}', b'{"layers": {}}',
     b'{"layers": [7]}', b'{"layers": [null]}', b'{"layers": [], "layers": []}', b'{"layers": NaN}',
     b"[" * 100_000, b'{"a":' * 100 + b"1" + b"}" * 100, b'{"layers": []}', b'{"manifests": []}',
     b'{"manifests": 7}', b'{"manifests": [7]}', b'{"manifests": [], "layers": []}',
     b'{"schemaVersion": 1, "fsLayers": [{"blobSum": "sha256:00"}]}', b"<html>log in</html>"],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(forge: Forge, library: Library, body: bytes) -> None:
    forge.say(body)
    with pytest.raises(MdlError) as caught:
        library.download(forge.reference)
    assert caught.value.code in (5, 6, 9)
    assert library.list() == []


def test_a_manifest_that_is_too_large_is_not_read(forge: Forge, library: Library) -> None:
    forge.say(manifest([WEIGHTS], annotations={"x": "y" * (5 << 20)}))
    with pytest.raises(MdlError):
        library.download(forge.reference)
    assert library.list() == []


def test_a_manifest_of_too_many_layers_is_refused(forge: Forge, library: Library) -> None:
    forge.say(manifest([titled(f"{number}.gguf", b"") for number in range(3000)]))
    assert "3,000 layers" in refusal(library, forge.reference, IntegrityError)


def test_an_index_that_leads_to_indexes_ends(forge: Forge, library: Library) -> None:
    inner = forge.say({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}, "0")
    for number in range(1, 9):
        body = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [
                {"mediaType": INDEX, "digest": inner, "size": len(forge.front.now.manifests[inner])}
            ],
        }
        inner = forge.say(body, str(number))
    forge.say(forge.front.now.manifests[inner])
    refusal(library, forge.reference, UnsupportedModel)
    assert len(forge.front.requests("/manifests/")) <= 4 + 1  # one more for the challenge


# What is somewhere else


@pytest.mark.parametrize(
    "change",
    [
        {"urls": ["http://127.0.0.1:1/model.gguf"]},
        {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
        {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar"},
    ],
)
def test_foreign_layers_are_never_fetched(forge: Forge, library: Library, change: dict[str, Any]) -> None:
    document = manifest([WEIGHTS])
    document["layers"][0] |= change
    forge.say(document)
    assert "another server" in refusal(library, forge.reference, UnsupportedModel)
    assert not forge.front.requests("/blobs/")


# Archives


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (special("link", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (special("link", tarfile.SYMTYPE, "model.gguf"), "a link"),
        (special("link", tarfile.LNKTYPE, "model.gguf"), "a link"),
        (special("device", tarfile.CHRTYPE), "special"),
        (special("device", tarfile.BLKTYPE), "special"),
        (special("pipe", tarfile.FIFOTYPE), "special"),
        (special("sparse", tarfile.GNUTYPE_SPARSE), "special"),
        (("../evil.gguf", b"x"), "not safe"),
        (("/evil.gguf", b"x"), "not safe"),
        (("a/../../evil.gguf", b"x"), "not safe"),
        (("\x1b[2J", b"x"), "not safe"),
        ((".metadata", b"x"), "not allowed"),
        (("MODEL.gguf", b"x"), "would be one file"),
        (("model.gguf", b"x"), "would be one file"),
        (("./model.gguf", b"x"), "would be one file"),
    ],
)
def test_an_archive_that_leads_astray_is_refused(
    forge: Forge, library: Library, member: tuple[str, bytes] | tarfile.TarInfo, reason: str
) -> None:
    layer = Blob(tarred(("model.gguf", GGUF), member), PACKED)
    forge.holds(layer, KIT)
    forge.say(manifest([layer], KIT))
    assert reason in refusal(library, forge.reference, IntegrityError)
    folder = library.settings.home.parent / "plain"
    with pytest.raises(IntegrityError):
        library.download(forge.reference, destination=folder)
    assert {path.relative_to(folder).parts[0] for path in everything(folder)} == {".mdl-incoming"}


def test_two_archives_may_not_hold_one_name(forge: Forge, library: Library) -> None:
    one, other = (Blob(tarred(("model.gguf", GGUF), (name, b"x")), PACKED) for name in "ab")
    forge.holds(one, other, KIT)
    forge.say(manifest([one, other], KIT))
    assert "would be one file" in refusal(library, forge.reference, IntegrityError)


@pytest.mark.parametrize("pack", [gzip.compress], ids=["gzip"])
def test_a_bomb_is_refused_before_it_fills_the_disk(
    forge: Forge, library: Library, pack: Callable[[bytes], bytes]
) -> None:
    claim = tarfile.TarInfo("model.gguf")
    claim.size = 50 << 40
    layer = Blob(pack(claim.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)), f"{PACKED}+gzip")
    forge.holds(layer, KIT)
    forge.say(manifest([layer], KIT))
    assert "times as large" in refusal(library, forge.reference, IntegrityError)


@pytest.mark.parametrize("packing", ["", "+gzip", "+zstd"])
@pytest.mark.parametrize(
    "content", [b"", b"x" * 600, bytes(1024), b"\x1f\x8b\x08 nothing", b"\x28\xb5\x2f\xfd!"]
)
def test_an_archive_that_is_none_is_refused(
    forge: Forge, library: Library, packing: str, content: bytes
) -> None:
    layer = Blob(content, f"{PACKED}{packing}".replace("kitops.modelkit.model", "cncf.model.weight"))
    forge.holds(layer)
    forge.say(manifest([layer], artifactType="application/vnd.cncf.model.manifest.v1+json"))
    with pytest.raises(MdlError) as caught:
        library.download(forge.reference)
    assert caught.value.code in (6, 9)
    assert library.list() == []


def test_a_missing_layer_is_not_found(forge: Forge, library: Library) -> None:
    forge.say(manifest([titled("model.gguf", b"never pushed")]))
    refusal(library, forge.reference, NotFound)


# What is no model


@pytest.mark.parametrize(
    ("config", "layer", "what"),
    [
        ("vnd.cncf.helm.config.v1+json", "vnd.cncf.helm.chart.content.v1.tar+gzip", "a Helm chart"),
        ("vnd.wasm.config.v0+json", "wasm", "a WebAssembly module"),
        ("vnd.oci.image.config.v1+json", "vnd.oci.image.layer.v1.tar+gzip", "a container image"),
        ("vnd.docker.container.image.v1+json", "vnd.docker.image.rootfs.diff.tar.gzip", "a container image"),
        ("vnd.docker.container.image.v1+json", "vnd.ollama.image.model", "a model of Ollama's"),
        ("vnd.oci.image.config.v1+json", "vnd.in-toto+json", "an attestation"),
        ("vnd.acme.thing.v1+json", "vnd.acme.thing.v1.tar+gzip", "'application/vnd.acme.thing.v1+json'"),
    ],
)
def test_what_is_no_model_is_called_what_it_is_and_not_fetched(
    forge: Forge, library: Library, config: str, layer: str, what: str
) -> None:
    made = Blob(gzip.compress(tarred(("etc/passwd", b"x"))), f"application/{layer}")
    described = Blob(b'{"config": {}}', f"application/{config}")
    forge.holds(made, described)
    forge.say(manifest([made], described))
    assert what in refusal(library, forge.reference, UnsupportedModel)
    assert not forge.front.requests(made.digest)


def test_archives_without_weights_are_no_model(forge: Forge, library: Library, tmp_path: Path) -> None:
    layer = Blob(tarred(("README.md", b"read me")), "application/vnd.kitops.modelkit.docs.v1.tar")
    forge.holds(layer, KIT)
    forge.say(manifest([layer], KIT))
    with pytest.raises(UnsupportedModel, match=r"holds no weights: 'README\.md'"):
        library.download(forge.reference)
    assert library.list() == []
