"""Imports: files, folders and archives become models; what is dropped among the models does so by itself."""

import io
import json
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from faults import KILLED, Place, Ran, points, promised, strike
from ggufmaker import MODEL, make
from ggufmaker import model as weights
from hub import Hub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import Mdl, documents, mdl  # noqa: F401
from test_faults import FULL, SEED, go_through
from tiny import DEMO

from mdl import dropped, importing, modeljson, runnable, ziparchive
from mdl.errors import IntegrityError, MdlError, NotFound, UnsupportedModel, UsageError
from mdl.importing import Importer
from mdl.library import Library
from mdl.model import METADATA_NAME, Model
from mdl.reference import Reference
from mdl.verification import Verification

Q4, Q8 = weights({"general.name": "small"}), weights({"general.name": "large"})
PROJECTOR = make({"general.architecture": "clip", "general.type": "mmproj", "clip.has_vision_encoder": True})


def bring(library: Library, path: Path, how: importing.How = "", name: str | None = None) -> list[Model]:
    """Import what is at a path, as the command does."""
    importer = Importer(library.store, how, Reference.parse(name) if name else None)
    if not importing.is_archive(path):
        return importer.run(path)
    with importing.unpacked(path, library.store) as (folder, digests):
        return replace(importer, how="move", digests=digests).run(folder)


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def names(library: Library) -> list[str]:
    return [str(model.reference) for model in library.list()]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


# Files


def test_a_file_becomes_a_model_with_digests_and_a_model_json(library: Library, outside: Path) -> None:
    (outside / "llama-Q4_K_M.gguf").write_bytes(Q4)
    [model] = bring(library, outside / "llama-Q4_K_M.gguf")
    assert str(model.reference) == "llama:Q4_K_M"
    assert (model.folder / "llama-Q4_K_M.gguf").read_bytes() == Q4
    assert (model.folder / METADATA_NAME).is_file()
    assert all(file.sha256 for file in model.files)
    card = modeljson.read(model.folder / "model.json")
    assert (card.name, card.format, card.engine, card.state) == ("small", "gguf", "llama.cpp", "ready")
    assert (card.quantization, card.binaries) == ("F16", ("llama-Q4_K_M.gguf",))  # what the header says
    assert library.here("llama") == model
    assert library.store.is_whole(model)


def test_the_quantization_in_a_file_name_is_the_version(library: Library, outside: Path) -> None:
    shutil.copy(DEMO, outside / "my-demo-q8_0.gguf")
    [model] = bring(library, outside / "my-demo-q8_0.gguf")
    assert str(model.reference) == "my-demo:Q8_0"


@pytest.mark.parametrize(
    ("name", "reference"),
    [("other", "other:F16"), ("other:v2", "other:v2"), ("org/name:v1", "huggingface.co/org/name:v1")],
)
def test_a_model_is_called_as_the_user_wants(
    library: Library, outside: Path, name: str, reference: str
) -> None:
    (outside / "m.gguf").write_bytes(weights({"general.file_type": 1}))
    assert [str(model.reference) for model in bring(library, outside / "m.gguf", name=name)] == [reference]


@pytest.mark.parametrize("name", ["https://x.org/m.gguf", "file:///m", "openai://x.org/v1/m"])
def test_what_has_no_versions_is_no_name_for_an_import(library: Library, outside: Path, name: str) -> None:
    (outside / "m.gguf").write_bytes(Q4)
    with pytest.raises(UsageError, match="cannot be its name"):
        bring(library, outside / "m.gguf", name=name)


def test_an_import_answers(mdl: Mdl, tmp_path: Path) -> None:  # noqa: F811
    shutil.copy(DEMO, tmp_path / "mine.gguf")
    done = mdl("import", "mine.gguf", "--name", "mine:v1")
    assert done.returncode == 0
    assert done.stdout.strip() == str(tmp_path / "home/models/mine/v1")
    assert "mdl chat mine:v1" in done.stderr  # how to use it next
    (tmp_path / "mine.gguf").unlink()
    assert mdl("chat", "mine", "What is 2 plus 2?", "--temperature", "0").stdout == "2 plus 2 is 4.\n"


