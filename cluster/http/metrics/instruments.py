"""Prometheus metrics of the endpoint; no label contains text from a client."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

ESSES = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True)
class Instrument:
    """A metric: its name, help text, labels, and the upper bounds of histogram buckets."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


REQUESTS = Instrument(
    "counter", "edlm_requests_total", "Requests that were answered.", ("endpoint", "code", "finish_reason")
)
E2E_SECONDS = Instrument(
    "histogram", "edlm_e2e_seconds", "From a request to the end of its answer.", ("endpoint",), SECONDS
)
QUEUE_SECONDS = Instrument("histogram", "edlm_queue_seconds", "From a request to its first turn.", (), SECONDS)
FIRST_FRAME_SECONDS = Instrument(
    "histogram", "edlm_first_frame_seconds", "From a request to the first step that its stream shows.", (), SECONDS
)
STEP_SECONDS = Instrument(
    "histogram",
    "edlm_step_seconds",
    "Of turns of the engine, each a step of some texts.",
    (),
    SECONDS,
)
TURNS = Instrument("counter", "edlm_turns_total", "Turns of the engine.")
BUSY_SECONDS = Instrument("counter", "edlm_busy_seconds_total", "Time that these took.")
TEXTS = Instrument("counter", "edlm_texts_total", "Texts and scores that are over, by how they ended.", ("reason",))
BATCH_FILL = Instrument("gauge", "edlm_batch_fill", "Rows of a turn, a mean, as a share of the slots.")
RUNNING = Instrument("gauge", "edlm_running", "Texts on their way.")
WAITING = Instrument("gauge", "edlm_waiting", "Texts that wait for a slot.")
BACKLOG_SECONDS = Instrument("gauge", "edlm_backlog_seconds", "Work that was let in and is not done, in seconds.")
TOKENS = Instrument("counter", "edlm_tokens_total", "Tokens that were written.")
FORWARDS = Instrument("counter", "edlm_forwards_total", "Passes of the networks.", ("model",))
ESS = Instrument("histogram", "edlm_ess", "Effective number of candidates, a mean for each text.", (), ESSES)
CANCELLED = Instrument("counter", "edlm_cancelled_total", "Requests whose client went away.")
REJECTED = Instrument("counter", "edlm_rejected_total", "Requests that were turned away.", ("reason",))
BEAT_AGE_SECONDS = Instrument("gauge", "edlm_engine_beat_age_seconds", "Since the engine's last sign of life.")
MODEL = Instrument("gauge", "edlm_model_info", "1 for the model that new requests get.", ("version", "digest"))
SWAPS = Instrument("counter", "edlm_model_swap_total", "Changes of the model, by how they ended.", ("result",))
INSTRUMENTS = (
    REQUESTS, E2E_SECONDS, QUEUE_SECONDS, FIRST_FRAME_SECONDS, STEP_SECONDS, TURNS, BUSY_SECONDS, TEXTS, BATCH_FILL,
    RUNNING, WAITING, BACKLOG_SECONDS, TOKENS, FORWARDS, ESS, CANCELLED, REJECTED, BEAT_AGE_SECONDS, MODEL, SWAPS,
)  # fmt: skip


class Meters(Protocol):
    """Sink of metric values; labels are in the order of `Instrument.labels`."""

    def add(self, instrument: Instrument, amount: float, *labels: str) -> None: ...

    def set(self, instrument: Instrument, value: float, *labels: str) -> None: ...

    def observe(self, instrument: Instrument, value: float, *labels: str) -> None: ...


class OwnMeters:
    """In-process metrics, served by GET /metrics when no exporter exists."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[Instrument, tuple[str, ...]], float] = {}
        self._buckets: dict[tuple[Instrument, tuple[str, ...]], list[int]] = {}

    def add(self, instrument: Instrument, amount: float, *labels: str) -> None:
        """Increase the counter by `amount`."""
        assert amount >= 0, instrument.name
        assert len(labels) == len(instrument.labels), instrument.name
        with self._lock:
            self._values[instrument, labels] = self._values.get((instrument, labels), 0.0) + amount

    def set(self, instrument: Instrument, value: float, *labels: str) -> None:
        """Set the gauge to `value`."""
        assert len(labels) == len(instrument.labels), instrument.name
        with self._lock:
            if instrument is MODEL:  # only one model serves new requests
                self._values = {series: value for series, value in self._values.items() if series[0] is not MODEL}
            self._values[instrument, labels] = value

    def observe(self, instrument: Instrument, value: float, *labels: str) -> None:
        """Add `value` to the histogram."""
        self.add(instrument, value, *labels)
        with self._lock:
            buckets = self._buckets.setdefault((instrument, labels), [0] * (len(instrument.bounds) + 1))
            buckets[sum(value > bound for bound in instrument.bounds)] += 1

    def value(self, instrument: Instrument, *labels: str) -> float:
        """Return the value of a counter or gauge, or the sum of a histogram; 0 if nothing was recorded."""
        with self._lock:
            return self._values.get((instrument, labels), 0.0)

    def text(self) -> str:
        """Return all metrics in Prometheus's text format."""
        with self._lock:
            return "".join(f"{line}\n" for instrument in INSTRUMENTS for line in self._lines(instrument))

    def _lines(self, instrument: Instrument) -> Iterator[str]:
        yield f"# HELP {instrument.name} {instrument.text}"
        yield f"# TYPE {instrument.name} {instrument.kind}"
        for (metric, labels), value in sorted(self._values.items(), key=lambda item: item[0][1]):
            if metric is not instrument:
                continue
            pairs = [_label(name, label) for name, label in zip(instrument.labels, labels, strict=True)]
            if instrument.kind != "histogram":
                yield f"{instrument.name}{_braced(pairs)} {value:.12g}"
                continue
            total = 0
            for bound, count in zip([*map(str, instrument.bounds), "+Inf"], self._buckets[metric, labels], strict=True):
                total += count
                yield f"{instrument.name}_bucket{_braced([*pairs, _label('le', bound)])} {total}"
            yield f"{instrument.name}_sum{_braced(pairs)} {value:.12g}"
            yield f"{instrument.name}_count{_braced(pairs)} {total}"


def _braced(pairs: list[str]) -> str:
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{name}="{escaped}"'
