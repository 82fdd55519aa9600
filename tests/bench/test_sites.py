"""A table that nobody prints for weeks still prints."""

import pytest

from tests.bench.sites import COUNTS, measure

pytestmark = pytest.mark.whole


def test_the_coordinators_server_still_runs_over_sites_that_answer_at_once():
    """The run's configuration gained a key once, and the table was broken until somebody asked."""
    seconds, peak_mb = measure(COUNTS[0])
    assert 0 < seconds < 1
    assert peak_mb > 50
