"""What a line of a conversation does, with the real engine and the model that ships with mdl."""

import os
import signal
import stat
import threading
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

import mdl
from mdl.chat import attachment, setting
from mdl.chat.commands import BY_NAME, COMMANDS, completions, is_open, respond
from mdl.chat.session import Session
from mdl.chat.talk import Talk
from mdl.chat.terminal import Terminal
from mdl.engine import Engine
from mdl.engine.request import EngineFiles, EngineSettings, Message, Sampling
from mdl.errors import DiskError, EngineError, MdlError, NotFound, UnsupportedModel, UsageError
from mdl.profiles import Profile

MODELS = Path(mdl.__file__).parent / "models"
PARIS = "The capital of France is Paris."


class Text(StringIO):
    """A stream that is no terminal, and has the bytes below it that a real one has."""

    @property
    def buffer(self):
        return self

    def write(self, text):
        return super().write(text if isinstance(text, str) else text.decode())


def open_model(name):
    engine = Engine()
    engine.load(
        EngineFiles(MODELS / ("mdl-demo-Q8_0.gguf" if name == "demo" else name)), EngineSettings(context=256)
    )
    return engine


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("MDL_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def engine():
    with open_model("demo") as engine:
        yield engine


@pytest.fixture
def talk(engine):
    return Talk(
        engine,
        Session("demo", sampling=Sampling(temperature=0)),
        lambda name: (open_model(name), Profile()),
        lambda: ["demo", "qwen"],
    )


@pytest.fixture
def lone_talk(talk):
    """One whose engine may come to harm."""
    talk.engine = open_model("demo")
    yield talk
    talk.engine.close()


def ask(talk, text):
    """What is answered to a line, as it is written."""
    result = respond(talk, text)
    terminal = Terminal(Text(), Text(), color=False)
    talk.ask(result.ask, terminal)
    return terminal.out.getvalue().strip()


def test_it_knows_what_was_said(talk):
    ask(talk, "My name is Ada.")
    assert ask(talk, "What is my name?") == "Your name is Ada."


def test_a_new_conversation_knows_nothing_of_the_old_one(talk):
    ask(talk, "My name is Ada.")
    respond(talk, "/clear")
    assert talk.session.messages == ()
    assert "Ada" not in ask(talk, "What is my name?")


def test_what_is_taken_back_was_never_said(talk):
    ask(talk, "My name is Ada.")
    ask(talk, "What is the capital of Italy?")
    assert respond(talk, "/undo").say == "taken back: What is the capital of Italy?"
    assert respond(talk, "/undo").say == "taken back: My name is Ada."
    assert talk.session.messages == ()
    with pytest.raises(UsageError, match="nothing has been said"):
        respond(talk, "/undo")


def test_asking_again_replaces_the_answer(talk):
    ask(talk, "What is the capital of France?")
    respond(talk, "/system Answer in uppercase.")
    assert ask(talk, "/retry") == PARIS.upper()
    assert [message.role for message in talk.session.messages] == ["user", "assistant"]


def test_a_system_text_is_set_shown_and_taken_away(talk):
    respond(talk, '/system """Answer in\nuppercase."""')
    assert talk.session.system == "Answer in\nuppercase."
    assert respond(talk, "/system").say == "Answer in\nuppercase."
    respond(talk, '/system ""')
    assert talk.session.system == ""


def test_thinking_is_switched(talk):
    respond(talk, "/think")
    ask(talk, "What is the capital of France?")
    assert talk.session.messages[-1] == Message("assistant", PARIS, "France has the capital Paris.")
    respond(talk, "/think")
    assert talk.session.thinking is False
    respond(talk, "/think auto")
    assert talk.session.thinking is None
    with pytest.raises(UsageError):
        respond(talk, "/think perhaps")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("temperature 0.5", "temperature", 0.5),
        ("Top-P 0.9", "top_p", 0.9),
        ("top_k 3", "top_k", 3),
        ("seed 42", "seed", 42),
        ("seed none", "seed", None),
        ("max_tokens 5", "max_tokens", 5),
        ("stop ###", "stop", ("###",)),
        ('stop ["a", "\\n"]', "stop", ("a", "\n")),
        ('stop "\\n"', "stop", ("\n",)),
        ("stop none", "stop", ()),
        ("temperature default", "temperature", 0.8),
    ],
)
def test_a_setting_is_set(talk, text, name, value):
    respond(talk, f"/set {text}")
    assert getattr(talk.session.sampling, name) == value


