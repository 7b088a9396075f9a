"""`mdl bench`: what it measures, counts and draws; with the demo, in processes of its own where it ends."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import DEMO

from mdl import bench, chart
from mdl.bench import Figure, Plan
from mdl.chart import Bar, Chart
from mdl.engine import Engine
from mdl.engine.request import EngineFiles, EngineSettings
from mdl.errors import UsageError

MDL = [sys.executable, "-m", "mdl", "bench"]
QUICK = ("--repeat", "2", "--tokens", "8", "--prompt", "64,16", "--streams", "2,1")


@pytest.fixture
def environment(tmp_path):
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "MDL_CONFIG")}
    return {**kept, "MDL_HOME": str(tmp_path / "home"), "TERM": "xterm-256color"}


@pytest.fixture
def mdl_bench(environment, tmp_path):
    def run(*arguments, **variables):
        return subprocess.run(
            [*MDL, *arguments],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )

    return run


@pytest.fixture(scope="module")
def engine():
    with Engine() as engine:
        engine.load(EngineFiles(DEMO), EngineSettings(context=512, parallel=4))
        yield engine


def test_json_has_every_figure_that_was_asked_for(mdl_bench):
    ended = mdl_bench("demo", *QUICK, "--json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["schema"], told["name"], told["tokens"], told["repeat"]) == (1, "demo", 8, 2)
    assert (told["model"]["architecture"], told["model"]["gpu_layers"]) == ("llama", 0)
    assert told["context"] == 2048
    assert told["threads"] >= 1
    assert 0 < told["load_seconds"] < told["start_seconds"] + told["load_seconds"]
    assert [prompt["tokens"] for prompt in told["prompts"]] == [16, 64]
    assert [load["streams"] for load in told["streams"]] == [1, 2]
    figures = [prompt[name] for prompt in told["prompts"] for name in ("speed", "first", "generation")]
    for figure in (*figures, *(load["speed"] for load in told["streams"])):
        assert 0 < figure["low"] <= figure["median"] <= figure["high"]
    for line in ended.stderr.splitlines():
        assert json.loads(line)["event"] == "step"


def test_a_process_takes_the_memory_of_its_model(mdl_bench):
    told = json.loads(mdl_bench("demo", *QUICK, "--json").stdout)
    assert told["memory"] is None or told["model"]["size"] < told["memory"] < 1 << 30


def test_a_pipe_gets_plain_lines(mdl_bench):
    ended = mdl_bench("demo", *QUICK)
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr
    assert ended.stdout.startswith("llama, 3.7M parameters, 3.9 MB; ")
    assert "STREAMS" in ended.stdout
    assert ended.stderr.splitlines()[0] == "loading the model"


@pytest.mark.parametrize(("variables", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_a_picture_that_fits_it(environment, variables, colored):
    shown = on_terminal([*MDL, "demo", *QUICK], {**environment, **variables, "COLUMNS": "60"})
    plain = re.sub(r"\x1b\[[0-9]*[mK]", "", shown).replace("\r\n", "\n")
    picture = plain[plain.index("Answers, tokens/s") :]
    assert "█" in picture
    assert max(len(line) for line in picture.splitlines()) <= 60
    assert ("\x1b[36m" in shown) is colored


def test_a_terminal_without_utf8_gets_signs(mdl_bench):
    assert "#####" in mdl_bench("demo", *QUICK, PYTHONIOENCODING="ascii").stdout


def test_the_picture_is_xml_with_all_bars(mdl_bench, tmp_path):
    ended = mdl_bench("demo", *QUICK, "--svg", "a <b> & c.svg")
    assert ended.returncode == 0, ended.stderr
    root = ElementTree.parse(tmp_path / "a <b> & c.svg").getroot()
    bars = [each for each in root.iter() if each.get("class") == "bar"]
    assert len(bars) == 2 + 2 + 2
    assert all(0 < float(bar.get("width")) < chart.WIDTH for bar in bars)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--streams", "0"),
        ("--streams", "65"),
        ("--streams", "1,,2"),
        ("--streams", "many"),
        ("--streams", "9" * 5000),
        ("--streams", ""),
        ("--prompt", "-1"),
        ("--prompt", "0"),
        ("--prompt", "5000"),
        ("--tokens", "1"),
        ("--tokens", "2048"),
        ("--tokens", "1.5"),
        ("--repeat", "0"),
        ("--ctx", "16"),
        ("--gpu-layers", "some"),
        ("--threads", "0"),
        (),
    ],
    ids=" ".join,
)
def test_what_cannot_be_measured_is_a_wrong_use(mdl_bench, arguments):
    ended = mdl_bench(*(("demo", *arguments) if arguments else ()))
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) <= 3


def test_where_the_picture_cannot_go_nothing_is_measured(mdl_bench, tmp_path):
    for name in ("no/such/folder.svg", str(tmp_path)):
        ended = mdl_bench("demo", "--svg", name)
        assert (ended.returncode, ended.stdout) == (7, "")
        assert "loading" not in ended.stderr


def test_ctrl_c_ends_it_and_its_worker(environment):
    command = [*MDL, "demo", "--tokens", "1024", "--repeat", "100"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr.readline() == "loading the model\n"
        assert process.stderr.readline().startswith("a prompt of ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


def test_answers_have_all_the_tokens_that_were_asked_for(engine):
    """The demo would end most of them early."""
    measured = bench.Bench(engine, Plan(tokens=100), engine.ready().vocabulary)
    usages = [measured.answer(12, 100) for _ in range(20)]
    assert {(usage.prompt_tokens, usage.completion_tokens) for usage in usages} == {(12, 100)}


def test_prompts_are_not_in_the_cache(engine):
    measured = bench.Bench(engine, Plan(), engine.ready().vocabulary)
    assert max(measured.answer(200, 2).cached_tokens for _ in range(10)) <= 2


@pytest.mark.alone
def test_the_streams_run_at_once(engine):
    """Together they take less than one after the other, or the figure would be that of one."""
    measured = bench.Bench(engine, Plan(tokens=64, repeat=3), engine.ready().vocabulary)
    begin = time.perf_counter()
    load = measured.load(4)
    assert load.streams == 4
    assert load.speed.high >= 3 * 4 * 64 / (time.perf_counter() - begin)


def test_what_fails_is_told_and_not_measured():
    with Engine() as engine:
        engine.load(EngineFiles(DEMO.with_name("gone.gguf")))
        with pytest.raises(Exception, match=r"gone\.gguf does not exist"):
            bench.run(engine, Plan(), lambda _: None)


def test_the_usual_prompts_are_those_that_fit():
    assert Plan(tokens=64).lengths(4096, 16384) == (128, 512, 2048)
    assert Plan(tokens=64).lengths(2048, 16384) == (128, 512, 1984)
    assert Plan(tokens=64).lengths(192, 16384) == (128,)
    assert Plan(prompts=(9, 3), tokens=64).lengths(128, 16384) == (3, 9)


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 24), st.integers(2, 1 << 16), st.integers(1, 64))
def test_what_is_planned_fits_or_is_refused(context, cells, tokens, streams):
    plan = Plan(streams=(streams,), tokens=tokens)
    try:
        lengths = plan.lengths(context, cells)
    except UsageError:
        assert tokens + bench.OPENING > context or streams * (tokens + bench.OPENING) > cells
    else:
        assert all(0 < length <= context - tokens for length in lengths)
        assert len(set(lengths)) == len(lengths)


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_a_figure_lies_within_what_was_measured(values):
    figure = Figure.of(values)
    assert min(values) == figure.low <= figure.median <= figure.high == max(values)


BARS = st.builds(
    lambda label, low, more, most: Bar(label, low + more, low, low + more + most),
    st.text(max_size=30),
    *[st.floats(0, 1e7)] * 3,
)


@given(st.lists(BARS, min_size=1, max_size=5), st.integers(20, 200), st.booleans())
def test_the_longest_bar_is_the_largest_value(bars, columns, blocks):
    drawn = chart.lines(Chart("speed", tuple(bars)), columns, blocks=blocks)
    lengths = [len(bar) for _, bar, _ in drawn]
    assert lengths[max(range(len(bars)), key=lambda i: bars[i].value)] == max(lengths)
    assert max(lengths) <= chart.WIDEST


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])), st.lists(BARS, min_size=1, max_size=5))
def test_every_picture_is_xml(title, bars):
    safe = tuple(bar._replace(label="bar") for bar in bars)
    ElementTree.fromstring(chart.svg(title, [Chart("speed", safe)]))


def on_terminal(command, environment):
    """What the command writes to a terminal."""
    main, side = pty.openpty()
    with subprocess.Popen(command, env=environment, stdin=side, stdout=side, stderr=side) as process:
        os.close(side)
        shown = b""
        while True:
            try:
                shown += os.read(main, 1 << 16)
            except OSError:  # the other side is closed
                break
    os.close(main)
    assert process.returncode == 0, shown
    return shown.decode()
