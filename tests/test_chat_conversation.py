"""The conversation as a person sees it: the real command in a pseudo-terminal, and the screen it draws."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pyte
import pytest
from slowly import slowly, workers

import mdl

MODEL = Path(mdl.__file__).parent / "models" / "mdl-demo-Q8_0.gguf"
HINT = "A message, or /? for help"
PARIS = "The capital of France is Paris."
SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[=>])")


class Person:
    """Types, and looks at the screen."""

    def __init__(self, *arguments, size=(80, 24), **variables):
        kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        self.screen = pyte.Screen(*size)
        self.stream = pyte.Stream(self.screen)
        self.raw = ""  # all that the terminal got
        self.heard = ""  # what of it was not waited for yet
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "mdl", "chat", *arguments],
            env={**kept, "TERM": "xterm-256color", **variables},
            dimensions=(size[1], size[0]),
            encoding="utf-8",
            timeout=20,
        )
        self.child.delaybeforesend = None

    def type(self, keys):
        self.heard = ""
        self.child.send(keys)

    def wait(self, text=HINT):
        """Until `text` was drawn, since something was typed or waited for; by default, the next prompt."""
        self._until(lambda: text in SEQUENCE.sub("", self.heard), text)
        self.heard = SEQUENCE.sub("", self.heard).partition(text)[2]
        return self

    def see(self, text):
        """Until `text` is on the screen."""
        self._until(lambda: text in str(self), text)
        return self

    def _until(self, holds, text):
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end, f"no {text!r} on\n{self}"
            with contextlib.suppress(pexpect.TIMEOUT):
                piece = self.child.read_nonblocking(65536, timeout=0.5)
                self.raw += piece
                self.heard += piece
                self.stream.feed(piece)

    def ask(self, text):
        """The screen when the next prompt is there."""
        self.type(f"{text}\r")
        return str(self.wait())

    def leave(self, keys="/bye\r"):
        """The exit code."""
        self.type(keys)
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus

    def __str__(self):
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()


@pytest.fixture
def people(tmp_path):
    """Starts conversations, which share their data."""
    started = []

    def start(*arguments, model="demo", **more):
        places = {"MDL_HOME": str(tmp_path / "home"), "MDL_DATA_HOME": str(tmp_path / "data")}
        person = Person(model, "--temperature", "0", *arguments, **{**places, **more})
        started.append(person)
        return person

    yield start
    for person in started:
        person.child.close(force=True)


@pytest.fixture
def person(people):
    return people().wait()


def test_a_conversation_remembers_and_is_drawn_as_it_was_typed(person):
    person.ask("My name is Ada.")
    assert person.ask("What is my name?") == (
        ">>> My name is Ada.\n"
        "Nice to meet you, Ada!\n"
        "\n"
        ">>> What is my name?\n"
        "Your name is Ada.\n"
        "\n"
        f">>> {HINT}"
    )
    assert person.leave() == 0


def test_on_forty_columns_words_wrap_and_lines_stay_whole(people):
    person = people(size=(40, 24)).wait()
    lines = person.ask("Count to 20.").splitlines()
    assert lines[1:3] == ["1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16", "17 18 19 20"]
    lines = person.ask("/?").splitlines()
    assert "/save NAME       keep the conversation" in lines
    assert "                 first, or not" in lines


@pytest.mark.alone
def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(person):
    person.ask("My name is Ada.")
    with slowly(person.child.pid) as release:
        person.type("Count to 100.\r")
        person.wait(" 5 ")
        person.type("\x03")
        release()
        person.wait("stopped").wait()
    assert "99 100" not in str(person)
    assert "Your name is Ada." in person.ask("What is my name?")
    assert "said               6 messages" in person.ask("/show")


def test_ctrl_c_before_the_answer_leaves_the_question_to_be_asked_again(person):
    person.ask("Hello")
    (worker,) = workers(person.child.pid)
    os.kill(worker, signal.SIGSTOP)
    person.type("What is the capital of France?\r")
    time.sleep(0.3)
    person.type("\x03")
    person.wait("stopped before the answer").wait()
    os.kill(worker, signal.SIGCONT)
    assert PARIS in person.ask("/retry")


def test_ctrl_c_at_the_prompt_clears_the_line_and_says_how_to_leave(person):
    person.type("What is")
    person.wait("What is")
    person.type("\x03")
    assert str(person.wait()) == f">>> {HINT}"
    person.type("\x03")
    assert "Ctrl-D or /bye leaves" in str(person.wait("leaves").wait())
    assert person.leave("\x04") == 0


def test_a_text_of_several_lines_is_typed_pasted_or_quoted(person):
    person.ask("My name is Ada.")
    quoted, typed = '"""What is\rmy name?"""', "What is\x1b\rmy name?"
    pasted = "\x1b[200~What is\nmy name?\x1b[201~"
    for keys, quotes in ((quoted, '"""'), (typed, ""), (pasted, "")):
        assert person.ask(keys).endswith(f"What is\n... my name?{quotes}\nYour name is Ada.\n\n>>> {HINT}")
        person.ask("/undo")


def test_a_kept_conversation_goes_on_in_another_process(people):
    person = people().wait()
    person.ask("My name is Ada.")
    assert "saved as work" in person.ask("/save work")
    assert person.leave() == 0
    other = people().wait()
    assert "work: 2 messages" in other.ask("/load work")
    assert "Your name is Ada." in other.ask("What is my name?")
    assert other.leave() == 0
    assert "work: 4 messages so far" in str(people("--session", "work").wait())