def test_what_ollamas_people_write_after_set_works(talk):
    respond(talk, "/set parameter temperature 0.5")
    assert talk.session.sampling.temperature == 0.5
    assert is_open('/set system """Answer in')
    respond(talk, '/set system """Answer in\nuppercase."""')
    assert talk.session.system == "Answer in\nuppercase."
    respond(talk, "/set nothink")
    respond(talk, "/set verbose")
    assert (talk.session.thinking, talk.stats) == (False, True)
    respond(talk, "/set think")
    respond(talk, "/set quiet")
    assert (talk.session.thinking, talk.stats) == (True, False)


@pytest.mark.parametrize(
    ("text", "cause", "hint"),
    [
        ("temprature 1", "temprature is no setting", "did you mean temperature?"),
        ("zzz 1", "zzz is no setting", "there are: temperature"),
        ("temperature", "no value", "/set NAME VALUE"),
        ("temperature warm", "a number", ""),
        ("temperature nan", "from 0", ""),
        ("temperature 1e9", "from 0", ""),
        ("top_k 1.5", "a whole number", ""),
        ("top_k none", "a whole number", ""),
        ("max_tokens 0", "from 1", ""),
        ('stop ""', "none of them empty", ""),
        ("stop [1]", "none of them empty", ""),
    ],
)
def test_a_setting_that_cannot_be_says_why_and_changes_nothing(talk, text, cause, hint):
    before = talk.session
    with pytest.raises(UsageError) as failure:
        respond(talk, f"/set {text}")
    assert cause in failure.value.message
    assert hint in failure.value.hint
    assert talk.session == before


def test_settings_are_used(talk):
    respond(talk, "/set max_tokens 3")
    assert ask(talk, "Count to 20.") == "1 2 3"
    respond(talk, "/set stop Par")
    respond(talk, "/set max_tokens none")
    assert ask(talk, "What is the capital of France?") == "The capital of France is"


def test_settings_are_shown_as_they_are_typed(talk):
    respond(talk, '/set stop ["a b", "\\n"]')
    rows = dict(respond(talk, "/show").rows)
    assert rows["model"].startswith("demo (llama Q8_0, context ")
    assert (rows["temperature"], rows["stop"], rows["seed"]) == ("0", '"a b" "\\n"', "none")
    assert tuple(name for name, _ in respond(talk, "/set").rows) == setting.telling(talk.session.sampling)
    assert "mirostat" not in rows and "logprobs" not in rows
    respond(talk, "/set mirostat 2")
    respond(talk, '/set dry_sequence_breakers ["a"]')
    rows = dict(respond(talk, "/show").rows)
    assert (rows["mirostat"], rows["dry_sequence_breakers"]) == ("2", '"a"')


@pytest.mark.parametrize(
    ("line", "hint"),
    [("/unod", "did you mean /undo?"), ("/xyzzy", "/? lists them"), ("/usr/bin/x is?", "//")],
)
def test_an_unknown_command_says_what_may_be_meant(talk, line, hint):
    with pytest.raises(UsageError) as failure:
        respond(talk, line)
    assert hint in failure.value.hint


def test_two_slashes_send_a_text_that_starts_with_one(talk):
    assert respond(talk, "//usr/bin").ask == "/usr/bin"


def test_the_usual_spellings_of_other_tools_work():
    for usual, ours in {
        "exit": "bye",
        "quit": "bye",
        "q": "bye",
        "help": "?",
        "h": "?",
        "new": "clear",
    }.items():
        assert BY_NAME[usual] is BY_NAME[ours]
    assert BY_NAME["l"] is BY_NAME["load"]
    assert BY_NAME["s"] is BY_NAME["save"]


def test_help_lists_every_command(talk):
    listed = " ".join(name for name, _ in respond(talk, "/?").rows)
    assert all(f"/{command.names[0]}" in listed for command in COMMANDS)


