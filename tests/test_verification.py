"""What is damaged in a cache is found, told, not used, and mended by fetching only that."""

import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pexpect
import pytest
from faults import Place, Ran, mounted
from ggufmaker import model
from hub import Hub, sha256
from test_fetch import contents, transferred

from mdl import runnable
from mdl.errors import UnsupportedModel
from mdl.library import Library
from mdl.model import METADATA_NAME, Model
from mdl.verification import Finding, Report, Verification, everything

SEED = 20261121
NAME, OTHER = "org/model-GGUF", "org/other-GGUF"
PARTS = {
    f"m-Q8_0-0000{number}-of-00003.gguf": model(
        {"split.no": number - 1, "split.count": 3, "split.tensors.count": 3, "general.name": f"part {number}"}
    )
    for number in (1, 2, 3)
}
FILES = {"README.md": b"# A model", **PARTS}
SECOND = "m-Q8_0-00002-of-00003.gguf"
DEMO = Path(__file__).parent.parent / "mdl" / "models" / "mdl-demo-Q8_0.gguf"


@pytest.fixture
def found(hub: Hub, library: Library) -> Model:
    """A model of four files that is whole."""
    hub.add(NAME, FILES)
    downloaded = library.download(NAME)
    hub.forget()
    return downloaded


@pytest.fixture
def place(hub: Hub, tmp_path: Path) -> Place:
    (tmp_path / "place").mkdir()
    hub.add(NAME, FILES)
    return Place(tmp_path / "place", hub.url)


def verify(library: Library, **options: bool | float) -> Report:
    return Verification(library.store, everything(library.store), everything=True, **options).run()


def damage(library: Library, **options: bool | float) -> list[tuple[str, str]]:
    """Kind and file name of what is damaged."""
    return [(finding.kind, finding.path.name) for finding in verify(library, **options).damage]


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Turn one bit round, as a disk does: the file keeps its times."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# What is found


def test_what_is_whole_is_found_to_be_whole_and_stays_as_it_is(library: Library, found: Model) -> None:
    before = (found.folder / METADATA_NAME).stat()
    report = verify(library)
    assert (report.findings, report.versions, report.contents) == ([], 1, 4)
    assert report.size == sum(map(len, FILES.values()))
    assert (found.folder / METADATA_NAME).stat() == before
    assert library.download(NAME) == found


def test_every_flipped_bit_is_found_and_mended(library: Library, hub: Hub, found: Model) -> None:
    dice = random.Random(SEED)
    for _ in range(25):
        name, content = dice.choice(list(FILES.items()))
        flip(found.folder / name, dice.randrange(len(content)), dice.randrange(8))
        assert damage(library) == [("content", name)]
        library.download(NAME)
        assert contents(found.folder) == FILES
        assert verify(library).findings == []


def cut(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 100)


def lengthen(path: Path) -> None:
    path.chmod(0o644)
    with path.open("ab") as file:
        file.write(b"more")


def link_elsewhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def replace_by_another(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(bytes(len(content)))


def flip_one(path: Path) -> None:
    flip(path, 77)


DAMAGES: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    # what is done to a file, the kind that it is found to be, whether its content has to come again
    "flipped": (flip_one, "content", True),
    "cut": (cut, "size", True),
    "longer": (lengthen, "size", True),
    "missing": (Path.unlink, "missing", False),
    "linked": (link_elsewhere, "link", False),
    "another": (replace_by_another, "content", False),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_found_and_only_it_is_fetched_again(
    library: Library, hub: Hub, found: Model, name: str
) -> None:
    break_it, kind, comes_again = DAMAGES[name]
    break_it(found.folder / SECOND)
    assert damage(library) == [(kind, SECOND)]
    mended = library.download(NAME)
    assert contents(mended.folder) == FILES
    assert transferred(hub) == ([SECOND] if comes_again else [])
    assert not hub.requests("/resolve-cache/")
    assert verify(library).findings == []
    assert library.list() == [mended]
    assert (mended.folder / SECOND).stat().st_nlink == 2


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "flipped" and name != "another"])
def test_without_a_look_before_a_download_notices_what_costs_no_reading(
    library: Library, hub: Hub, found: Model, name: str
) -> None:
    break_it, _, comes_again = DAMAGES[name]
    break_it(found.folder / SECOND)
    assert contents(library.download(NAME).folder) == FILES
    assert transferred(hub) == ([SECOND] if comes_again else [])