def test_an_import_prints_json_names_or_only_what_it_would_do(mdl: Mdl, tmp_path: Path) -> None:  # noqa: F811
    shutil.copy(DEMO, tmp_path / "mine.gguf")
    [plan] = documents(mdl("import", "mine.gguf", "--dry-run", "--json"))["plans"]
    assert (plan["reference"], plan["files"][0]["name"]) == ("mine:Q8_0", "mine.gguf")
    assert "nothing was imported" in mdl("import", "mine.gguf", "--dry-run").stderr
    assert documents(mdl("list", "--json"))["models"] == []
    assert mdl("import", "mine.gguf", "-q").stdout == "mine:Q8_0\n"
    [model] = documents(mdl("import", "mine.gguf", "--json"))["models"]
    assert (model["reference"], model["state"]) == ("mine:Q8_0", "ready")
    assert mdl("import", "nowhere.gguf").returncode == 3
    assert mdl("import", "mine.gguf", "--link", "--copy").returncode == 2
    assert mdl("import", str(tmp_path / "config.toml")).returncode in (3, 9)


# Link, copy, move


def test_contents_are_shared_and_stored_once(library: Library, outside: Path) -> None:
    large = weights({"padding": "x" * importing.LEAST_SHARED})
    for name in ("one", "two"):
        (outside / f"{name}.gguf").write_bytes(large)
        bring(library, outside / f"{name}.gguf", name=f"{name}:v1")
    inodes = {(library.store.tree / f"{name}/v1/{name}.gguf").stat().st_ino for name in ("one", "two")}
    assert len(inodes) == 1
    assert len([path for path in library.store.blobs.iterdir() if path.stat().st_size > 1 << 20]) == 1


def test_nothing_is_copied_where_the_file_system_can_share(library: Library, outside: Path) -> None:
    path = outside / "m.gguf"
    path.write_bytes(weights({"padding": "x" * importing.LEAST_SHARED}))
    path.chmod(0o640)
    [model] = bring(library, path, "link")
    assert os.path.samestat(path.stat(), (model.folder / "m.gguf").stat())
    assert stat.S_IMODE(path.stat().st_mode) == 0o640  # the user's file stays as it is


def test_a_copy_is_a_file_of_its_own(library: Library, outside: Path) -> None:
    path = outside / "m.gguf"
    path.write_bytes(weights({"padding": "x" * importing.LEAST_SHARED}))
    [model] = bring(library, path, "copy")
    assert not os.path.samestat(path.stat(), (model.folder / "m.gguf").stat())
    assert stat.S_IMODE((model.folder / "m.gguf").stat().st_mode) == 0o444


def test_what_is_moved_is_gone_and_a_small_file_is_no_link(library: Library, outside: Path) -> None:
    (outside / "m").mkdir()
    (outside / "m/m.gguf").write_bytes(Q4)
    (outside / "m/model.json").write_text("{}")
    [model] = bring(library, outside / "m", "copy")
    assert everything(outside) == {"m/m.gguf": Q4, "m/model.json": b"{}"}
    bring(library, outside / "m", "move")
    assert list(outside.iterdir()) == []
    assert (model.folder / "m.gguf").read_bytes() == Q4


def test_an_import_replaces_no_other_model(library: Library, outside: Path) -> None:
    (outside / "m.gguf").write_bytes(Q4)
    [model] = bring(library, outside / "m.gguf", name="m:v1")
    assert bring(library, outside / "m.gguf", name="m:v1") == [model]
    (outside / "m.gguf").write_bytes(Q8)
    with pytest.raises(UsageError, match="is here already"):
        bring(library, outside / "m.gguf", name="m:v1")
    assert (model.folder / "m.gguf").read_bytes() == Q4


# Folders and archives


@pytest.fixture
def fetched(library: Library, hub: Hub) -> Model:
    hub.add("org/demo-GGUF", {"demo-Q8_0.gguf": Q8, "LICENSE": b"MIT", "README.md": b"# Demo"})
    return library.download("org/demo-GGUF:Q8_0")


