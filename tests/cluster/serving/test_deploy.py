"""Taking the endpoint down goes on, whatever a replica does."""

from collections.abc import Sequence

from cluster.serving.deploy import await_drained


class Responses:
    """What Serve hands out for a broadcast: results in time, or TimeoutError."""

    def __init__(self, results: Sequence[object] | None) -> None:
        self._results = results

    def results(self, timeout_s: float, return_exceptions: bool) -> Sequence[object]:
        assert return_exceptions
        if self._results is None:
            raise TimeoutError(f"{timeout_s} s")
        return self._results


def test_a_replica_that_does_not_answer_in_time_does_not_stop_the_shutdown(caplog):
    await_drained(Responses(None), 7.0)
    assert "replicas did not finish their work within 7 s" in caplog.text


def test_only_replicas_that_failed_are_logged(caplog):
    await_drained(Responses([None, RuntimeError("the device is lost"), None]), 7.0)
    assert [record.getMessage() for record in caplog.records] == [
        "a replica did not finish its work: the device is lost"
    ]
