"""`python -m edlm` on a terminal and in a pipe, with a model in the process and with a service."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import edlm
from cluster.http.local import serving
from edlm.__main__ import Watch, main
from edlm.inference.generator import open_bundle
from edlm.inference.request import Limits
from edlm.terminal.frames import MASK, TextRequest, model_frames, service_frames
from edlm.terminal.screen import HIDE_CURSOR, SHOW_CURSOR
from tests.bundles import make_bundle
from tests.cluster.asking import eventually
from tests.paths import PROJECT

ASKED = TextRequest("ab", 10, steps=5, candidates=3, seed=7)
FLAGS = ["ab", "--max-tokens", "10", "--steps", "5", "--candidates", "3", "--seed", "7"]
LIMITS = Limits(patience_seconds=600)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("watched"))


@pytest.fixture(scope="module")
def service(bundle) -> Iterator[str]:
    with serving(open_bundle(bundle), "1/0", limits=LIMITS) as served:
        yield served.url


@pytest.fixture(scope="module")
def text(bundle) -> str:
    return "ab" + str(edlm.load(bundle).generate("ab", max_tokens=10, steps=5, candidates=3, seed=7))


def test_a_model_and_a_service_show_the_same_text_and_settings(bundle, service, text):
    of_model, of_service = list(model_frames(str(bundle), ASKED)), list(service_frames(service, None, ASKED))
    for frames in (of_model, of_service):
        last = frames[-1]
        assert last.prompt + last.canvas == text
        assert re.fullmatch(r"steps=5, candidates=3, energy='step', seed=7: \d+\.\d\d s", last.facts or "")
        assert [frame.facts for frame in frames[:-1]] == [None] * (len(frames) - 1)
        masked = [frame.masked for frame in frames]
        assert (masked, masked[-1]) == (sorted(masked, reverse=True), 0)
        assert all(frame.canvas.count(MASK) == frame.masked for frame in frames)
    shown = {frame.step: frame.canvas for frame in of_model}
    assert all(shown[frame.step] == frame.canvas for frame in of_service[:-1])  # it may have missed some


def test_in_a_pipe_the_last_line_is_the_text(bundle, service, text, capsys):
    for where in (["--model", str(bundle)], ["--url", f"{service}/v1"]):
        main([*FLAGS, *where])
        *states, last = capsys.readouterr().out.splitlines()
        assert last == text
        assert states
        assert all(re.fullmatch(rf"step [1-5]/5: ab[a-z {MASK}]{{10}}", state) for state in states)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere"], "edlm: there is no folder /nowhere"),
        (["--url", "127.0.0.1:1"], "edlm: the URL of the service is '127.0.0.1:1'; give it with http://"),
        (["--url", "http://127.0.0.1:1"], "edlm: no answer from http://127.0.0.1:1/v1/completions"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, message):
    with pytest.raises(SystemExit, match=re.escape(message)) as ended:
        main(arguments)
    assert "\n" not in str(ended.value.code)


def test_a_refusal_of_the_model_or_the_service_is_one_line(bundle, service):
    for where in (["--model", str(bundle)], ["--url", service]):
        with pytest.raises(SystemExit, match=r"^edlm: .*nonesuch.*step"):
            main(["--energy", "nonesuch", *where])


@pytest.mark.parametrize(
    "arguments", [["--model", "a", "--url", "http://b"], ["--max-tokens", "0"], ["--candidates", "-1"]]
)
def test_wrong_flags_end_with_status_1_and_what_is_wrong(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert arguments[0].strip("-").replace("-", "_") in capsys.readouterr().err


def test_a_url_in_the_place_of_the_prompt_is_told_its_flag(capsys):
    with pytest.raises(SystemExit):
        main(["http://127.0.0.1:8000"])
    assert "to ask the service there, give --url http://127.0.0.1:8000" in " ".join(capsys.readouterr().err.split())


def test_the_defaults_are_those_of_the_model():
    watch = Watch()
    assert (watch.steps, watch.candidates, watch.energy, watch.seed) == (None,) * 4


class Terminal:
    """The command on a pseudo-terminal of its own, as someone would type it."""

    def __init__(self, *arguments: str) -> None:
        ours, theirs = pty.openpty()
        self._ours, self.output = ours, ""
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(PROJECT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edlm", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=PROJECT, env=environment, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored if tests run in the background
        )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self.seen = threading.Event()
        self.awaited = "\0"
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._ours, 65536)
            except OSError:  # Linux: the other end is closed
                piece = b""
            if not piece:
                return
            self.output += piece.decode("utf-8", "replace")
            if re.search(self.awaited, self.output):
                self.seen.set()

    def wait_for(self, pattern: str) -> None:
        self.awaited = pattern
        assert re.search(pattern, self.output) or self.seen.wait(120), self.output

    def end(self) -> int:
        """The exit status, once everything is read."""
        status = self.process.wait(120)
        self._reader.join(20)
        os.close(self._ours)
        return status


def test_on_a_terminal_the_canvas_is_animated_and_the_text_remains(service, text):
    terminal = Terminal(*FLAGS, "--url", service)
    assert terminal.end() == 0
    output = terminal.output
    assert output.startswith(HIDE_CURSOR)
    assert output.endswith(SHOW_CURSOR)
    assert output.count("\x1b[J") >= 3  # redrawn in place
    last = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", output.rpartition("\x1b[J")[2])
    assert last.splitlines()[0] == text
    assert "seed=7" in last


def test_ctrl_c_ends_it_in_order_and_cancels_on_the_server(bundle):
    with serving(open_bundle(bundle), "1/0", limits=LIMITS) as served:
        terminal = Terminal("ab", "--max-tokens", "4000", "--candidates", "1", "--url", served.url)
        terminal.wait_for(r"step [1-9]")
        os.killpg(terminal.process.pid, signal.SIGINT)
        assert terminal.end() == 130
        assert terminal.output.endswith(SHOW_CURSOR + "\r\n")
        assert "Traceback" not in terminal.output
        eventually(lambda: served.endpoint.engine.statistics().finished == {"cancelled": 1})