def test_a_folder_that_mdl_wrote_comes_back_under_its_own_name(
    library: Library, fetched: Model, outside: Path
) -> None:
    shutil.copytree(fetched.folder, outside / "anything")
    library.store.remove(fetched)
    [model] = bring(library, outside / "anything")
    assert str(model.reference) == "huggingface.co/org/demo-GGUF:Q8_0"
    assert (model.files, model.revision, model.source) == (fetched.files, fetched.revision, fetched.source)
    assert library.download("org/demo-GGUF:Q8_0") == model  # nothing is fetched again


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
@pytest.mark.parametrize("base", [None, "folder"])
def test_a_folder_zips_moves_and_imports_as_a_whole(
    library: Library, fetched: Model, outside: Path, kind: str, base: str | None
) -> None:
    content = everything(fetched.folder)
    shutil.move(fetched.folder, outside / "folder")
    archive = shutil.make_archive(
        str(outside / "packed"), kind, outside if base else outside / "folder", base
    )
    shutil.rmtree(library.settings.home)
    [model] = bring(library, Path(archive))
    assert str(model.reference) == "huggingface.co/org/demo-GGUF:Q8_0"
    assert {name: text for name, text in everything(model.folder).items() if name != METADATA_NAME} == {
        name: text for name, text in content.items() if name != METADATA_NAME
    }
    assert everything(library.store.incoming) == {}
    assert Path(archive).exists()


def test_what_is_not_as_its_metadata_say_is_refused(library: Library, fetched: Model, outside: Path) -> None:
    shutil.copytree(fetched.folder, outside / "m")
    library.store.remove(fetched)
    weights_file = outside / "m/demo-Q8_0.gguf"
    weights_file.chmod(0o644)
    weights_file.write_bytes(Q8[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match=r"is not what its \.metadata says"):
        bring(library, outside / "m")
    assert names(library) == []


def test_a_model_json_of_what_mdl_brought_may_be_edited(library: Library, outside: Path) -> None:
    (outside / "one.gguf").write_bytes(Q4)
    [model] = bring(library, outside / "one.gguf", "", "one:v1")
    path = model.folder / "model.json"
    path.chmod(0o644)
    path.write_text('{"top_k": 3}')
    report = Verification(library.store, library.list(), everything=True).run()
    assert [(finding.kind, finding.path) for finding in report.findings] == [("edited", path)]
    found = library.here("one")
    assert (found.state, modeljson.profile(found).sampling) == ("ready", {"top_k": 3})
    shutil.copytree(model.folder, outside / "copy")
    [again] = bring(library, outside / "copy", "", "other:v1")
    assert modeljson.profile(again).sampling == {"top_k": 3}
    path.write_text("broken")
    report = Verification(library.store, library.list(), everything=True).run()
    assert [finding.kind for finding in report.damage] == ["size"]


def test_several_quantizations_with_a_json_each_are_imported_together(
    library: Library, outside: Path
) -> None:
    (outside / "llama").mkdir()
    for name, content in (("q4", Q4), ("q8", Q8)):
        (outside / f"llama/{name}.gguf").write_bytes(content)
        (outside / f"llama/{name}.json").write_text(json.dumps({"description": name}))
    models = bring(library, outside / "llama")
    assert [str(model.reference) for model in models] == ["llama:q4", "llama:q8"]
    assert modeljson.read(models[1].folder / "model.json").description == "q8"


def test_a_folder_with_several_versions_is_imported_as_they_are(library: Library, outside: Path) -> None:
    for number in (1, 2):
        (outside / "m.gguf").write_bytes(weights({"general.name": f"v{number}"}))
        bring(library, outside / "m.gguf", name=f"m:v{number}")
    shutil.make_archive(str(outside / "m"), "zip", library.store.tree, "m")
    shutil.rmtree(library.settings.home)
    assert [str(model.reference) for model in bring(library, outside / "m.zip")] == ["m:v1", "m:v2"]


def test_weights_and_projector_are_imported_together(library: Library, outside: Path) -> None:
    (outside / "llava").mkdir()
    (outside / "llava/llava.gguf").write_bytes(Q4)
    (outside / "llava/mmproj.gguf").write_bytes(PROJECTOR)
    [model] = bring(library, outside / "llava")
    found = runnable.weights(model)
    assert (found.first.name, found.projector and found.projector.name) == ("llava.gguf", "mmproj.gguf")
    assert modeljson.read(model.folder / "model.json").binaries == ("llava.gguf", "mmproj.gguf")


def test_weights_that_a_json_names_elsewhere_come_with_it(library: Library, outside: Path) -> None:
    (outside / "far.gguf").write_bytes(Q4)
    (outside / "m").mkdir()
    card = json.dumps({"source_url": str(outside / "far.gguf"), "description": "mine"})
    (outside / "m/model.json").write_text(card)
    [model] = bring(library, outside / "m")
    assert everything(model.folder).keys() == {"far.gguf", "model.json", METADATA_NAME}
    assert (model.folder / "model.json").read_text() == card
    assert runnable.weights(model).first == model.folder / "far.gguf"


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_folders_of_safetensors_are_stored_and_inspected(library: Library, outside: Path, kind: str) -> None:
    from test_safetensors import SMALL

    prefix = "" if kind == "model" else "adapter_"
    (outside / "llama").mkdir()
    (outside / f"llama/{prefix}model.safetensors").write_bytes(SMALL)
    (outside / f"llama/{prefix}config.json").write_text("{}")
    [model] = bring(library, outside / "llama")
    assert str(model.reference) == "llama:latest"
    assert (model.summary.kind, model.summary.format, model.state) == (kind, "safetensors", "ready")
    assert modeljson.read(model.folder / "model.json").binaries == (f"{prefix}model.safetensors",)
    assert runnable.weights(model).kind == kind


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"a.txt": b"hello"}, "without a model"),
        ({"a.gguf": Q4, "b.gguf": Q8}, "more than one model"),
        ({"model.json": b'{"source_url": "org/name"}'}, "holds no weights"),
        ({"pytorch_model.bin": b"\x80\x02}q\x00."}, "a Python pickle"),
        ({"a.gguf": Q4[:-10]}, "truncated"),
        ({"a.gguf": Q4, "model.json": b'{"engine": "vllm"}'}, "the engine vllm"),
    ],
)
def test_what_is_no_model_is_refused_with_what_it_is(
    library: Library, outside: Path, files: dict[str, bytes], what: str
) -> None:
    for name, content in files.items():
        (outside / name).write_bytes(content)
    with pytest.raises(UnsupportedModel, match=what):
        bring(library, outside)
    assert names(library) == []
    with pytest.raises(NotFound):
        bring(library, outside / "nowhere")