def test_a_small_file_that_is_damaged_is_fetched_alone(library: Library, hub: Hub, found: Model) -> None:
    flip(found.folder / "README.md", 0)
    assert damage(library) == [("content", "README.md")]
    library.download(NAME)
    assert contents(found.folder) == FILES
    assert transferred(hub) == []
    assert len(hub.requests("/resolve-cache/")) == 1


def test_one_download_mends_every_version_that_shares_the_content(
    library: Library, hub: Hub, found: Model
) -> None:
    hub.add(OTHER, {"renamed-Q8_0.gguf": PARTS[SECOND], "own-F16.gguf": model({"general.name": "own"})})
    other = library.download(f"{OTHER}:Q8_0")
    untouched = library.download(f"{OTHER}:F16")
    flip(found.folder / SECOND, 50)
    assert sorted(damage(library)) == [("content", SECOND), ("content", "renamed-Q8_0.gguf")]
    hub.forget()
    library.download(NAME)
    assert transferred(hub) == [SECOND]
    assert verify(library).findings == []
    assert library.store.find(other.reference) == other
    assert library.store.find(untouched.reference) == untouched
    assert (other.folder / "renamed-Q8_0.gguf").stat().st_nlink == 3


def test_fetched_anew_a_content_is_still_shared(library: Library, hub: Hub, found: Model) -> None:
    hub.add(OTHER, {"renamed-Q8_0.gguf": PARTS[SECOND]})
    other = library.download(OTHER)
    library.download(NAME, force=True)
    assert (found.folder / SECOND).samefile(other.folder / "renamed-Q8_0.gguf")
    assert library.store.find(other.reference) == other


def test_a_version_that_is_being_removed_is_not_brought_back(
    library: Library, hub: Hub, found: Model
) -> None:
    hub.add(OTHER, {"renamed-Q8_0.gguf": PARTS[SECOND]})
    other = library.download(OTHER)
    flip(found.folder / SECOND, 50)
    verify(library)
    with library.store.locks.exclusive(other.folder):
        library.download(NAME)
    left = library.store.find(other.reference)
    assert left is not None
    assert left.damaged == ("renamed-Q8_0.gguf",)
    assert transferred(hub) == [SECOND]
    hub.forget()
    library.download(OTHER)  # which is mended when it is asked for
    assert (transferred(hub), verify(library).findings) == ([], [])


def test_a_plan_says_what_a_mending_would_fetch(library: Library, hub: Hub, found: Model) -> None:
    flip(found.folder / SECOND, 50)
    verify(library)
    assert [file.name for file in library.plan(NAME).missing] == [SECOND]


def test_a_content_whose_name_is_lost_is_had_back_from_the_version(
    library: Library, hub: Hub, found: Model
) -> None:
    shutil.rmtree(library.store.blobs)
    assert verify(library).damage == []
    library.download(NAME)
    assert (transferred(hub), hub.requests("/resolve-cache/")) == ([], [])
    assert {path.stat().st_nlink for path in library.store.blobs.iterdir()} == {2}
    assert len(list(library.store.blobs.iterdir())) == 4


def test_unreadable_metadata_are_damage_that_a_download_mends(
    library: Library, hub: Hub, found: Model
) -> None:
    (found.folder / METADATA_NAME).write_bytes(b"\x00\xff")
    assert damage(library) == [("metadata", METADATA_NAME)]
    assert replace(library.download(NAME), modified=found.modified) == found
    assert transferred(hub) == []
    assert verify(library).findings == []


def test_of_parts_on_purpose_only_these_are_mended(library: Library, hub: Hub) -> None:
    hub.add(NAME, FILES)
    partial = library.download(NAME, include=["*00001*", "README*"])
    first = partial.files[0].name
    flip(partial.folder / first, 9)
    [finding] = verify(library).damage
    hub.forget()
    command, reference, *options = finding.mend.removeprefix("mdl ").split()
    assert (command, reference) == ("download", f"huggingface.co/{NAME}:Q8_0")
    library.download(reference, include=[word for word in options if word != "--include"])
    assert transferred(hub) == [first]
    assert verify(library).findings == []