@pytest.mark.parametrize(
    ("text", "open_", "asked"),
    [
        ('"""a', True, ""),
        ('"""a\nb"""', False, "a\nb"),
        ('"""\na\n"""', False, "a"),
        ('"""', True, ""),
        ('""""""', False, ""),
        ('say """a', False, 'say """a'),
        ("a\nb", False, "a\nb"),
    ],
)
def test_three_quotes_hold_several_lines(talk, text, open_, asked):
    assert is_open(text) is open_
    if not open_:
        assert respond(talk, text).ask == asked


def test_a_conversation_is_kept_under_its_name_from_then_on(talk):
    ask(talk, "My name is Ada.")
    respond(talk, "/save work")
    ask(talk, "What is the capital of France?")
    said = talk.session.messages
    respond(talk, "/clear")
    ask(talk, "Hello")
    respond(talk, "/load work")
    assert talk.session.messages == said
    assert ask(talk, "What is my name?") == "Your name is Ada."


def test_saving_replaces_another_session_only_when_told_to(talk):
    respond(talk, "/save work")
    respond(talk, "/clear")
    with pytest.raises(UsageError, match="there is a session work already"):
        respond(talk, "/save work")
    ask(talk, "Hello")
    respond(talk, "/save work!")
    assert len(talk.session.messages) == 2
    with pytest.raises(UsageError):
        respond(talk, "/save ../x")
    assert talk.session.name == "work"


def test_a_session_of_another_model_says_so(talk):
    talk.session = replace(talk.session, model="qwen")
    respond(talk, "/save work")
    talk.session = replace(talk.session, model="demo")
    assert "/model qwen" in respond(talk, "/load work").say
    assert talk.session.model == "demo"


def test_a_conversation_goes_on_with_another_model(lone_talk):
    ask(lone_talk, "My name is Ada.")
    old = lone_talk.engine
    respond(lone_talk, "/model mdl-demo-Q8_0.gguf")
    assert lone_talk.session.model == "mdl-demo-Q8_0.gguf"
    assert lone_talk.engine is not old
    assert old.pid is None
    assert ask(lone_talk, "What is my name?") == "Your name is Ada."


def test_a_model_that_cannot_be_loaded_leaves_the_conversation_as_it_was(lone_talk, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((MODELS / "mdl-demo-Q8_0.gguf").read_bytes()[:100_000])
    ask(lone_talk, "My name is Ada.")
    with pytest.raises(UnsupportedModel):
        respond(lone_talk, f"/model {broken}")
    assert lone_talk.session.model == "demo"
    assert ask(lone_talk, "What is my name?") == "Your name is Ada."


def test_a_full_context_tells_the_numbers_and_what_to_do(talk):
    ask(talk, "My name is Ada.")
    before = talk.session
    with pytest.raises(UsageError) as failure:
        ask(talk, "word " * 1000)
    assert "256" in failure.value.message
    assert "/undo" in failure.value.hint
    assert "/clear" in failure.value.hint
    assert talk.session == before
    assert ask(talk, "What is my name?") == "Your name is Ada."


def test_an_answer_that_fills_the_context_says_so(talk):
    respond(talk, "/set temperature 100")
    for text in ("top_k 0", "top_p 1", "min_p 0", "seed 3"):
        respond(talk, f"/set {text}")
    reply = talk.ask("Tell me a story.", Terminal(Text(), Text(), color=False))
    assert talk.why_cut(reply) == "the context of 256 tokens is full: /undo or /clear makes room"
    respond(talk, "/set max_tokens 4")
    respond(talk, "/clear")
    reply = talk.ask("Tell me a story.", Terminal(Text(), Text(), color=False))
    assert talk.why_cut(reply) == "cut at max_tokens (4)"


def test_the_use_of_the_context_is_told(talk):
    assert respond(talk, "/context").say == "0 of 256 tokens (0 %)"
    ask(talk, "My name is Ada.")
    used, context = talk.used()
    assert (used, context) == (talk.engine.count(talk.session.chat()), 256)
    assert respond(talk, "/context").say == f"{used} of 256 tokens ({used * 100 // 256} %)"


def test_an_engine_that_dies_costs_one_answer(lone_talk):
    ask(lone_talk, "My name is Ada.")
    os.kill(lone_talk.engine.pid, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (lone_talk.engine.pid, signal.SIGKILL)).start()
    with pytest.raises(EngineError):
        ask(lone_talk, "What is my name?")
    assert ask(lone_talk, "/retry") == "Your name is Ada."


def test_a_text_file_goes_with_the_next_prompt_and_no_other(talk, tmp_path):
    file = tmp_path / "my notes.txt"
    file.write_text("one\n```\ntwo\n")
    respond(talk, f"/attach {file}")
    assert respond(talk, "/attach").say == "with the next prompt: my notes.txt"
    ask(talk, "What is this?")
    assert talk.session.messages[0].content == "What is this?\n\nmy notes.txt:\n````\none\n```\ntwo\n````"
    ask(talk, "Hello")
    assert talk.session.messages[2].content == "Hello"


def test_a_path_may_be_quoted_as_terminals_do(tmp_path):
    (tmp_path / "my notes.txt").write_text("x")
    for written in (f"'{tmp_path}/my notes.txt'", f"{tmp_path}/my\\ notes.txt", f'"{tmp_path}/my notes.txt"'):
        assert attachment.read(written) == ("my notes.txt", "x")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"\x89PNG\r\n\x1a\n", "a PNG image: images are not supported yet"),
        (b"\xff\xd8\xff\xe0", "a JPEG image: images are not supported yet"),
        (b"%PDF-1.7", "a PDF document"),
        (b"GGUF\x03", "a model"),
        (b"abc\x00def", "binary"),
        (b"abc\xffdef", "byte 3 is not valid UTF-8"),
        (b"x" * (attachment.LARGEST + 1), "larger than 1,000,000 bytes"),
    ],
)
def test_what_is_no_text_is_not_attached(talk, tmp_path, content, cause):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError) as failure:
        respond(talk, f"/attach {tmp_path}/file")
    assert cause in failure.value.message
    assert failure.value.hint
    assert talk.attachments == ()