# Hostile archives


def link_in_zip() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("m/link.gguf")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def device_in_zip() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("m/device.gguf")
    info.external_attr = (stat.S_IFCHR | 0o666) << 16
    return info


@pytest.mark.parametrize(
    "member",
    [
        *("../evil.gguf", "m/../../evil.gguf", "/etc/evil.gguf", "m/\x1b[2Jevil.gguf", "C:/evil.gguf"),
        *("m/a" * 500, "m/" + "n" * 300, link_in_zip(), device_in_zip()),
    ],
)
def test_a_hostile_zip_leads_nowhere(
    library: Library, outside: Path, member: str | zipfile.ZipInfo, tmp_path: Path
) -> None:
    with zipfile.ZipFile(outside / "x.zip", "w") as archive:
        archive.writestr("m/m.gguf", Q4)
        archive.writestr(member, b"/etc/passwd")
    before = set(everything(tmp_path))
    with pytest.raises(MdlError):
        bring(library, outside / "x.zip")
    assert {name for name in set(everything(tmp_path)) - before if "/locks/" not in name} == set()
    assert names(library) == []


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"m/a.txt": b"hello"}, "x.zip/m is a folder without a model"),
        ({"a.txt": b"hello", "b.txt": b""}, "x.zip is a folder without a model"),
        ({"m/model.json": b"{'source_url': 'hf://a/b'}"}, "x.zip/m holds no weights"),
    ],
)
def test_what_is_wrong_in_an_archive_is_told_by_its_name(
    library: Library, outside: Path, files: dict[str, bytes], told: str
) -> None:
    with pytest.raises(UnsupportedModel) as refused:
        bring(library, zipped(outside / "x.zip", files))
    assert refused.value.message == told


