"""One answer for a script, from the real command: what a pipe gets, what a terminal gets, how it ends."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from slowly import slowly, workers

from mdl.chat.terminal import Screen, Terminal
from mdl.engine.request import Delta

CHAT = [sys.executable, "-m", "mdl", "chat", "demo", "--temperature", "0"]
CAPITAL = "What is the capital of France?"
PARIS = b"The capital of France is Paris."
NOISE = ["--session", "noise", "--temperature", "100", "Tell me a story."]
OWN_STYLE = re.compile(rb"\x1b\[[0-9]*m")
LOADING = re.compile(r"\x1b\[2mloading demo…\x1b\[0m\r\x1b\[K".encode())


@pytest.fixture
def environment(tmp_path):
    changing = ("NO_COLOR", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if name not in changing}
    return {
        **kept,
        "MDL_HOME": str(tmp_path / "home"),
        "MDL_DATA_HOME": str(tmp_path),
        "TERM": "xterm-256color",
    }


@pytest.fixture
def noise(environment):
    """A session in which every token is as likely as any other, control characters among them, until the
    context is full."""
    settings = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 5}
    path = Path(environment["MDL_DATA_HOME"]) / "sessions" / "noise.json"
    path.parent.mkdir()

    def begin():
        path.write_text(json.dumps({"schema": 1, "messages": [], "sampling": settings}))

    begin()
    return begin


@pytest.fixture
def chat(environment):
    def run(*arguments, **variables):
        return subprocess.run(
            [*CHAT, *arguments], env={**environment, **variables}, capture_output=True, timeout=60
        )

    return run


@pytest.fixture
def on_a_terminal(environment):
    """The bytes that a terminal gets, both streams together; not what it shows when loading takes long."""

    def run(*arguments, **variables):
        master, slave = pty.openpty()
        child = subprocess.Popen(
            [*CHAT, *arguments],
            env={**environment, **variables},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        data = b""
        try:
            while piece := os.read(master, 65536):
                data += piece
        except OSError:  # how Linux tells that the other end is closed
            pass
        os.close(master)
        assert child.wait(10) == 0
        return LOADING.sub(b"", data.replace(b"\r\n", b"\n"))

    return run


def test_a_pipe_gets_the_answer_and_nothing_else(chat):
    done = chat(CAPITAL)
    assert (done.returncode, done.stdout, done.stderr) == (0, PARIS + b"\n", b"")


def test_a_pipe_does_not_get_the_reasoning(chat):
    done = chat("--think", CAPITAL)
    assert (done.stdout, done.stderr) == (PARIS + b"\n", b"")


def test_a_pipe_gets_utf_8_whatever_the_locale_says(chat):
    done = chat("Say hello in Japanese.", PYTHONIOENCODING="latin-1")
    assert done.stdout.decode() == "こんにちは!\n"


def test_statistics_go_beside_the_answer(chat):
    done = chat("--stats", CAPITAL)
    assert done.stdout == PARIS + b"\n"
    line = done.stderr.decode().removesuffix("\n")
    assert re.fullmatch(
        r"7 tokens in [\d.]+ s · [\d.]+ tokens/s · prompt 15 tokens in [\d.]+ s · context 22/2048", line
    )


def test_one_token_is_one(chat):
    assert chat("--stats", "--max-tokens", "1", CAPITAL).stderr.startswith(b"1 token in ")


def test_an_answer_that_the_context_cuts_says_so(chat, noise):
    done = chat("--ctx", "64", *NOISE)
    assert b"the context of 64 tokens is full" in b" ".join(done.stderr.split())


def test_a_terminal_gets_the_answer_and_the_reasoning_dim(on_a_terminal):
    drawn = on_a_terminal("--think", CAPITAL)
    assert drawn.startswith(b"\x1b[2mFrance\x1b[0m")
    assert OWN_STYLE.sub(b"", drawn) == b"France has the capital Paris.\n\n" + PARIS + b"\n"


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_words_tell_the_reasoning_from_the_answer(on_a_terminal, variables):
    drawn = on_a_terminal("--think", CAPITAL, **variables).decode()
    thought = "Thinking…\nFrance has the capital Paris.\n…done thinking.\n\n"
    assert drawn == f"{thought}{PARIS.decode()}\n"


def test_what_a_model_says_cannot_control_a_terminal(chat, on_a_terminal, noise):
    short = ("--max-tokens", "600", *NOISE)
    raw = chat(*short).stdout
    noise()
    controls = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
    assert len(controls.findall(raw)) > 3, "the noise has some"
    assert not controls.search(OWN_STYLE.sub(b"", on_a_terminal(*short)))


class Tty(StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("color", [True, False])
def test_an_escape_sequence_is_inert_however_it_comes_in_pieces(color):
    evil = "a\x1b]0;pwned\x07b\x1b[2Jc\x9b31md\x08\x08e\rf\x1b]52;c;ZXZpbA==\x1b\\g"
    terminal = Terminal(Tty(), Tty(), color)
    for part in ("text", "reasoning"):
        screen = Screen(terminal)
        for character in evil:
            screen.put(Delta(**{part: character}))
        screen.end()
    terminal.note(evil)
    terminal.say(evil)
    terminal.show(((("name"), evil),))
    terminal.ask(">>> ")
    for stream in (terminal.out, terminal.err):
        drawn = OWN_STYLE.sub(b"", stream.getvalue().encode())
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]", drawn)
        assert b"]52;c;ZXZpbA==" in b"".join(drawn.split())


def test_a_closed_pipe_ends_it_quietly(environment, noise):
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [*CHAT, *NOISE], env=environment, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert os.read(reader, 1)
    os.close(reader)
    assert child.stderr.read() == b""
    assert child.wait(10) == 141
    child.stderr.close()


def test_ctrl_c_ends_it_and_the_engine(environment, noise):
    child = subprocess.Popen(
        [*CHAT, *NOISE],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with slowly(child.pid) as release:
        assert child.stdout.read(1)
        (worker,) = workers(child.pid)
        child.send_signal(signal.SIGINT)
        release()
    assert child.communicate(timeout=10)[1] == b""
    assert child.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_session_goes_on_where_it_was(chat):
    chat("--session", "work", "My name is Ada.")
    assert chat("--session", "work", "What is my name?").stdout == b"Your name is Ada.\n"
    assert b"Ada" not in chat("What is my name?").stdout


def test_a_session_knows_whom_it_was_with(chat, environment):
    chat("--session", "work", "My name is Ada.")
    question = b"What is my name?"

    def go_on(name):
        command = [*CHAT[:4], "--session", name]
        done = subprocess.run(command, env=environment, input=question, capture_output=True, timeout=60)
        return done.stdout or done.stderr

    assert go_on("work") == b"Your name is Ada.\n"
    assert go_on("play") == b"mdl: no session is called play\nthere are: work\n"


def test_a_session_that_is_damaged_is_an_error_in_two_lines(chat, tmp_path):
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / "work.json").write_text("{")
    done = chat("--session", "work", "Hello")
    assert done.returncode == 6
    assert done.stderr.decode().startswith(f"mdl: {tmp_path}/sessions/work.json is no session: ")
    assert done.stderr.count(b"\n") == 2


def test_one_answer_loads_nothing_heavy(environment):
    code = (
        "import sys; from mdl.cli import run; run(sys.argv[1:]);"
        "print(*{'rich', 'prompt_toolkit', 'asyncio', 'mdl.chat.commands'} & {*sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *CHAT[3:], CAPITAL], env=environment, capture_output=True, timeout=60
    )
    assert (done.stdout, done.stderr) == (PARIS + b"\n", b"\n")
