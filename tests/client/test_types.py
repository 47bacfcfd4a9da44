"""Errors of a service name the time to wait."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from edlm.client.errors import error_of


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("soon", None), (None, None)])
def test_the_time_to_wait_is_a_number_of_seconds(header, seconds):
    assert error_of("busy", 429, header).retry_after == seconds


def test_the_time_to_wait_may_be_a_date():
    later = error_of("busy", 429, format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert later.retry_after == pytest.approx(90, abs=5)
    assert error_of("busy", 429, "Wed, 21 Oct 2015 07:28:00 GMT").retry_after == 0