def test_a_foreign_file_is_told_and_is_no_damage(library: Library, found: Model) -> None:
    (found.folder / "deep").mkdir()
    (found.folder / "deep" / "mine.txt").write_text("mine")
    (library.store.blobs / "stranger").write_text("?")
    report = verify(library)
    assert sorted((finding.kind, finding.path.name) for finding in report.findings) == [
        ("foreign", "mine.txt"),
        ("foreign", "stranger"),
    ]
    assert report.damage == []
    assert (library.store.blobs / "stranger").exists()


def test_what_was_put_there_by_hand_has_no_digests_and_its_header_is_read(library: Library) -> None:
    folder = library.store.tree / "quay.io" / "me" / "mine"
    folder.mkdir(parents=True)
    (folder / "mine.gguf").write_bytes(DEMO.read_bytes())
    assert [finding.kind for finding in verify(library).findings] == ["unchecked"]
    (folder / "mine.gguf").write_bytes(DEMO.read_bytes()[:5000])
    assert damage(library) == [("header", "mine")]


def test_contents_that_nothing_uses_are_checked_too_and_forgotten_when_damaged(
    library: Library, found: Model
) -> None:
    for name, content in (("a" * 64, b"wrong"), (sha256(b"right"), b"right")):
        library.store.blob(name).write_bytes(content)
    assert damage(library) == [("content", "a" * 64)]
    assert not library.store.blob("a" * 64).exists()
    assert library.store.blob(sha256(b"right")).exists()


def test_named_versions_are_looked_at_alone(library: Library, hub: Hub, found: Model, place: Place) -> None:
    hub.add(OTHER, {"a-Q8_0.gguf": model({"general.name": "a"}), "a-F16.gguf": model({"general.name": "f"})})
    both = [library.download(f"{OTHER}:{version}") for version in ("Q8_0", "F16")]
    flip(found.folder / SECOND, 3)
    assert sorted(library.meant(OTHER), key=str) == sorted(both, key=str)
    assert Verification(library.store, library.meant(OTHER)).run().findings == []
    assert Verification(library.store, library.meant(f"{OTHER}:F16")).run().versions == 1


# How it is recorded


def test_damage_is_listed_and_not_run_until_it_is_mended(library: Library, found: Model) -> None:
    flip(found.folder / SECOND, 60)
    verify(library)
    [listed] = library.list()
    assert listed.damaged == (SECOND,)
    with pytest.raises(UnsupportedModel) as refusal:
        runnable.weights(library.here(NAME))
    assert refusal.value.hint == f"mdl download huggingface.co/{NAME}:Q8_0"
    runnable.weights(library.download(NAME))


def test_damage_in_what_people_read_stops_nobody(library: Library, found: Model) -> None:
    flip(found.folder / "README.md", 1)
    verify(library)
    assert library.list()[0].damaged == ("README.md",)
    runnable.weights(library.here(NAME))


def test_what_is_right_again_is_not_marked_any_more(library: Library, found: Model) -> None:
    flip(found.folder / SECOND, 60)
    verify(library)
    flip(found.folder / SECOND, 60)
    assert verify(library).findings == []
    assert library.list() == [found]


def test_killed_before_the_versions_were_marked_a_download_mends_all_the_same(
    library: Library, hub: Hub, found: Model
) -> None:
    flip(found.folder / SECOND, 60)
    digest = sha256(PARTS[SECOND])
    library.store.forget(digest, os.lstat(found.folder / SECOND))
    assert library.store.find(found.reference) == found
    library.download(NAME)
    assert (contents(found.folder), transferred(hub)) == (FILES, [SECOND])


def test_marked_though_its_content_kept_its_name_a_download_mends_all_the_same(
    library: Library, hub: Hub, found: Model
) -> None:
    flip(found.folder / SECOND, 60)
    library.store.mark(found, [SECOND])
    library.download(NAME)
    assert (contents(found.folder), transferred(hub)) == (FILES, [SECOND])