def test_a_zip_with_backslashes_stays_inside(library: Library, outside: Path, tmp_path: Path) -> None:
    zipped(outside / "x.zip", {"m/m.gguf": Q4, "..\\evil.gguf": b"x"})
    with pytest.raises(MdlError):
        bring(library, outside / "x.zip")
    assert [name for name in everything(tmp_path) if "evil" in name] == []


def test_a_hostile_tar_leads_nowhere(library: Library, outside: Path, tmp_path: Path) -> None:
    for name, kind in (("../evil", tarfile.REGTYPE), ("m/l", tarfile.SYMTYPE), ("m/d", tarfile.CHRTYPE)):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as archive:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        (outside / "x.tar").write_bytes(made.getvalue())
        with pytest.raises(MdlError):
            bring(library, outside / "x.tar")
    assert [name for name in everything(tmp_path) if "evil" in name] == []


def test_nothing_outside_an_archive_is_taken_or_changed_whatever_its_json_says(
    library: Library, outside: Path
) -> None:
    large = weights({"padding": "x" * importing.LEAST_SHARED})
    (outside / "mine.gguf").write_bytes(large)
    (outside / "mine.gguf").chmod(0o640)
    for name, card in (("model.json", "m/model.json"), ("one.json", "m/one.json")):
        content = json.dumps({"source_url": str(outside / "mine.gguf")}).encode()
        zipped(outside / "x.zip", {card: content})
        with pytest.raises(UnsupportedModel, match="is not in what is imported"):
            bring(library, outside / "x.zip")
        drop(library, f"{name}.zip", (outside / "x.zip").read_bytes())
    assert names(library) == []
    assert (outside / "mine.gguf").read_bytes() == large
    assert stat.S_IMODE((outside / "mine.gguf").stat().st_mode) == 0o640


def test_what_a_link_leads_to_is_not_moved(library: Library, outside: Path) -> None:
    (outside / "far.gguf").write_bytes(Q4)
    (outside / "m").mkdir()
    (outside / "m/m.gguf").symlink_to(outside / "far.gguf")
    with pytest.raises(UnsupportedModel, match="is not in what is imported"):
        bring(library, outside / "m", "move")
    assert (bring(library, outside / "m")[0].folder / "m.gguf").read_bytes() == Q4
    assert everything(outside).keys() == {"far.gguf", "m/m.gguf"}


@pytest.mark.parametrize("how", ["", "move"])
def test_what_is_in_the_cache_is_not_imported_into_it(
    library: Library, fetched: Model, how: importing.How
) -> None:
    for path in (fetched.folder, fetched.folder.parent, library.store.tree, library.settings.home):
        with pytest.raises(UsageError, match="is among the models of mdl"):
            bring(library, path, how)
    assert library.store.is_whole(fetched)


def test_a_folder_that_lacks_what_its_metadata_name_is_refused(
    library: Library, fetched: Model, outside: Path
) -> None:
    shutil.copytree(fetched.folder, outside / "m")
    (outside / "m/LICENSE").unlink()
    with pytest.raises(IntegrityError, match="'LICENSE' is missing"):
        bring(library, outside / "m")


def test_a_version_that_came_from_an_address_of_its_own_comes_back_there(
    library: Library, outside: Path
) -> None:
    (outside / "m.gguf").write_bytes(Q4)
    version = library.download(f"file://{outside}/m.gguf")
    shutil.move(version.folder, outside / "kept")
    (outside / "m.gguf").unlink()
    [model] = bring(library, outside / "kept")
    assert (model.reference, model.files) == (version.reference, version.files)


@pytest.mark.parametrize(
    ("size", "what"), [(0xFFFF0000, "times as large"), (10, "taken apart"), (2 << 20, "taken apart")]
)
def test_a_zip_bomb_and_one_that_lies_about_its_size_are_refused(
    library: Library, outside: Path, size: int, what: str
) -> None:
    content = bytearray(zipped(outside / "x.zip", {"m/m.gguf": bytes(1 << 20)}).read_bytes())
    struct.pack_into("<I", content, content.rfind(b"PK\x01\x02") + 24, size)
    (outside / "x.zip").write_bytes(content)
    with pytest.raises(IntegrityError, match=what):
        bring(library, outside / "x.zip")
    assert everything(library.store.incoming) == {}