def test_what_cannot_be_read_is_not_attached(talk, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("missing", "", "pipe", "\0"):
        with pytest.raises((NotFound, DiskError)):
            attachment.read(f"{tmp_path}/{path}")
    with pytest.raises(MdlError):
        attachment.read("~nobody-of-this-name/x")


def test_windows_text_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffé".encode("utf-16-le"))
    assert attachment.read(str(tmp_path / "a.txt")) == ("a.txt", "é")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfa")
    assert attachment.read(str(tmp_path / "b.txt")) == ("b.txt", "a")


def test_what_may_follow_is_suggested(talk, tmp_path):
    def suggested(text):
        return [candidate for candidate, _ in completions(talk, text)]

    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    respond(talk, "/save work")
    assert suggested("/s") == ["/system ", "/set ", "/show", "/save ", "/stats"]  # a space where more follows
    assert suggested("/model q") == ["qwen"]
    assert suggested("/set temp") == ["temperature "]
    assert suggested("/load ") == ["work"]
    assert suggested(f"/attach {tmp_path}/") == [
        f"{tmp_path}/{name}" for name in ("data/", "folder/", "notes.txt")
    ]
    assert suggested("Hello") == suggested("/nothing x") == []


def test_a_history_that_cannot_be_written_costs_nothing(tmp_path):
    from mdl.chat.prompt import _history

    kept = _history(tmp_path / "data" / "history")
    kept.append_string("Hello")
    assert stat.S_IMODE((tmp_path / "data" / "history").stat().st_mode) == 0o600
    (tmp_path / "file").touch()
    _history(tmp_path / "file" / "history").append_string("Hello")


def test_default_is_what_the_models_profile_says_and_clear_begins_as_it_does(talk):
    first = (Message("user", "My name is Ada."), Message("assistant", "Hello Ada!"))
    talk.profile = Profile(sampling={"temperature": 0.25, "stop": ("###",)}, messages=first)
    respond(talk, "/set temperature 1")
    assert respond(talk, "/set temperature default").say == "temperature is 0.25"
    assert respond(talk, "/set stop default").say == 'stop is "###"'
    assert respond(talk, "/set top_k default").say == "top_k is 40"
    respond(talk, "/clear")
    assert talk.session.messages == first