def test_a_version_that_took_the_place_of_a_damaged_one_is_not_marked(
    library: Library, hub: Hub, found: Model
) -> None:
    hub.repositories[NAME].commit({**FILES, SECOND: model({"general.name": "newer", "split.count": 3})})
    newer = library.download(NAME)
    library.store.mark(found, [SECOND])
    assert library.store.find(found.reference) == newer


def test_a_damaged_model_stays_where_it_is_when_nobody_can_mend_it(
    library: Library, hub: Hub, found: Model
) -> None:
    flip(found.folder / SECOND, 60)
    before = contents(found.folder)
    verify(library)
    offline = Library(replace(library.settings, offline=True))
    assert offline.download(NAME).damaged == (SECOND,)
    assert contents(found.folder) == before
    assert hub.requests() == []


def test_what_answers_goes_on_while_its_model_is_mended(place: Place, hub: Hub) -> None:
    hub.add("org/demo-GGUF", {"demo-Q8_0.gguf": DEMO.read_bytes(), "LICENSE": b"MIT"})
    assert place.run("download", "org/demo-GGUF").code == 0
    [found] = place.library.list()
    child = pexpect.spawn(
        sys.executable, ["-m", "mdl", "chat", "demo-GGUF"], env=place.environment, timeout=30
    )
    child.expect(">>>")
    flip(found.folder / "demo-Q8_0.gguf", DEMO.stat().st_size - 1)
    assert place.run("verify").code == 6
    assert place.run("download", "org/demo-GGUF").code == 0
    child.sendline("Hello")
    child.expect("help you")
    assert place.run("rm", "-y", "org/demo-GGUF").code == 8
    child.sendline("/bye")
    child.expect(pexpect.EOF)
    child.close()
    assert place.run("verify").code == 0


# Less than everything


def test_quick_reads_nothing_but_what_was_written_to(library: Library, found: Model) -> None:
    assert verify(library, quick=True)[1:4] == (1, 0, 0)
    flip(found.folder / SECOND, 5)
    assert damage(library, quick=True) == []  # a disk's own damage takes a full look
    os.utime(found.folder / SECOND)
    report = verify(library, quick=True)
    assert [finding.path.name for finding in report.damage] == [SECOND]
    assert report.contents == 1
    again = verify(library, quick=True)  # what is known to be damaged is not forgotten
    assert [finding.path.name for finding in again.damage] == [SECOND]


def test_a_sample_reads_its_share_and_comes_round_to_everything(library: Library, hub: Hub) -> None:
    files = {f"m{n}-Q8_0.gguf": model({"general.name": f"{n:02}"}) for n in range(20)}
    hub.add(NAME, files)
    for name in files:
        library.download(f"{NAME}:{name}")
    flip(library.store.blob(sha256(files["m7-Q8_0.gguf"])), 40)
    reports = [verify(library, share=0.1) for _ in range(10)]
    assert {report.contents for report in reports} <= {2, 3}
    assert {finding.path.name for report in reports for finding in report.damage} == {"m7-Q8_0.gguf"}


# The command


def test_the_command_tells_each_finding_in_a_line_and_how_to_mend_it(place: Place) -> None:
    assert place.run("download", NAME).code == 0
    whole = place.run("verify")
    assert (whole.code, whole.out) == (0, "")
    folder = place.cache / "models/huggingface.co" / NAME / "Q8_0"
    flip(folder / SECOND, 8)
    (folder / "README.md").unlink()
    (folder / "mine\x1b[5m").write_text("mine")
    ran = place.run("verify", "model-GGUF")
    where, mend = f"models/huggingface.co/{NAME}/Q8_0", f"mdl download huggingface.co/{NAME}:Q8_0"
    lines = sorted(ran.out.splitlines())
    assert lines[0] == f"{where}/README.md: it is missing; {mend}"
    assert lines[1].startswith(f"{where}/{SECOND}: its content is damaged: sha256 ")
    assert lines[1].endswith(f"; {mend}")
    assert lines[2].startswith(f"{where}/mine\\x1b[5m: mdl did not put it there")
    assert (ran.code, ran.error) == (6, ["mdl: 2 files are damaged or missing", mend])
    listed = place.run("list")
    assert "Q8_0 (damaged)" in listed.out
    refused = place.run("chat", NAME, "hi")
    assert (refused.code, refused.error[-1]) == (9, mend)
    assert place.run(*mend.split()[1:]).code == 0
    assert place.run("verify").code == 0


