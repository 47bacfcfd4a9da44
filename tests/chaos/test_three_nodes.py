"""The pipeline as a job on a cluster of three machines that fail: it ends as one that nothing disturbed.

python -m pytest -m chaos tests/chaos/test_three_nodes.py    # as root, less than 15 minutes
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator

import pytest

from tests.chaos.campaign import (
    END_SECONDS,
    NOTICED_SECONDS,
    STEPS,
    STRUCK,
    CampaignSite,
    Outcome,
    campaign_site,
    outcome,
    require_same,
)
from tests.chaos.ray_on_machines import RayJob, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

LIMIT_SECONDS = 15 * 60


@pytest.fixture(scope="module")
def began() -> float:
    return time.monotonic()


@pytest.fixture(scope="module")
def site(began) -> Iterator[CampaignSite]:  # noqa: ARG001
    with campaign_site() as site:
        yield site


@pytest.fixture(autouse=True)
def restored(site) -> Iterator[None]:
    yield
    site.restore()


@pytest.fixture(scope="module")
def undisturbed(site) -> Outcome:
    return outcome(site, site.submit("undisturbed"))


def test_an_undisturbed_pipeline_leaves_what_it_should(undisturbed):
    assert {name.rpartition("-")[0] for name in undisturbed.digests} == {"prepare", "pretrain", "register"}
    assert undisturbed.status == dict.fromkeys(("nodes", "prepare", "pretrain", "register"), "FINISHED")
    steps = [step for step, _ in sorted(undisturbed.metrics["pretrain"]["loss_nats_per_token"])]
    assert steps == list(range(STEPS))


def killed(site: CampaignSite, job: RayJob) -> None:
    """A node loses its power and its disk: that of the first worker. Another one takes its place."""
    node = site.machine_of_rank_0(job.name)
    node.kill()
    shutil.rmtree(node.folder / "home")
    job.until("restart 1 of at most", NOTICED_SECONDS)
    site.cluster.start_node(node)


def cut_off(site: CampaignSite, job: RayJob) -> None:
    """A node is unreachable until the cluster has given it up; back again, its Ray ends, and is started anew."""
    node = site.machine_of_rank_0(job.name)
    node.cut_off()
    job.until(rf"a machine with workers is gone, or cannot be reached: {node.address}; restart 1", NOTICED_SECONDS)
    job.until("resumes after step", NOTICED_SECONDS)
    node.connect()
    wait_for(lambda: not site.cluster.runs_on(node), 60.0, node.processes)
    site.cluster.start_node(node)


def without_services(site: CampaignSite, _: RayJob) -> None:
    """The tracking server is unreachable for a minute, and the store for twenty seconds of it."""
    site.tracking.cut_off()
    time.sleep(20)
    site.store.cut_off()
    time.sleep(20)
    site.store.connect()
    time.sleep(20)
    site.tracking.connect()


@pytest.mark.parametrize("fault", [killed, cut_off, without_services])
def test_a_pipeline_that_is_struck_ends_as_one_that_is_not(
    site, undisturbed, fault: Callable[[CampaignSite, RayJob], None]
):
    job = site.submit(fault.__name__.replace("_", "-"))
    job.until(STRUCK, END_SECONDS)
    fault(site, job)
    require_same(outcome(site, job), undisturbed)
    if fault in (killed, cut_off):
        assert len(re.findall(r"restart \d of at most", job.log)) == 1, job.log


def test_the_whole_campaign_took_less_than_fifteen_minutes(began, record_property):
    seconds = time.monotonic() - began
    record_property("remark", f"campaign of {seconds:.0f} s, of at most {LIMIT_SECONDS}")
    assert seconds < LIMIT_SECONDS
