import io
import logging
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest

from rdbcl_jax.reporting.numbers import duration
from rdbcl_jax.reporting.progress import Progress
from rdbcl_jax.reporting.watching import Compilations, warnings_to


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def drive(progress, clock=None, steps=10):
    progress.phase("evaluating the base model")
    progress.end_task(-1, [0.25, 0.5])
    for k in range(2):
        progress.start_task(k)
        for i in range(steps):
            progress.phase("sampling")
            if clock:
                clock.now += 2.0
            progress.step({"reward": 0.5, "kl": None, "num_tokens": 1000 * (k * steps + i)})
        progress.phase("evaluating")
        progress.end_task(k, [0.75, 0.5])
    progress.close()


def test_quiet_when_not_a_terminal():
    stream = io.StringIO()
    drive(Progress(["sum", "walk"], 10, stream=stream))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10  # 20 steps, none of them printed
    assert "\x1b" not in stream.getvalue()
    assert lines[1].endswith("accuracy base: sum 25.0%, walk 50.0%")
    assert lines[2].endswith("task 1/2 sum: 10 steps")
    assert lines[-1].endswith("accuracy after walk: sum 75.0%, walk 50.0%")


def test_live_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    drive(Progress(["sum", "walk"], 10, stream=stream))
    text = stream.getvalue()
    assert "\x1b" in text and "after walk" in text and "75.0" in text
    assert "[" not in text.splitlines()[0][:1]


def test_time_left_and_speed():
    clock = Clock()
    progress = Progress(["a", "b"], [10, 20], stream=io.StringIO(), clock=clock)
    progress.start_task(0)
    for i in range(10):
        clock.now += 50 if i == 0 else 2  # the first step compiles
        progress.step({"num_tokens": 100 * i})
    assert progress.tokens_per_second() == 50
    assert progress.seconds_left() == 40
    clock.now += 6
    progress.end_task(0, [0.5, 0.5])
    assert progress.seconds_left() == 46  # and one more evaluation
    progress.start_task(1, step=5)
    assert progress.seconds_left() == 36


@pytest.mark.parametrize("terminal", [True, False])
def test_never_crashes_the_run(terminal, monkeypatch, caplog):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal() if terminal else io.StringIO()
    progress = Progress(["a"], 3, stream=stream)
    progress.start_task(0)
    progress.step({"reward": "not a number", "num_tokens": "nor this"})
    progress.start_task(7)
    progress.end_task(0, [0.1, 0.2, 0.3])
    progress.close()
    progress.close()
    assert "progress display is off" in caplog.text


def test_closed_stream_is_no_error():
    stream = io.StringIO()
    progress = Progress(["a"], 3, stream=stream)
    stream.close()
    progress.start_task(0)
    progress.step({})


def test_disabled_prints_nothing():
    stream = io.StringIO()
    drive(Progress(["sum", "walk"], 10, stream=stream, enabled=False))
    assert stream.getvalue() == ""


def test_duration():
    assert [duration(s) for s in (7, 125, 3725)] == ["7s", "2m 05s", "1h 02m"]


def test_a_line_of_steps_every_so_many_seconds_where_there_is_no_terminal():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(["sum"], 100, stream=stream, clock=clock, every=10)
    progress.start_task(0)
    row = {"reward": 0.5, "kl": 0.0123, "rp/mean": 0.98}
    for i in range(20):
        clock.now += 2
        progress.step({**row, "step": i, "num_tokens": 1000 * i})
    lines = stream.getvalue().splitlines()[1:]
    assert len(lines) == 4
    line = "sum 5/100 · reward 0.500 · KL 0.0123 · RP 0.980 · 500 tokens/s · 3m 10s left"
    assert lines[0].endswith(line)


def test_what_is_compiled_is_said():
    stream = io.StringIO()
    progress = Progress(["sum"], 100, stream=stream)
    with Compilations(progress.compiling, expected=5) as programs:

        def sample(x):
            return jnp.cos(x) * 3

        def other(x):
            return jnp.sin(x) * 3

        jax.jit(sample)(jnp.ones(3))
        jax.jit(other)(jnp.ones(3))
        jax.jit(sample)(jnp.ones(3))
        jax.jit(sample)(jnp.ones(4))
    jax.jit(sample)(jnp.ones(5))
    lines = [line.split("] ")[1] for line in stream.getvalue().splitlines()]
    assert lines == ["compiling sampler (1 of 5) …", "compiling sampler (2 of 5) …"]
    assert progress._compiling is None
    assert len(programs.seconds["sampler"]) == 2 and min(programs.seconds["sampler"]) > 0
    assert f"sampler 2 in {sum(programs.seconds['sampler']):.1f} s" in str(programs)
    assert "others" in programs.seconds


def test_of_programs_that_are_compiled_at_once_each_is_said_once():
    told = []
    stream = io.StringIO()
    progress = Progress(["sum"], 10, stream=stream)

    def tell(what):
        told.append(what)
        progress.compiling(what)

    with Compilations(tell, expected=2):
        log = logging.getLogger("jax._src.dispatch")
        log.debug("Compiling jit(sample) with global shapes")
        log.debug("Compiling jit(update) with global shapes")
        log.debug("Finished XLA compilation of jit(update) in 2.5 sec")
        log.debug("Finished XLA compilation of jit(sample) in 3.5 sec")
    first, second = "compiling sampler (1 of 2)", "compiling update (2 of 2)"
    assert told == [first, second, first, None]
    lines = [line.split("] ")[1] for line in stream.getvalue().splitlines()]
    assert lines == [f"{first} …", f"{second} …"]


def test_the_live_display_says_what_is_compiled(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    progress = Progress(["sum"], 10, stream=stream)
    progress.phase("evaluating")
    progress.compiling("compiling sampler (2 of 5)")
    progress._live.refresh()
    assert "compiling sampler (2 of 5) …" in stream.getvalue()
    progress.compiling(None)
    progress.close()


def test_warnings_of_libraries_go_to_a_file(tmp_path, capsys):
    loud = logging.getLogger("a_library_with_a_handler_of_its_own")
    loud.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    loud.addHandler(handler)
    with warnings_to(tmp_path / "log.txt"):
        logging.getLogger("quiet_library").warning("first")
        loud.warning("second")
        loud.info("not this")
        warnings.warn("third", stacklevel=1)
    text = (tmp_path / "log.txt").read_text()
    words = ("first", "second", "not this", "UserWarning: third")
    assert [text.count(word) for word in words] == [1, 1, 0, 1]
    assert loud.handlers == [handler]
    loud.warning("afterwards")
    assert capsys.readouterr().err.strip() == "afterwards"
    loud.removeHandler(handler)
    with warnings_to(tmp_path / "none.txt"):
        pass
    told = []
    with warnings_to(tmp_path / "cache.txt", told.append):
        for name in "fg":
            text = "Error writing persistent compilation cache entry for"
            warnings.warn(f"{text} '{name}': OSError: no room", stacklevel=1)
    assert told == ["note: compiled programs cannot be kept or read: f: OSError: no room"]
    assert (tmp_path / "cache.txt").read_text().count("UserWarning: Error writing") == 2
    assert not (tmp_path / "none.txt").exists()