def test_the_findings_for_a_script_are_one_document(place: Place) -> None:
    assert place.run("download", NAME).code == 0
    found = place.library.list()[0]
    (found.folder / SECOND).unlink()
    ran = place.run("verify", "--json", "--quick")
    assert ran.code == 6
    document = json.loads(ran.out)
    assert document["findings"] == [
        {
            "kind": "missing",
            "damage": True,
            "reference": str(found.reference),
            "path": str(found.folder / SECOND),
            "what": "it is missing",
            "mend": f"mdl download {found.reference}",
        }
    ]
    assert (document["schema"], document["damaged"], document["versions"]) == (1, 1, 1)


@pytest.mark.parametrize("text", ["0", "101%", "-1", "lots", "nan", ""])
def test_a_sample_has_to_be_a_percentage(place: Place, text: str) -> None:
    assert place.run("verify", "--sample", text).code == 2


def test_what_is_not_in_the_cache_is_looked_at_by_its_header(place: Place, tmp_path: Path) -> None:
    ran = place.run("verify", "demo")
    assert (ran.code, ran.out.count("\n")) == (0, 1)
    assert "only its header was read" in ran.out
    assert place.run("verify", "org/nothing").code == 3


def test_in_a_cache_that_is_read_only_damage_is_told_though_not_noted(place: Place) -> None:
    assert place.run("download", NAME).code == 0
    flip(place.library.list()[0].folder / SECOND, 8)
    with mounted(place, "mount --bind $CACHE $CACHE; mount -o remount,ro,bind $CACHE") as inside:
        ran = place.run("verify", before=inside)
    assert (ran.code, ran.out.count("\n"), len(ran.error)) == (6, 1, 2), ran
    assert "could not be noted: read-only" in ran.err.lower()


# Without hard links

WITHOUT_LINKS = """
#include <errno.h>
int link(const char *old, const char *new) { errno = EPERM; return -1; }
int linkat(int a, const char *old, int b, const char *new, int flags) { errno = EPERM; return -1; }
"""


@pytest.fixture
def copying(place: Place, tmp_path: Path) -> Iterator[Place]:
    """A place where every hard link is refused, as on FAT and some network file systems."""
    source, library = tmp_path / "nolinks.c", tmp_path / "nolinks.so"
    source.write_text(WITHOUT_LINKS)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    yield replace(place, extra={"LD_PRELOAD": str(library)})


def whole(ran: Ran) -> str:
    assert ran.code == 0, ran
    return ran.out


def test_without_hard_links_each_copy_is_checked_and_mended(copying: Place, hub: Hub) -> None:
    whole(copying.run("download", NAME))
    [found] = copying.library.list()
    store = copying.library.store
    assert (found.folder / SECOND).stat().st_nlink == 1
    assert stat.S_IMODE((found.folder / SECOND).stat().st_mode) == 0o444
    whole(copying.run("verify"))
    hub.forget()
    whole(copying.run("download", NAME))
    cut(found.folder / SECOND)
    whole(copying.run("download", NAME))
    assert (contents(found.folder), transferred(hub)) == (FILES, [])
    flip(found.folder / SECOND, 10)  # the version's own copy: the other one serves
    assert copying.run("verify").code == 6
    whole(copying.run("download", NAME))
    assert transferred(hub) == []
    flip(store.blob(sha256(PARTS[SECOND])), 10)  # the other one: the version's own serves
    assert copying.run("verify").code == 6
    whole(copying.run("verify"))
    whole(copying.run("download", NAME))
    assert transferred(hub) == []
    for path in (found.folder / SECOND, store.blob(sha256(PARTS[SECOND]))):
        flip(path, 10)
    assert copying.run("verify").code == 6
    whole(copying.run("download", NAME))
    assert transferred(hub) == [SECOND]
    whole(copying.run("verify"))
    assert contents(found.folder) == FILES


def test_a_finding_knows_whether_it_is_damage() -> None:
    kinds = ("missing", "size", "content", "link", "metadata", "header", "foreign", "unchecked")
    assert [Finding(kind, Path(), "").is_damage for kind in kinds] == [True] * 6 + [False] * 2