def test_a_zip_with_too_many_files_or_packed_otherwise_is_refused(library: Library, outside: Path) -> None:
    with zipfile.ZipFile(outside / "x.zip", "w") as archive:
        for number in range(ziparchive.MOST_MEMBERS + 1):
            archive.writestr(str(number), b"")
    with pytest.raises(IntegrityError, match="too many files"):
        bring(library, outside / "x.zip")
    with zipfile.ZipFile(outside / "y.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("m/m.gguf", Q4)
    with pytest.raises(IntegrityError, match="store or deflate"):
        bring(library, outside / "y.zip")
    with pytest.raises(UnsupportedModel, match="is empty"):
        bring(library, zipped(outside / "z.zip", {"m/": b""}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_to_a_zip_does_more_than_refuse_it(
    library: Library, outside: Path, data: st.DataObject
) -> None:
    content = bytearray(zipped(outside / "x.zip", {"m/m.gguf": Q4, "m/model.json": b"{}"}).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (outside / "x.zip").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        bring(library, outside / "x.zip")
    except MdlError as failure:
        assert "\n" not in failure.message
    assert set(outside.iterdir()) == {outside / "x.zip"}
    assert all(model.problem == "" for model in library.list())


# Dropped among the models


def drop(library: Library, place: str, content: bytes) -> Path:
    path = library.store.tree / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_gguf_dropped_into_the_models_folder_gets_its_own_folder_and_a_filled_in_model_json(
    library: Library,
) -> None:
    drop(library, "My llama (1).gguf", Q4)
    assert names(library) == ["My-llama-1"]
    folder = library.store.tree / "My-llama-1"
    assert everything(folder).keys() == {"My llama (1).gguf", "model.json"}
    card = modeljson.read(folder / "model.json")
    assert (card.id, card.name, card.source_url) == ("My-llama-1", "small", "./My llama (1).gguf")
    assert (card.format, card.engine, card.binaries) == ("gguf", "llama.cpp", ("My llama (1).gguf",))
    assert card.size == len(Q4)
    json.loads((folder / "model.json").read_text())
    assert library.here("My-llama-1").version == "n/a"


def test_what_is_dropped_answers_to_the_next_command(mdl: Mdl, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "home/models").mkdir(parents=True)
    shutil.copy(DEMO, tmp_path / "home/models/mine.gguf")
    assert mdl("chat", "mine", "What is 2 plus 2?", "--temperature", "0").stdout == "2 plus 2 is 4.\n"
    assert (tmp_path / "home/models/mine/model.json").is_file()


def test_a_gguf_dropped_into_a_folder_of_models_gets_its_own_folder_there(library: Library) -> None:
    drop(library, "acme/old/old.gguf", Q4)
    drop(library, "acme/old/model.json", b"{}")
    drop(library, "acme/new.gguf", Q8)
    assert library.here("acme/new").files[0].name == "model.json" or library.here("acme/new").files
    assert names(library) == ["acme/new", "acme/old"]
    assert not (library.store.tree / "acme/new.gguf").exists()


def test_weights_in_a_model_folder_of_their_own_stay(library: Library) -> None:
    drop(library, "mine/mine.gguf", Q4)
    drop(library, "mine/vision/mmproj.gguf", PROJECTOR)
    library.list()
    assert (library.store.tree / "mine/mine.gguf").exists()


def test_all_parts_and_the_projector_are_dropped_together(library: Library) -> None:
    for number in (1, 2):
        facts = {**MODEL, "split.no": number - 1, "split.count": 2, "split.tensors.count": 2}
        part = make(facts, [(f"t{number}.weight", (32, 2), 1)])
        if number == 2:
            assert names(library) == ["big"]  # listed where it is, as not whole
            assert [model.state for model in library.list()] == ["unsupported"]
        drop(library, f"big-{number:05}-of-00002.gguf", part)
    drop(library, "mmproj-big-F16.gguf", PROJECTOR)
    assert names(library) == ["big"]
    found = runnable.weights(library.here("big"))
    assert (len(found.files), found.projector is not None) == (2, True)


def test_what_is_still_being_written_stays_and_is_not_used(library: Library) -> None:
    path = drop(library, "mine.gguf", Q4[:-20])
    assert [(str(model.reference), model.state) for model in library.list()] == [("mine", "error")]
    with pytest.raises(UnsupportedModel, match="truncated"):
        runnable.weights(library.here("mine"))
    assert path.exists()
    path.write_bytes(Q4)
    assert [model.state for model in library.list()] == ["ready"]
    assert not path.exists()


def test_a_link_is_listed_and_stays_where_it_is(library: Library, outside: Path) -> None:
    (outside / "far.gguf").write_bytes(Q4)
    library.store.tree.mkdir(parents=True)
    (library.store.tree / "near.gguf").symlink_to(outside / "far.gguf")
    (library.store.tree / "acme").symlink_to(outside)
    assert "near" in names(library)
    assert (library.store.tree / "near.gguf").is_symlink()
    assert everything(outside).keys() == {"far.gguf"}


def test_a_folder_of_that_name_is_not_written_into(library: Library) -> None:
    drop(library, "mine/notes.txt", b"mine")
    drop(library, "mine.gguf", Q4)
    assert names(library) == ["mine-2"]
    assert everything(library.store.tree / "mine") == {"notes.txt": b"mine"}


def test_a_json_dropped_beside_it_becomes_its_model_json(library: Library) -> None:
    drop(library, "mine.gguf", Q4)
    drop(library, "mine.json", b'{"description": "mine",}')
    assert names(library) == ["mine"]
    assert everything(library.store.tree).keys() == {"mine/mine.gguf", "mine/model.json"}
    assert modeljson.of(library.here("mine")).description == "mine"


def test_what_can_have_no_folder_is_listed_in_place(library: Library) -> None:
    """As in a tree that mdl may not write to; tests may run as root, who may write anywhere."""
    path = drop(library, "mine.gguf", Q4)
    drop(library, "mine", b"a file of that name")
    for number in range(2, dropped.MOST_OF_A_NAME):
        drop(library, f"mine-{number}", b"")
    assert names(library) == ["mine"]
    assert runnable.weights(library.here("mine")).first == path


@pytest.mark.parametrize(
    ("name", "named", "file"),
    [
        (b"ab\xffc.gguf", "ab-c", "ab-c.gguf"),
        (b"a\nb.gguf", "a-b", "a-b.gguf"),
        (b"c:d?.gguf", "c-d", "c-d.gguf"),
        ("\u202ev1.gguf".encode(), "v1", "v1.gguf"),
        (b"UP.GGUF", "UP", "UP.gguf"),
    ],
)
def test_a_file_that_is_called_as_no_file_of_a_version_can_be_gets_a_name(
    library: Library, name: bytes, named: str, file: str
) -> None:
    library.store.tree.mkdir(parents=True)
    (library.store.tree / os.fsdecode(name)).write_bytes(Q4)
    assert [(str(model.reference), model.state) for model in library.list()] == [(named, "ready")]
    assert everything(library.store.tree / named).keys() == {file, "model.json"}
    assert modeljson.read(library.store.tree / named / "model.json").binaries == (file,)


def test_a_zip_dropped_into_the_models_folder_is_imported(library: Library, outside: Path) -> None:
    zipped(outside / "x.zip", {"llama/llama.gguf": Q4, "llama/model.json": b"{}"})
    content = (outside / "x.zip").read_bytes()
    path = drop(library, "x.zip", content[:-30])
    assert names(library) == []
    assert path.exists()  # still being written
    path.write_bytes(content)
    [model] = library.list()
    assert (model.reference.path, model.state) == ("llama", "ready")
    assert all(file.sha256 for file in model.files)
    assert not path.exists()


def test_a_zip_without_a_model_is_called_so_and_not_looked_at_again(library: Library, outside: Path) -> None:
    content = zipped(outside / "x.zip", {"a.txt": b"hello"}).read_bytes()
    drop(library, "x.zip", content)
    assert names(library) == []
    assert everything(library.store.tree) == {"x.zip.unusable": content}


def test_commands_at_once_do_not_fight_over_what_was_dropped(library: Library, tmp_path: Path) -> None:
    for number in range(20):
        drop(library, f"m{number}.gguf", Q4)
    code = "from mdl.cli import run; raise SystemExit(run(['list', '-q']))"
    environment = {**os.environ, "MDL_HOME": str(library.settings.home), "MDL_CONFIG": str(tmp_path / "c")}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    printed = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert sorted(names(library)) == sorted(f"m{number}" for number in range(20))
    assert all(set(lines) <= set(names(library)) for lines in printed)
    assert {len(everything(library.store.tree / f"m{number}")) for number in range(20)} == {2}


def test_an_adoption_that_was_killed_goes_on(library: Library) -> None:
    drop(library, "mine/model.json", b'{"id": "mine"}')
    drop(library, "mine.gguf", Q4)
    assert names(library) == ["mine"]
    assert everything(library.store.tree).keys() == {"mine/mine.gguf", "mine/model.json"}


# Whatever fails or kills a command


@pytest.fixture
def scene(tmp_path: Path) -> Place:
    """A home with a model in it, and an empty cache."""
    place = Place(tmp_path / "home")
    place.cache.joinpath("models").mkdir(parents=True)
    (place.root / "llama").mkdir()
    (place.root / "llama/llama-Q4_K_M.gguf").write_bytes(Q4)
    (place.root / "llama/model.json").write_text('{"description": "mine"}')
    return place


@pytest.mark.timeout(600)
def test_whatever_fails_or_kills_an_import_nothing_is_lost_and_it_gets_there(scene: Place) -> None:
    whole = {"llama:Q4_K_M": {"llama-Q4_K_M.gguf": Q4, "model.json": b'{"description": "mine"}'}}

    def again(place: Place, _: Ran) -> None:
        assert place.run("import", "llama").code == 0
        assert place.contents() == promised(whole)

    go_through(scene, ("import", "llama"), {7}, 8, again, right=({}, whole))


@pytest.mark.timeout(600)
def test_whatever_fails_or_kills_a_list_what_was_dropped_is_not_lost(scene: Place) -> None:
    shutil.move(scene.root / "llama/llama-Q4_K_M.gguf", scene.cache / "models/llama.gguf")
    shutil.move(scene.root / "llama/model.json", scene.cache / "models/llama.json")
    whole = {"llama": {"llama.gguf": Q4, "model.json": b'{"description": "mine"}'}}

    def again(place: Place, ran: Ran) -> None:
        kept = [path for path in place.cache.rglob("*.gguf") if path.read_bytes() == Q4]
        assert len(kept) == 1
        assert ran.code in (0, 7, -9)
        assert place.run("list", "-q").out == "llama\n"
        assert place.contents() == promised(whole)

    assert strike_all(scene, ("list", "-q"), ("rename", "mkdir", "openat", "scandir", "flock"), again) >= 5


@pytest.mark.timeout(600)
def test_an_import_that_is_killed_while_it_moves_loses_nothing(scene: Place) -> None:
    command = ("import", "--move", "llama")
    source = scene.root / "llama"

    def again(place: Place, _: Ran) -> None:
        here = place.root / source.name
        kept = [path for path in place.root.rglob("*.gguf") if path.read_bytes() == Q4]
        assert kept
        assert all(place.library.store.is_whole(model) for model in place.library.list())
        if (here / "llama-Q4_K_M.gguf").exists():
            assert place.run(*command).code == 0
        assert [str(model.reference) for model in place.library.list()] == ["llama:Q4_K_M"]

    assert strike_all(scene, command, ("unlink", "rename", "rmdir", "link", "linkat"), again) >= 5


def strike_all(
    scene: Place, command: tuple[str, ...], calls: tuple[str, ...], then: Callable[[Place, Ran], None]
) -> int:
    """Kill a command at some of its calls, each time on a copy; how many times it was."""
    scene.copy(scene.root.with_name("warm")).run(*command)
    found = [p for p in points(scene.copy(scene.root.with_name("traced")), *command) if p.call in calls]
    chosen = found if FULL else random.Random(SEED).sample(found, min(len(found), 8))
    struck = 0
    for number, point in enumerate(chosen):
        place = scene.copy(scene.root.with_name(f"home{number}"))
        ran, is_struck = strike(place, point, KILLED, *command)
        struck += is_struck
        then(place, ran)
    print(f"\nmdl {command[0]}: {struck} kills survived of {len(chosen)}")
    return struck
