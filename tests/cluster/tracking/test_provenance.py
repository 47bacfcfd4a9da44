"""What is told of the machine and its packages."""

from importlib.metadata import version

from cluster.tracking import provenance as machine


def test_a_package_that_is_lacking_is_named_as_such(monkeypatch):
    """A machine without Ray or MLflow measures samplers all the same."""
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    actual = machine.packages()
    assert actual["torch"] == version("torch")
    assert actual["no-such-package"] == "not installed"
