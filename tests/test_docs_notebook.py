"""The quickstart notebook runs, and its stored outputs are those of a full run of the cells that it shows."""

import re

import matplotlib.pyplot as plt
import nbformat
import pytest

from docs.hooks.execute_quickstart import code_digest, execute
from tests.paths import PROJECT

NOTEBOOK = nbformat.read(PROJECT / "docs" / "quickstart.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]


@pytest.fixture
def few_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("EDLM_QUICKSTART_SHARE", "0.005")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(plt, "show", plt.close)


@pytest.mark.usefixtures("few_steps")
def test_the_notebook_runs_from_its_first_cell_to_its_last(capsys):
    plt.switch_backend("agg")
    names: dict = {}
    for i, cell in enumerate(CODE):
        exec(compile(cell.source, f"quickstart cell {i}", "exec"), names)
    assert "entropy" in capsys.readouterr().out
    assert plt.get_fignums() == []


def test_the_stored_outputs_are_of_one_run_in_order_and_without_errors_or_local_paths():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    texts = [output.text for output in outputs if output.output_type == "stream"]
    assert [text for text in texts if re.search(r"(/tmp|/home|/root|/work)/|Warning", text)] == []
    assert (PROJECT / "docs" / "quickstart.ipynb").stat().st_size < 200_000


def test_the_stored_outputs_are_of_the_code_that_is_shown():
    """A cell that was changed after the run has outputs of other code."""
    assert NOTEBOOK.metadata["edlm"]["code_sha256"] == code_digest(NOTEBOOK)


def test_executing_a_notebook_stores_the_outputs_with_a_digest_of_their_code(tmp_path):
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(6 * 7)")]), path)
    execute(path)
    executed = nbformat.read(path, as_version=4)
    assert executed.cells[0].outputs[0].text == "42\n"
    assert executed.metadata["edlm"]["code_sha256"] == code_digest(executed)
    executed.cells[0].source += " "
    assert executed.metadata["edlm"]["code_sha256"] != code_digest(executed)


def test_the_stored_bounds_fall_towards_the_entropy_with_the_energies():
    text = "".join(output.text for cell in CODE for output in cell.outputs if output.output_type == "stream")
    entropy = float(re.search(r"entropy: ([\d.]+) nats", text)[1])
    rows = {
        name: [float(mean) for mean in re.findall(r"T=\d: +([\d.]+)", line)]
        for name, line in re.findall(
            r"^(plain diffusion|step energy, k = 8|conditional energy, exact) +(T=1.*)$", text, re.M
        )
    }
    plain, step, exact = rows["plain diffusion"], rows["step energy, k = 8"], rows["conditional energy, exact"]
    assert all(energy < without for energy, without in zip(step[:3], plain[:3], strict=True))
    assert all(entropy - 0.3 < best < energy for best, energy in zip(exact[:2], step[:2], strict=True))
