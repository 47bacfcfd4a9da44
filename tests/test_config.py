"""A configuration is read strictly, and every mistake is named with its path, its value and a way out."""

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from edlm.config import (
    ConfigurationError,
    Fraction,
    Positive,
    PositiveFloat,
    config,
    dump,
    from_command_line,
    load,
    parse,
    plain,
)


@config
class Walk:
    legs: ClassVar[int] = 2  # of the class, and no setting
    kind: Literal["walk"] = "walk"
    stride: Positive = 1


@config
class Swim:
    kind: Literal["swim"] = "swim"
    depth: PositiveFloat = 2.0
    lanes: tuple[Positive, ...] = (1,)


Motion = Annotated[Walk | Swim, pydantic.Field(discriminator="kind")]


@config
class Leg:
    steps: Positive
    learning_rate: PositiveFloat = 3e-4
    """How far one step goes."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    rest: bool = False
    motion: Motion = Walk()

    def __post_init__(self) -> None:
        if self.betas[0] > self.betas[1]:
            raise ValueError(f"betas must rise, not {self.betas}")


@config
class Trip:
    name: str
    leg: Leg
    later: tuple[Motion, ...] = ()
    by_name: dict[str, Motion] = pydantic.Field(default_factory=dict)
    window: tuple[float, float] = (0.0, math.inf)
    note: str | None = None


TEXT = """
name: tiny
leg: {steps: 10, learning_rate: 1e-3, motion: {kind: swim, depth: 3}}
later: [{kind: walk}, {kind: swim, lanes: [1, 2]}]
"""


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "trip.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def test_a_file_becomes_typed_values(written):
    trip = load(Trip, written(TEXT))
    assert trip == Trip(
        name="tiny",
        leg=Leg(steps=10, learning_rate=0.001, motion=Swim(depth=3.0)),
        later=(Walk(), Swim(lanes=(1, 2))),
    )


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "+1e-3", "1.e-3", ".1e-2", "0.001"])
def test_every_way_of_writing_a_small_number_is_a_number(written, number):
    assert load(Leg, written(f"steps: 1\nlearning_rate: {number}")).learning_rate == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name:", "nam:", "nam: unknown key; did you mean 'name'?"),
        ("name:", "nam:", "name: missing; it has no default"),
        ("steps", "step", "leg.step: unknown key; did you mean 'steps'?"),
        ("steps: 10", "steps: 10, zzz: 1", "leg.zzz: unknown key; allowed: betas, learning_rate, motion, rest, steps"),
        ("depth", "dept", "leg.motion.dept: unknown key; did you mean 'depth'?"),
        ("{kind: walk}", "{kind: walk, srtide: 2}", "later.0.srtide: unknown key; did you mean 'stride'?"),
        ("{kind: walk}", "{kind: walk, leg: 2}", "later.0.leg: unknown key; allowed: kind, stride"),
        ("later:", "by_name: {a: {kind: swim, deep: 1}}\nlater:", "by_name.a.deep: unknown key; did you mean 'depth'?"),
        ("kind: swim, depth", "depth", "leg.motion.kind: missing; allowed: swim, walk"),
        ("{kind: swim, depth", "{kind: swimm, depth", "leg.motion.kind: there is no 'swimm'; did you mean 'swim'?"),
        ("{kind: walk}", "{kind: fly}", "later.0.kind: there is no 'fly'; allowed: swim, walk"),
        ("{kind: walk}", "7", "later.0: should be a mapping of settings; got 7"),
        ("steps: 10", "steps: ten", "leg.steps: Input should be a valid integer; got 'ten'"),
        ("steps: 10", "steps: 10.5", "leg.steps: Input should be a valid integer; got 10.5"),
        ("steps: 10", "steps: true", "leg.steps: Input should be a valid integer; got True"),
        ("steps: 10", "steps: '10'", "leg.steps: Input should be a valid integer; got '10'"),
        ("steps: 10", "steps: 10, rest: 1", "leg.rest: Input should be a valid boolean; got 1"),
        ("name: tiny", "name: yes", "name: Input should be a valid string; got True"),
        ("name: tiny", "name: 2020-01-01", "Object of type date is not JSON serializable; write text (in quotes)"),
        ("steps: 10", "steps: 0", "leg.steps: Input should be greater than or equal to 1; got 0"),
        ("1e-3", "-1e-3", "leg.learning_rate: Input should be greater than 0; got -0.001"),
        ("1e-3", ".nan", "leg.learning_rate: Input should be a finite number; got nan"),
        ("1e-3", ".inf", "leg.learning_rate: Input should be a finite number; got inf"),
        ("steps: 10", "steps: 10, betas: [0.9, 1.5]", "leg.betas.1: Input should be less than or equal to 1; got 1.5"),
        ("steps: 10", "steps: 10, betas: [0.9, .nan]", "leg.betas.1: Input should be"),
        ("steps: 10", "steps: 10, betas: [0.9]", "leg.betas.1: missing"),
        ("steps: 10", "steps: 10, betas: [0.95, 0.9]", "leg: betas must rise, not (0.95, 0.9)"),
        ("steps: 10", "steps: 10, steps: 20", "key 'steps' given twice"),
        ("name: tiny", "[name]: tiny", "a key must be a word"),
        ("name: tiny", "name: &loop [*loop]", "Circular reference"),
        ("name: tiny", "name: [tiny", "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_place_its_value_and_a_hint(written, old, new, message):
    path = written(TEXT.replace(old, new, 1))
    with pytest.raises(ConfigurationError) as error:
        load(Trip, path)
    assert message in str(error.value)
    assert path in str(error.value)


def test_every_mistake_is_reported_at_once(written):
    with pytest.raises(ConfigurationError) as error:
        load(Trip, written("name: 1\nleg: {steps: 0, rest: maybe}\n"))
    assert [key in str(error.value) for key in ("name:", "leg.steps:", "leg.rest:")] == [True] * 3


def test_a_long_value_is_cut_in_the_message(written):
    with pytest.raises(ConfigurationError) as error:
        load(Trip, written(f"name: x\nleg: [{', '.join('1' * 9 for _ in range(999))}]"))
    assert len(str(error.value)) < 300


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no configuration file .*absent\.yaml"):
        load(Trip, tmp_path / "absent.yaml")


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot read the configuration file"):
        load(Trip, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: \xff\xfe", "not UTF-8"),
        (b"", "holds nothing, not a mapping"),
        (b"- a\n- b\n", "holds a list, not a mapping"),
        (b"word", "holds a str, not a mapping"),
    ],
)
def test_a_file_that_is_no_mapping_of_settings_is_refused(written, content, message):
    with pytest.raises(ConfigurationError, match=message):
        load(Trip, written(content))


def test_a_setting_of_a_base_class_keeps_its_help_text():
    @config
    class Marathon(Leg):
        distance: Positive = 42
        """Kilometres."""

    fields = TypeAdapter(Marathon).json_schema()["properties"]
    assert fields["learning_rate"]["description"] == "How far one step goes."
    assert fields["distance"]["description"] == "Kilometres."
    assert "description" not in fields["steps"]


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        Walk().stride = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_a_configuration_written_in_python_is_judged_as_strictly():
    with pytest.raises(pydantic.ValidationError):
        Walk(stride="2")  # pyright: ignore[reportArgumentType]
    with pytest.raises(pydantic.ValidationError):
        Walk(strid=2)  # pyright: ignore[reportCallIssue]


finite = st.floats(min_value=1e-12, max_value=1e12)
positive = st.integers(1, 2**40)
motions = st.builds(Walk, stride=positive) | st.builds(
    Swim, depth=finite, lanes=st.lists(positive, max_size=3).map(tuple)
)
legs = st.builds(
    Leg,
    steps=positive,
    learning_rate=finite,
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda pair: (min(pair), max(pair))),
    rest=st.booleans(),
    motion=motions,
)
trips = st.builds(
    Trip,
    name=st.text() | st.sampled_from(["1e-3", "yes", "null", "2020-01-01", "0x10", "12:30", "~", "&a", "- x", "a: b"]),
    leg=legs,
    later=st.lists(motions, max_size=3).map(tuple),
    by_name=st.dictionaries(st.text(min_size=1), motions, max_size=2),
    window=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
    note=st.none() | st.text(),
)


@settings(deadline=None)
@given(trips)
@example(Trip(name="\x85", leg=Leg(steps=1)))  # a line break to YAML
@example(Trip(name="é\n\x85ü\u2028", leg=Leg(steps=1), note="é\n ü\t\n"))
def test_what_is_dumped_is_loaded_back_equal(tmp_path_factory, trip):
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(dump(trip), encoding="utf-8")
    assert load(Trip, path) == trip
    assert parse(Trip, plain(trip)) == trip


def test_lines_of_a_text_stay_lines_in_every_alphabet_and_single_lines_are_ascii():
    written = dump(Trip(name="é", leg=Leg(steps=1), note="# déjà\n  x = 1\n"))
    assert "note: |\n  # déjà\n    x = 1\n" in written
    assert 'name: "\\xE9"' in written


@settings(deadline=None)
@given(trips)
def test_a_command_line_without_overrides_gives_the_file(tmp_path_factory, trip):
    path = tmp_path_factory.getbasetemp() / "command_line.yaml"
    path.write_text(dump(trip), encoding="utf-8")
    assert from_command_line(Trip, [str(path)]) == trip


@pytest.mark.parametrize(
    ("arguments", "read", "value"),
    [
        ("--leg.steps 3", lambda trip: trip.leg.steps, 3),
        ("--leg.learning_rate 1e-2", lambda trip: trip.leg.learning_rate, 0.01),
        ("--leg.learning-rate 1e-2", lambda trip: trip.leg.learning_rate, 0.01),
        ("--leg.betas 0.1 0.2", lambda trip: trip.leg.betas, (0.1, 0.2)),
        ("--leg.rest", lambda trip: trip.leg.rest, True),
        ("--leg.motion.depth 9", lambda trip: trip.leg.motion, Swim(depth=9.0)),
        ("--leg.motion.lanes 4 5 6", lambda trip: trip.leg.motion.lanes, (4, 5, 6)),
        ("--later.1.depth 9", lambda trip: trip.later, (Walk(), Swim(depth=9.0, lanes=(1, 2)))),
        ("--window 0.5 inf", lambda trip: trip.window, (0.5, math.inf)),
        ("--note text", lambda trip: trip.note, "text"),
    ],
)
def test_an_override_changes_its_own_setting_and_no_other(written, arguments, read, value):
    path = written(TEXT)
    changed = from_command_line(Trip, [path, *arguments.split()])
    assert read(changed) == value
    differing = [name for name in plain(changed) if plain(changed)[name] != plain(load(Trip, path))[name]]
    assert differing == [arguments.removeprefix("--").split(".")[0].split()[0]]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("--leg.steps -1", 1, "command line: leg.steps: Input should be greater than or equal to 1; got -1"),
        ("--leg.steps 0 --leg.learning_rate inf", 1, "leg.learning_rate: Input should be a finite number; got inf"),
        ("--leg.betas 0.9 0.1", 1, "leg: betas must rise, not (0.9, 0.1)"),
        ("--leg.steps ten", 2, "--leg.steps"),
        ("--leg.step 3", 2, "--leg.steps"),
        ("--leg.betas 0.9", 2, "--leg.betas"),
        ("--leg.motion.kind fly", 2, "--leg.motion.kind"),
        ("--later.7.stride 2", 2, "--later.7.stride"),
    ],
)
def test_a_wrong_setting_exits_with_1_and_a_wrong_flag_with_2_and_states_where(
    written, capsys, arguments, status, message
):
    with pytest.raises(SystemExit) as end:
        from_command_line(Trip, [written(TEXT), *arguments.split()])
    streams = capsys.readouterr()
    assert end.value.code == status
    assert message in streams.err
    assert streams.out == ""


def test_a_mistake_in_the_file_exits_with_1_before_the_overrides_are_read(written, capsys):
    with pytest.raises(SystemExit) as end:
        from_command_line(Trip, [written("name: tiny\nleg: {steps: 0}"), "--leg.steps", "5"])
    assert end.value.code == 1
    assert "configuration error" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--leg.steps", "3"]])
def test_a_command_line_without_a_file_shows_the_usage_and_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        from_command_line(Trip, arguments)
    assert end.value.code == 2
    assert "EXPERIMENT.yaml" in capsys.readouterr().err


def test_help_alone_shows_the_usage(capsys):
    with pytest.raises(SystemExit) as end:
        from_command_line(Trip, ["--help"], description="Goes places.")
    assert end.value.code == 0
    assert "Goes places." in capsys.readouterr().out


def test_help_after_a_file_lists_every_setting_with_its_value_and_its_text(written, capsys):
    with pytest.raises(SystemExit) as end:
        from_command_line(Trip, [written(TEXT), "--help"])
    listing = capsys.readouterr().out
    assert end.value.code == 0
    assert all(word in listing for word in ("--leg.steps", "--later.1.lanes", "0.001", "How far one step goes."))
