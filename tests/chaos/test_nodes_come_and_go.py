"""A training on a cluster whose machines come and go by intention: fewer workers and more, drained, stopped.

python -m pytest -m chaos tests/chaos/test_nodes_come_and_go.py    # as root
"""

from collections.abc import Iterator

import pytest

from edlm.storage import committed
from tests.chaos.campaign import (
    END_SECONDS,
    NOTICED_SECONDS,
    STEPS,
    STRUCK,
    CampaignSite,
    Outcome,
    campaign_site,
    outcome,
)
from tests.chaos.tracked_runs import require_same_points
from tests.s3_server import BUCKET

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

ELASTIC_STEPS = 1800  # of which it takes the first hundreds with fewer workers, while a new machine starts
TOLERANCE = 1e-3  # nats


@pytest.fixture(scope="module")
def site() -> Iterator[CampaignSite]:
    with campaign_site() as site:
        yield site


@pytest.fixture(autouse=True)
def restored(site) -> Iterator[None]:
    yield
    site.restore()


@pytest.fixture(scope="module")
def undisturbed(site) -> Outcome:
    return outcome(site, site.submit("undisturbed"))


def test_three_workers_go_on_as_two_without_a_machine_and_as_three_with_a_new_one(site, undisturbed):
    job = site.submit("elastic", "--cluster.workers 3 --cluster.min_workers 2", f"--pretrain.steps {ELASTIC_STEPS}")
    job.until(STRUCK, END_SECONDS)
    node = site.machine_of_rank_0(job.name)
    node.kill()
    job.until("the cluster has room for 2 of 3 workers: trains with them", NOTICED_SECONDS)
    site.cluster.start_node(node)
    resumed = job.until(r"there is room for 3 workers: saved after step (\d+), goes on with them", END_SECONDS)
    actual = outcome(site, job)
    assert f"resumes after step {resumed[1]}\n" in job.log
    expected, losses = (sorted(one.metrics["pretrain"]["loss_nats_per_token"]) for one in (undisturbed, actual))
    assert [step for step, _ in losses] == list(range(ELASTIC_STEPS))
    assert dict(losses[:STEPS]) == pytest.approx(dict(expected), abs=TOLERANCE), "sums over other workers, no more"


def test_a_drained_machine_and_a_stopped_job_leave_a_last_checkpoint(site, undisturbed):
    job = site.submit("drained")
    job.until(STRUCK, END_SECONDS)
    node = site.machine_of_rank_0(job.name)
    site.cluster.drain(node)
    saved = job.until(r"a machine is drained: saved after step (\d+), goes on without it", NOTICED_SECONDS)
    job.until(rf"resumes after step {saved[1]}\n", NOTICED_SECONDS)
    assert node != site.machine_of_rank_0(job.name)
    site.cluster.stop_jobs()
    stopped = job.until(r"pretrain was stopped by SIGTERM and saved after step (\d+)", NOTICED_SECONDS)
    again = site.submit("stopped", place="drained")
    assert f"resumes after step {stopped[1]}\n" in again.ended(END_SECONDS)
    (run,) = (run for run in site.tracked("drained") if run.name == "pretrain")
    require_same_points(run.metrics, undisturbed.metrics["pretrain"])
    for name, digest in undisturbed.digests.items():
        marker = committed(f"s3://{BUCKET}/drained/nodes/{name}")
        assert marker is not None
        assert marker.digest == digest, f"{name} differs"
    node.kill()  # nothing new would run there
    site.cluster.start_node(node)