def test_what_was_typed_comes_back_in_another_process(people, tmp_path):
    person = people().wait()
    person.ask("What is the capital of France?")
    person.leave()
    assert (tmp_path / "data" / "history").stat().st_mode & 0o777 == 0o600
    other = people().wait()
    other.type("\x1b[A\x1b[A")  # /bye was the last
    other.see(">>> What is the capital of France?")
    other.type("\r")
    assert PARIS in str(other.wait())


def test_an_error_is_two_lines_and_the_conversation_goes_on(person):
    assert "mdl: temprature is no setting\ndid you mean temperature?" in person.ask("/set temprature 1")
    assert "mdl: /unod is no command\ndid you mean /undo?" in person.ask("/unod")
    assert "mdl: no session is called x\n" in person.ask("/load x")
    assert "mdl: nothing has been said yet" in person.ask("/undo")
    assert "Traceback" not in str(person)


def test_an_engine_that_is_killed_is_an_error_and_starts_again(person):
    person.ask("My name is Ada.")
    (worker,) = workers(person.child.pid)
    os.kill(worker, signal.SIGSTOP)
    person.type("What is my name?\r")
    time.sleep(0.3)
    os.kill(worker, signal.SIGKILL)
    assert "mdl: the engine was ended by SIGKILL\nthe next request starts a new one" in str(person.wait())
    assert "Your name is Ada." in person.ask("/retry")


def test_a_prompt_that_is_too_long_tells_the_numbers(people, tmp_path):
    person = people("--ctx", "256").wait()
    person.ask("My name is Ada.")
    (tmp_path / "long.txt").write_text("word " * 1000)
    assert "long.txt goes with the next prompt (5,000 characters)" in person.ask(
        f"/attach {tmp_path}/long.txt"
    )
    shown = " ".join(person.ask("What is this?").split())
    assert re.search(r"mdl: the prompt has [12],\d+ tokens", shown)
    assert "256" in shown
    assert "/undo takes back the last question, /clear starts anew" in shown
    assert "Your name is Ada." in person.ask("What is my name?")


def test_thoughts_and_statistics_are_shown_when_asked_for(person):
    assert "France has the capital Paris." not in person.ask("What is the capital of France?")
    person.ask("/stats")
    person.ask("/think")
    shown = person.ask("/retry")
    assert f"France has the capital Paris.\n\n{PARIS}\n" in shown
    assert re.search(r"\d+ tokens in [\d.]+ s · [\d.]+ tokens/s · prompt", shown)


def test_commands_and_names_are_completed(person):
    person.type("/co")
    person.see("how much of the context is used")
    person.type("\t")
    person.see(">>> /context")
    person.type("\r")
    assert "0 of 2,048 tokens (0 %)" in str(person.wait())
    person.type("/set temp")
    person.see("temperature")
    person.type("\t")
    person.see(">>> /set temperature")
    person.type("0.5\r")
    assert "temperature is 0.5" in str(person.wait())


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_the_prompt_is_there_before_the_model_is(people):
    person = people()
    while not (found := [pid for pid in workers(person.child.pid) if "worker" in command_line(pid)]):
        time.sleep(0.002)
    os.kill(found[0], signal.SIGSTOP)
    person.wait()
    person.type("What is the capital of France?\r")
    person.wait("loading demo…")
    os.kill(found[0], signal.SIGCONT)
    person.wait()
    assert str(person).splitlines()[:2] == [">>> What is the capital of France?", PARIS]


def test_a_model_that_cannot_be_loaded_ends_the_conversation_without_waiting_for_a_word(people, tmp_path):
    data = bytearray(MODEL.read_bytes())
    data[data.index(b"blk.0.attn_q.weight")] ^= 1  # a tensor that llama.cpp will miss
    (tmp_path / "broken.gguf").write_bytes(data)
    person = people(model=str(tmp_path / "broken.gguf"))
    person.wait("mdl: ")
    person.child.expect(pexpect.EOF)
    person.child.close()
    assert person.child.exitstatus == 9


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_there_is_none(people, variables):
    person = people("--think", **variables)
    person.see(">>>")
    person.type("What is the capital of France?\r")
    person.see(f"Thinking…\nFrance has the capital Paris.\n…done thinking.\n\n{PARIS}\n\n>>>")
    assert not re.search(r"\x1b\[[0-9;]*[1-9][0-9;]*m", person.raw)
    assert ("\x1b" in person.raw) is (variables.get("TERM") != "dumb")
    person.type('"""What is\r')
    person.see("...")
    person.type('2 plus 2?"""\r')
    person.see("2 plus 2 is 4.\n\n>>>")
    assert person.leave("\x04") == 0


def test_a_window_may_change_its_size_while_an_answer_comes(person):
    with slowly(person.child.pid) as release:
        person.type("Count to 100.\r")
        person.wait(" 8 ")
        person.child.setwinsize(24, 40)
        person.screen.resize(24, 40)
        person.wait(" 12 ")
        release()
        person.wait()
    rows = str(person).splitlines()
    numbers = " ".join(rows[1:-2]).split()
    assert [int(number) for number in numbers if number.isdigit()][-30:] == list(range(71, 101))
    assert max(map(len, rows)) <= 40


def test_answers_go_to_a_file_and_the_talk_to_the_terminal(people, tmp_path):
    answers = tmp_path / "answers.txt"
    command = f"{sys.executable} -m mdl chat demo --temperature 0 > {answers}"
    child = pexpect.spawn("/bin/sh", ["-c", command], encoding="utf-8", timeout=20)
    child.expect(">>> ")
    child.sendline("What is the capital of France?")
    child.expect(">>> ")
    child.sendline("/bye")
    child.expect(pexpect.EOF)
    assert answers.read_text() == f"{PARIS}\n"


def test_no_terminal_is_no_conversation(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mdl", "chat", "demo"], input=b"", capture_output=True, timeout=20
    )
    assert done.returncode == 2
