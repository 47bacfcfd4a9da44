"""The report is one page that loads nothing, shows every figure and table, and says what was not measured."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from unicodedata import combining, east_asian_width

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jinja2 import UndefinedError

from cluster.tracking.provenance import machine, packages
from cluster.tracking.run_facts import RunFacts
from edlm.config import load, plain
from tests import measurements
from tests.paths import SMALLEST
from tests.workflows.reporting.parsed_page import ParsedPage, parsed
from tests.workflows.reporting.test_figures import BOUNDS, QUALITY, TRAJECTORY
from workflows.experiment import Experiment
from workflows.report import HTML, MARKDOWN, compose, draw, write
from workflows.reporting.chapters import at_temperature_one, by_judge
from workflows.reporting.document import Bullet, Bullets, Heading, Paragraph, ReportDocument, Table, Verbatim, visible
from workflows.reporting.findings import MATCHED, TEXTS, short_findings
from workflows.reporting.html_page import html_page
from workflows.reporting.markdown_page import markdown_page
from workflows.reporting.provenance import StageRecord, origin_blocks
from workflows.reporting.results import TABLES, Results, read_results
from workflows.reporting.text_tabulation import quality_table

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)

HOSTILE = '<script>alert("x")</script> | `a` *b* ]]> & \x00\x1b[31m \u202e\ud800 \n# no heading\n| a | b |'


def record(stage: str, **changes) -> StageRecord:
    facts = {
        "started": NOW, "ended": NOW + timedelta(seconds=1295), "status": "FINISHED", "commit": "c0ffee" * 6,
        "uncommitted_changes": False, "machine": machine(), "packages": packages(),
    }  # fmt: skip
    return StageRecord(stage, f"/runs/{stage}-0", RunFacts(**(facts | changes)))


def results() -> Results:
    names = ("plain", "uniform", "data", "autoregressive", "published-nce")
    bounds, trajectory = (
        [row for row in rows if row["energy"] in names or row["energy"] == "coar"] for rows in (BOUNDS, TRAJECTORY)
    )
    quality = [dict(row) for row in QUALITY if row["energy"] in names]
    quality[-1]["texts"] = [HOSTILE]
    return Results(
        measurements.summary(), bounds, quality, trajectory, measurements.calibration()[:4], measurements.partition(),
        matched=[row for row in measurements.matched() if row["energy"] in ("plain", "copula")],
        cost=measurements.cost(), paper=measurements.paper(), sampled_race_entropy=measurements.sampled_race_entropy(),
        step_grids=measurements.step_grids(), effort=measurements.effort(), race_entropy=measurements.race_entropy(),
        marginal_distance=measurements.marginal_distance(), energy_distance=measurements.energy_distance(),
        sample_distance=measurements.sample_distance(),
        missing=[("zero_shot", "likelihood on other corpora: not measured, there is no zero_shot.parquet.")],
    )  # fmt: skip


@pytest.fixture(scope="module")
def document() -> ReportDocument:
    stages = [record("pretrain"), StageRecord("judge", "/runs/judge-0", None), record("evaluate")]
    settings = json.dumps(plain(load(Experiment, SMALLEST)), indent=1)
    return compose(load(Experiment, SMALLEST), results(), measurements.training(), stages, settings, NOW)


@pytest.fixture(scope="module")
def folder(document, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("report")
    write(document, draw(document), place)
    return place


@pytest.fixture(scope="module")
def page(folder) -> ParsedPage:
    return parsed((folder / HTML).read_text(encoding="utf-8"))


def test_every_figure_is_inside_the_page_and_beside_the_markdown(document, page, folder):
    images = page.all("img")
    names = [picture.name for picture in document.pictures]
    assert len(images) == len(names) == len(set(names)) > 10
    for image, name in zip(images, names, strict=True):
        kind, _, data = str(image["src"]).partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (folder / f"{name}.png").read_bytes()
        assert image["alt"]
        assert f"({name}.png)" in (folder / MARKDOWN).read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_runs_nothing(page, folder):
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form", "base"} == set()
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert name not in attributes or str(attributes[name]).startswith(("data:image/png", "#"))
    style = (folder / HTML).read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [tag["content"] for tag in page.all("meta") if "http-equiv" in tag]
    assert "default-src 'none'" in str(policy)


def test_the_page_is_made_for_small_screens_dark_rooms_and_readers_that_speak(page, folder):
    html = (folder / HTML).read_text(encoding="utf-8")
    assert [tag["content"] for tag in page.all("meta") if tag.get("name") == "viewport"] == [
        "width=device-width, initial-scale=1"
    ]
    assert "prefers-color-scheme: dark" in html
    assert page.all("html") == [{"lang": "en"}]
    assert html.count('<div class="scroll" role="region" tabindex="0"') == len(page.all("table")) + len(page.all("img"))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {str(link["href"])[1:] for link in page.all("a")} <= targets


def test_hostile_text_is_text(page, folder):
    output = "".join(page.text)
    assert '<script>alert("x")</script>' in output
    for character in ("\x00", "\x1b", "\u202e", "\ud800"):
        assert character not in output
    assert "\\u202e" in output
    markdown = (folder / MARKDOWN).read_text(encoding="utf-8")
    assert "\n# no heading" not in markdown
    assert "\x1b" not in markdown


@pytest.mark.parametrize("text", [HOSTILE, "```\nfence", "", "日本語 é", "a|b\\|c", "</pre></main>"])
def test_any_text_goes_through_every_kind_of_block(text):
    blocks = [
        Heading(text), Paragraph(text), Bullets([Bullet(text, text)]), Table(text, (text, "n"), [(text, "1")]),
        Table(text, ("a", "n"), [(text, "1")], folded=True), Verbatim(text, text), Verbatim(text, text, folded=True),
    ]  # fmt: skip
    page = parsed(html_page(ReportDocument(text, blocks), {}))
    assert "".join(page.text).count(visible(text)) >= 2
    assert page.all("script") == []
    lines = markdown_page(ReportDocument(text, blocks)).split("\n")
    for start in (i for i, line in enumerate(lines) if line.startswith("|--")):
        assert [len(bars(lines[start + i])) for i in (-1, 0, 1)] == [3, 3, 3]
    assert sum(line.startswith("|--") for line in lines) == 2


def test_a_block_without_a_template_is_an_error():
    class Footnote:
        pass

    with pytest.raises(UndefinedError, match="no attribute 'footnote'"):
        html_page(ReportDocument("title", [Footnote()]), {})  # type: ignore[list-item]


def test_rows_of_published_numerics_numbers_and_long_cells_are_marked():
    rows = [("k = 2, published sampler", "1.5"), ("k = 2", "–"), ("long " * 9, "2")]
    page = parsed(html_page(ReportDocument("title", [Table("table", ("sampler", "n"), rows)]), {}))
    assert page.all("tr") == [{}, {"class": "published"}, {}, {}]
    assert page.all("th") == [{"scope": "col"}, {"scope": "col", "class": "n"}]
    assert page.all("td")[0::2] == [{}, {}, {"class": "w"}]
    assert page.all("td")[1::2] == [{"class": "n"}] * 3


def bars(line: str) -> list[int]:
    """Where the cells of a line end, in columns of a terminal."""
    columns, column = [], 0
    for before, c in pairwise(" " + line):
        if c == "|" and before != "\\":
            columns.append(column)
        column += 2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1
    return columns


def test_the_markdown_has_every_table_and_its_columns_align(document, folder):
    lines = (folder / MARKDOWN).read_text(encoding="utf-8").split("\n")
    starts = [i for i, line in enumerate(lines) if line.startswith("|--")]
    expected = [block for block in document.blocks if isinstance(block, Table)]
    assert len(starts) == len(expected) > 10
    for start, table in zip(starts, expected, strict=True):
        table_lines = lines[start - 1 : start + 1 + len(table.rows)]
        assert len(bars(table_lines[0])) == len(table.columns) + 1
        assert all(bars(line) == bars(table_lines[0]) for line in table_lines)
        assert lines[start + 1 + len(table.rows)] == ""


def test_both_pages_have_the_same_content(document, page, folder):
    output, markdown = "".join(page.text), (folder / MARKDOWN).read_text(encoding="utf-8").replace("\\", "")
    for block in document.blocks:
        match block:
            case Heading(text) | Paragraph(text):
                assert text in output
                assert text in markdown
            case Bullets(items):
                for item in items:
                    assert item.text in output
                    assert item.text in markdown


def test_what_was_not_measured_is_named(page):
    output = "".join(page.text)
    assert "zero_shot: likelihood on other corpora: not measured, there is no zero_shot.parquet." in output
    assert "judge: seconds, commit, machine and curves: its run is not in the tracking store." in output


def test_an_evaluation_that_measured_nothing_still_has_a_report(tmp_path):
    summary = {"experiment": "smallest", "sequences": 4, "length": 16, "denoiser_nelbo": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    nothing = read_results(tmp_path)
    assert [name for name, _ in nothing.missing] == [table.name for table in TABLES]
    document = compose(load(Experiment, SMALLEST), nothing, {}, [], "", NOW)
    assert document.pictures == []
    output = "".join(parsed(html_page(document, {})).text)
    for table in TABLES:
        assert f"{table.name}: {table.description}: not measured, there is no {table.name}.parquet." in output


def test_tables_are_read_as_they_were_written(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(measurements.summary()))
    for table in TABLES:
        rows = getattr(measurements, table.name)()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{table.name}.parquet")
    actual = read_results(tmp_path)
    assert actual.missing == []
    for table in TABLES:
        for read, row in zip(getattr(actual, table.name), getattr(measurements, table.name)(), strict=True):
            assert {name: str(read[name]) for name in row} == {name: str(value) for name, value in row.items()}


def test_judges_are_not_mixed():
    other = [row | {"judge": "another", "nll_nats_per_token": row["nll_nats_per_token"] + 9} for row in QUALITY]
    judged = by_judge(QUALITY)["ar-64"]
    both = by_judge([*QUALITY, *other])
    assert list(both) == ["ar-64", "another"]
    assert short_findings(TEXTS, both["ar-64"]) == short_findings(TEXTS, judged)
    document = compose(
        load(Experiment, SMALLEST), Results(measurements.summary(), quality=[*QUALITY, *other]), {}, [], "", NOW
    )
    names = [picture.name for picture in document.pictures]
    assert len(names) == len(set(names)) == 6


def test_a_sweep_of_token_temperatures_is_reported_at_equal_entropy_and_not_mixed_into_the_findings():
    swept = [row for row in measurements.sweep() if row["energy"] in ("plain", "coar", "data", "autoregressive")]
    alone = at_temperature_one(swept)
    assert {row["token_temperature"] for row in alone} == {1.0}
    reported = Results(measurements.summary(), quality=swept, matched=measurements.matched())
    document = compose(load(Experiment, SMALLEST), reported, {}, [], "", NOW)
    names = [block.text for block in document.blocks if isinstance(block, Heading)]
    assert "Texts under the judge: summary (ar-64)" in names
    assert "Texts at the data's entropy: summary (ar-64)" in names
    bullets = [block.items for block in document.blocks if isinstance(block, Bullets)]
    assert short_findings(TEXTS, alone) in bullets
    assert short_findings(MATCHED, measurements.matched()) in bullets
    by_name = {picture.name: picture for picture in document.pictures}
    assert "matched-seconds" in by_name
    overview = by_name["quality-entropy"].figure.axes[0]
    assert "T = 32" in overview.get_title("left")
    table = next(b for b in document.blocks if isinstance(b, Table) and b.caption.startswith("Texts at the entropy"))
    reached = {row[0]: row[3] for row in table.rows}
    assert reached["copula"] == "its texts are less varied at every temperature"


def test_the_repeater_is_no_energy():
    repeater = QUALITY[0] | {"energy": "repeater", "nll_nats_per_token": 0.1, "entropy_nats": 2.8}
    assert short_findings(TEXTS, [*QUALITY, repeater]) == short_findings(TEXTS, QUALITY)
    assert quality_table([*QUALITY, repeater]).rows[2][:3] == ("repeater (sanity check)", "–", "–")


def test_what_no_diffusion_sampler_wrote_has_no_steps(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(measurements.summary()))
    nothing = dict.fromkeys(
        ("steps", "candidates", "window_from", "window_to", "energy_temperature", "seconds_per_text")
    )
    rows = [row | nothing if row["energy"] in ("data", "autoregressive") else row for row in QUALITY]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "quality.parquet")
    actual = read_results(tmp_path)
    document = compose(load(Experiment, SMALLEST), actual, {}, [], "", NOW)
    table = next(b for b in document.blocks if isinstance(b, Table) and b.caption.startswith("Generated texts"))
    assert [row[:3] for row in table.rows[:2]] == [("data", "–", "–"), ("autoregressive sampler", "–", "–")]


def test_a_table_without_the_column_that_states_what_it_is_about_is_not_used(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    rows = [{name: value for name, value in row.items() if name != "published"} for row in BOUNDS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bounds.parquet")
    rows = [{name: value for name, value in row.items() if name != "ess"} for row in QUALITY]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "quality.parquet")
    pq.write_table(pa.Table.from_pylist(BOUNDS).slice(0, 0), tmp_path / "partition.parquet")
    actual = read_results(tmp_path)
    missing = dict(actual.missing)
    assert actual.bounds == []
    assert missing["bounds"].endswith("not usable, bounds.parquet has no published.")
    assert len(actual.quality) == len(QUALITY)
    assert missing["quality"].endswith("not measured are ess.")
    assert missing["partition"].endswith("not measured, partition.parquet has no rows.")


def test_the_origin_names_commit_machine_packages_dates_and_seconds():
    stages = [record("pretrain"), record("evaluate", commit="beef" * 10, uncommitted_changes=True, ended=None)]
    text = markdown_page(ReportDocument("origin", origin_blocks(stages, "name: x", NOW))).replace("\\", "")
    for expected in ("2026-11-24 12:00 UTC", " 1295 ", "c0ffeec0ffee", "beefbeefbeef, with uncommitted changes"):
        assert expected in text
    assert f"{'c0ffee' * 6} (pretrain); {'beef' * 10}, with uncommitted changes (evaluate)" in text
    assert f"torch {packages()['torch']}" in text
    assert f"processor {machine()['processor']}" in text
    assert text.count(f"cores {machine()['cores']}") == 1
    assert "name: x" in text


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 columns, but a row"):
        Table("t", ("a", "b"), [("1",)])


def test_weights_that_were_selected_by_the_validation_loss_are_named(tmp_path):
    summary = {"experiment": "smallest", "sequences": 4, "length": 16, "denoiser_nelbo": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    experiment = load(Experiment, SMALLEST)
    chosen = replace(experiment, pretrain=replace(experiment.pretrain, validate_every=1, keep_best=True))
    for settings, named in ((experiment, False), (chosen, True)):
        document = compose(settings, read_results(tmp_path), {}, [], "", NOW)
        output = "".join(parsed(html_page(document, {})).text)
        assert ("The weights of pretrain were selected by their loss" in output) == named
