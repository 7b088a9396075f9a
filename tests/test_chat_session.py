"""Sessions: what is kept comes back, a damaged file is an error in a line, a name is never a path."""

import json
import os
import stat
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdl.chat import Options
from mdl.chat.session import Session, begin, load, names, save
from mdl.engine.request import Message, Sampling
from mdl.errors import DiskError, IntegrityError, MdlError, NotFound, UsageError
from mdl.profiles import Profile

TALK = Session(
    model="demo",
    system="Answer in uppercase.",
    messages=(
        Message("user", "My name is Ada."),
        Message("assistant", "Nice to meet you, Ada!", reasoning="Hm.\n"),
    ),
    sampling=Sampling(temperature=0, seed=7, stop=("###", "\n")),
    thinking=True,
    name="work",
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MDL_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "sessions"


def test_a_session_comes_back_as_it_was_kept():
    save(TALK)
    assert load("work") == TALK
    assert names() == ["work"]


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(), st.text()), max_size=5), st.text()
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back(messages, system):
    session = replace(TALK, system=system, messages=tuple(Message(*message) for message in messages))
    save(session)
    assert load("work") == session


def test_a_session_is_its_owners_alone(folder):
    save(TALK)
    assert stat.S_IMODE((folder / "work.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_file_cut_at_any_byte_is_an_error_in_a_line(folder):
    save(TALK)
    data = (folder / "work.json").read_bytes()
    for size in range(len(data)):
        (folder / "work.json").write_bytes(data[:size])
        with pytest.raises(IntegrityError) as failure:
            load("work")
        assert "\n" not in failure.value.message


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"schema": None}, "schema is None"),
        ({"messages": [{"role": "system", "content": "x"}]}, "role 'system'"),
        ({"messages": [{"role": "user"}]}, "no 'content'"),
        ({"messages": [{"role": "user", "content": 1}]}, "not 1"),
        ({"messages": 5}, "int"),
        ({"messages": ["x"]}, "str"),
        ({"system": ["x"]}, "text was expected"),
        ({"thinking": "yes"}, "thinking is 'yes'"),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"sampling": {"temperature": float("nan")}}, "temperature"),
        ({"sampling": {"color": 1}}, "color"),
        ({"sampling": {"stop": [""]}}, "stop"),
        ({"sampling": 3}, "int"),
    ],
)
def test_what_is_no_session_is_refused_with_the_cause(folder, change, cause):
    save(TALK)
    path = folder / "work.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(IntegrityError) as failure:
        load("work")
    assert cause in failure.value.message
    assert failure.value.hint


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b"7", b"[" * 100_000, b'{"schema": 1}'])
def test_any_other_file_is_refused(folder, content):
    folder.mkdir(parents=True)
    (folder / "work.json").write_bytes(content)
    with pytest.raises(IntegrityError):
        load("work")


NOT_NAMES = ["", ".", "..", "../x", "a/b", "a\\b", "/x", ".x", "-x", "_x", "a\0", "a\n", "a\x1b[1m", "x" * 61]
NOT_ON_WINDOWS = ["con", "NUL.old", "COM1", "a.", "a ", "a:b", "*"]


@pytest.mark.parametrize("name", [*NOT_NAMES, *NOT_ON_WINDOWS])
def test_a_name_is_never_a_path(name, tmp_path):
    for attempt in (lambda: load(name), lambda: save(replace(TALK, name=name))):
        with pytest.raises(UsageError):
            attempt()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@given(st.text(max_size=70))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_name_that_is_taken_lies_in_the_folder(folder, name):
    try:
        save(replace(TALK, name=name))
    except UsageError:
        return
    assert load(name).name == name
    assert (folder / f"{name}.json").parent == folder


def test_a_missing_session_tells_which_there_are():
    save(TALK)
    with pytest.raises(NotFound) as failure:
        load("wrok")
    assert failure.value.hint == "there are: work"


def test_a_folder_that_cannot_be_written_is_an_error_in_a_line(folder):
    folder.parent.mkdir()
    folder.write_text("in the way")
    with pytest.raises(DiskError):
        save(TALK)
    assert names() == []


def test_a_failed_write_leaves_the_kept_session_and_nothing_else(folder):
    save(TALK)
    kept = (folder / "work.json").read_bytes()
    long = replace(TALK, messages=(Message("user", "x" * 9000),))
    pid = os.fork()
    if pid == 0:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            save(long)
        except MdlError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert (folder / "work.json").read_bytes() == kept
    assert [path.name for path in folder.iterdir()] == ["work.json"]


def test_options_go_before_what_was_kept():
    save(TALK)
    session = begin(Options("other", sampling={"temperature": 1.5}, session="work"))
    assert session == replace(TALK, model="other", sampling=replace(TALK.sampling, temperature=1.5))
    assert begin(Options("demo", system="", thinking=False, session="work")).system == ""


def test_a_session_that_is_not_there_begins():
    assert begin(Options("demo", session="new")) == Session(model="demo", name="new")


def test_taking_back_leaves_what_came_before():
    session, question = TALK.plus(Message("user", "And?"), Message("assistant", "So.")).undone()
    assert (session, question) == (TALK, "And?")
    with pytest.raises(UsageError):
        Session().undone()


# A model's profile


BRIEF = Profile(
    system="Be brief.",
    sampling={"temperature": 0.0, "stop": ("###",)},
    messages=(Message("user", "1"), Message("assistant", "2")),
)


def test_a_new_conversation_is_as_the_models_profile_has_it_but_for_what_is_asked_for():
    session = begin(Options(profile=BRIEF, sampling={"stop": ("a",)}))
    assert session.system == "Be brief." and session.messages == BRIEF.messages
    assert session.sampling == Sampling(temperature=0.0, stop=("a",))
    assert begin(Options(profile=BRIEF, system="")).system == ""


def test_a_kept_conversation_stays_as_it_was_whatever_the_profile_says():
    save(TALK)
    assert begin(Options("demo", session="work", profile=BRIEF)) == TALK


def test_with_another_model_only_what_was_set_by_the_person_stays():
    session = begin(Options("a", profile=BRIEF, sampling={"top_k": 3}))
    other = Profile(system="Be rude.", sampling={"temperature": 0.5, "top_k": 9})
    moved = session.moved("b", BRIEF, other)
    assert (moved.model, moved.system) == ("b", "Be rude.")
    assert moved.sampling == Sampling(temperature=0.5, top_k=3)
    own = replace(session, system="My own.").moved("b", BRIEF, other)
    assert own.system == "My own." and own.messages == BRIEF.messages
