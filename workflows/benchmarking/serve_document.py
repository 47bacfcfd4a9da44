"""Document about the contest of ways to batch: the loads, and what each service made of them."""

import statistics
from collections.abc import Mapping, Sequence

from workflows.benchmarking.contest import ContestResult, Loads, Opened
from workflows.benchmarking.load import RequestOutcome
from workflows.benchmarking.load_tables import endings_table, latency_table
from workflows.benchmarking.summary import by_steps, percentile, summary
from workflows.reporting.document import Bullet, Bullets, DocumentBlock, Heading, Paragraph, Table

OURS, ONE, STATIC = "step-level", "one at a time", "@serve.batch"

METHOD = (
    "Three services of the same model stand behind the same Ray Serve, each a replica of one thread with the same HTTP "
    "app; they differ in how they batch, and one after the other gets the very same requests, in turns. Step-level: a "
    "text joins and leaves between steps, and rows at different times share passes of the network. One at a time: the "
    "next is begun when the one before is done. @serve.batch: what comes within its wait is filled together by one "
    "call of the sampler, so that all of the batch take the most steps that one of them asked for, and nobody has his "
    "text before all have. The network is untrained; what a pass costs does not depend on what was learned. The loop "
    "is open: a request is sent when it is due, and its seconds count from then. On a processor a pass of B rows costs "
    "little less than B passes of one (one at a time shows how much), so that most of the gain over static batches is "
    "the mix of steps: where all take the same number, only the waits differ."
)


def contest_blocks(found: ContestResult, wanted: Loads) -> list[DocumentBlock]:
    """Return the method, the findings and the tables."""
    texts = {
        name: [summary(outcomes, 1).texts_per_second for outcomes in rounds] for name, rounds in found.saturated.items()
    }
    mix = f"T of {_listed(wanted.steps)}, k of {_listed(wanted.candidates)}"
    return [
        Paragraph(METHOD),
        Bullets([*_findings(found, wanted, texts)]),
        Heading("At saturation"),
        _saturation(
            f"{wanted.requests} requests at once, {mix}; {wanted.rounds} rounds",
            found,
            texts,
        ),
        Heading("Short texts among long ones"),
        latency_table(
            f"{wanted.shorts} texts of T = {wanted.short_steps} come one after the other while {wanted.longs} of "
            f"T = {wanted.long_steps} are on their way",
            found.long_short,
        ),
        *(block for opened in found.opened for block in _open_blocks(opened, wanted)),
    ]


def _open_blocks(opened: Opened, wanted: Loads) -> list[DocumentBlock]:
    mix = f"T of {_listed(wanted.steps)}, k of {_listed(wanted.open_candidates)}"
    return [
        Heading(f"Open loop, {opened.load:.0%} of saturation"),
        Paragraph(
            f"{opened.rate:.2f} requests a second, which is {opened.load:.0%} of what step-level batching made at "
            f"saturation, as a Poisson process for {wanted.open_seconds:g} s. {wanted.cancels:.0%} are given up by "
            f"their clients; the rest have a deadline of {wanted.deadline_seconds:g} s, and are streamed with their "
            "denoising states. Step-level batching refuses (busy) what it could not finish in time; the others take "
            "on everything, and know no deadline."
        ),
        endings_table(f"What became of the requests, {mix}", opened.outcomes, wanted.deadline_seconds),
        latency_table("Seconds of those that were done", opened.outcomes),
    ]


def _findings(found: ContestResult, wanted: Loads, texts: Mapping[str, Sequence[float]]) -> list[Bullet]:
    over_static = ratios(texts[OURS], texts[STATIC])
    over_one = ratios(texts[OURS], texts[ONE])
    short = {name: _short_seconds(outcomes, wanted) for name, outcomes in found.long_short.items()}
    return [
        Bullet("Throughput", f"step-level batching makes {over_static} times the texts of the static batch, and "
               f"{over_one} times those of one at a time (median, least and most of the rounds)."),
        Bullet("A short text among long ones", f"T = {wanted.short_steps} takes {short[OURS]:.3g} s; "
               f"in the static batch {short[STATIC] / short[OURS]:.0f} times as long, and one at a time "
               f"{short[ONE] / short[OURS]:.0f} times (medians)."),
        *(Bullet(f"Goodput at {opened.load:.0%} of saturation", _goodput(opened, wanted)) for opened in found.opened),
    ]  # fmt: skip


def _goodput(opened: Opened, wanted: Loads) -> str:
    """Describe the goodput of every service within the deadline."""
    by_name = {name: summary(outcomes, wanted.deadline_seconds).goodput for name, outcomes in opened.outcomes.items()}
    listed = ", ".join(f"{goodput:.2f} ({name})" for name, goodput in by_name.items())
    return f"texts a second that were done within {wanted.deadline_seconds:g} s: {listed}."


def _saturation(caption: str, found: ContestResult, texts: Mapping[str, Sequence[float]]) -> Table:
    rows = []
    for name, rounds in found.saturated.items():
        seconds = statistics.median(summary(outcomes, 1).seconds for outcomes in rounds)
        tokens = statistics.median(summary(outcomes, 1).tokens_per_second for outcomes in rounds)
        rows.append(
            (
                name, f"{seconds:.1f}", f"{statistics.median(texts[name]):.2f}", f"{tokens:.0f}",
                ratios(texts[name], texts[STATIC]),
                str(sum(outcome.ending != "done" for outcomes in rounds for outcome in outcomes)),
            )
        )  # fmt: skip
    columns = ("batching", "seconds", "texts a second", "tokens a second", "times static", "not done")
    return Table(caption, columns, rows)


def ratios(own: Sequence[float], others: Sequence[float]) -> str:
    """Describe `own` / `others`, each of the same round, by median, least and most."""
    quotients = [numerator / denominator for numerator, denominator in zip(own, others, strict=True)]
    return f"{statistics.median(quotients):.2f} ({min(quotients):.2f} to {max(quotients):.2f})"


def _short_seconds(outcomes: Sequence[RequestOutcome], wanted: Loads) -> float:
    return percentile([outcome.seconds for outcome in by_steps(outcomes).get(wanted.short_steps, [])], 50)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
