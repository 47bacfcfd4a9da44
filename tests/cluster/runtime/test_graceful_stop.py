"""A first signal is remembered, a second ends the command, and other code finds its handlers as they were."""

import os
import signal
import threading

import pytest

from cluster.runtime.graceful_stop import stop_request


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_remembered_and_the_second_ends_the_command_with_its_status(number):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with stop_request() as request:
        assert request.signal is None
        os.kill(os.getpid(), number)
        assert request.signal == number
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 128 + signal.SIGTERM
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_thread_other_than_the_main_one_receives_no_signals():
    requests = []

    def run() -> None:
        with stop_request() as request:
            requests.append(request.signal)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert requests == [None]
