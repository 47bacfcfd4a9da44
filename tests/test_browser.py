"""A machine without a browser skips the tests that need one; in CI they fail."""

import pytest
from _pytest.outcomes import Failed, Skipped

from tests.browser import chromium


@pytest.mark.parametrize(("ci", "outcome"), [(None, Skipped), ("true", Failed)])
def test_without_a_browser_a_test_skips_and_fails_in_ci(monkeypatch, tmp_path, ci, outcome):
    monkeypatch.setenv("PATH", str(tmp_path))
    if ci is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="install chromium"):
        chromium()


def test_the_browser_that_is_there_is_found(monkeypatch, tmp_path):
    (tmp_path / "chromium").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chromium() == str(tmp_path / "chromium")
