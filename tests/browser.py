"""The browser of the tests."""

import os
import shutil

import pytest


def chromium() -> str:
    """Return the path of Chromium; without it the test is skipped, or fails where the environment has `CI`."""
    if path := shutil.which("chromium"):
        return path
    if os.environ.get("CI"):
        pytest.fail("no browser, and CI is set, so that the tests with a browser must run: install chromium")
    pytest.skip("no browser: install chromium")
