"""API keys: only hashes are kept, only the owner reads them, and who has none learns nothing."""

import stat
import time

import pytest

from cluster.http.limits.rate_limit import RateLimit
from cluster.http.limits.settings import RequestLimits
from cluster.http.local import serving
from cluster.http.middleware.api_keys import APIKeys, BadKeyFile, add_key, require_keys
from edlm.inference.request import Limits
from tests.cluster.asking import COMPLETIONS, INFILL, JSON, ask, error, eventually
from tests.cluster.conftest import PATIENT


@pytest.fixture
def keyed(generator, tmp_path):
    """A service that asks for a key, the key, and the file."""
    path = tmp_path / "keys"
    key = add_key(path, "anna")
    with serving(generator, "7/0", request_limits=RequestLimits(keys=path), limits=PATIENT) as service:
        yield service.url, key, path


def bearing(key: str) -> dict[str, str]:
    return {**JSON, "authorization": f"Bearer {key}"}


def test_a_key_is_kept_as_a_hash_that_only_its_owner_reads(tmp_path):
    path = tmp_path / "new" / "keys"
    keys = [add_key(path, name) for name in ("anna", "ben")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [key for key in keys if key in path.read_text()]
    assert [APIKeys(path).owner(key) for key in keys] == ["anna", "ben"]
    assert len(set(keys)) == 2


def test_only_the_very_key_is_one(tmp_path):
    key = add_key(tmp_path / "keys", "anna")
    keys = APIKeys(tmp_path / "keys")
    for other in ("", key[:-1], key + "a", key.swapcase(), f" {key}", "edlm-", "\udcff", "ключ"):
        assert keys.owner(other) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o601])
def test_a_file_that_others_may_read_or_write_is_refused(tmp_path, mode):
    path = tmp_path / "keys"
    add_key(path, "anna")
    path.chmod(mode)
    with pytest.raises(BadKeyFile, match="chmod 600"):
        APIKeys(path)
    with pytest.raises(BadKeyFile, match="chmod 600"):
        add_key(path, "ben")


@pytest.mark.parametrize(
    ("text", "message"),
    [("anna sha256:12", "line 1"), ("anna", "line 1"), ("\n\nb c d", "line 3"), ("anna \xff", "line 1")],
)
def test_a_damaged_file_is_refused_by_its_line(tmp_path, text, message):
    path = tmp_path / "keys"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(BadKeyFile, match=message):
        APIKeys(path)


def test_a_missing_file_is_refused_with_the_way_to_one(tmp_path):
    for read in (APIKeys, require_keys):
        with pytest.raises(BadKeyFile, match=r"cannot be read .*workflows.serve key NAME --file .*keys` makes one"):
            read(tmp_path / "keys")
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    with pytest.raises(BadKeyFile, match="is not a file"):
        APIKeys(folder)


def test_a_key_file_without_keys_is_refused_where_one_is_required(tmp_path):
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    with pytest.raises(
        BadKeyFile, match=r"holds no API key, so that every request would be rejected; .*--file .*keys` makes one"
    ):
        require_keys(path)
    add_key(path, "anna")
    require_keys(path)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "ä", "a" * 65])
def test_a_name_that_could_break_a_line_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="not a valid key name"):
        add_key(tmp_path / "keys", name)


def test_a_name_has_one_key(tmp_path):
    add_key(tmp_path / "keys", "anna")
    with pytest.raises(ValueError, match="already has a key"):
        add_key(tmp_path / "keys", "anna")


def test_without_its_key_nothing_is_reported_but_health_and_the_page(keyed):
    url, key, _ = keyed
    wrong = [JSON, bearing(key[:-1]), bearing(key + "a"), {**JSON, "authorization": key}, bearing("edlm-")]
    for headers in [*wrong, {**JSON, "authorization": f"Basic {key}"}]:
        for path in (COMPLETIONS, INFILL, "/v1/tokenize", "/v1/nothing"):
            response = ask(url, path, {}, headers=headers)
            assert error(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            error(ask(url, path, method="GET", headers=headers), 401)
        for path in ("/", "/healthz", "/readyz"):
            assert ask(url, path, method="GET", headers=headers).status_code == 200
    error(ask(url, f"{COMPLETIONS}?api_key={key}", {}), 401)
    assert ask(url, COMPLETIONS, {}, headers=bearing(key)).status_code == 200


def test_a_key_is_asked_for_before_a_body_is_read(keyed):
    url, _, _ = keyed
    error(ask(url, COMPLETIONS, b" " * 2**21), 401)


def test_a_new_key_counts_at_once_and_a_withdrawn_one_no_more(keyed):
    url, key, path = keyed
    other = add_key(path, "ben")
    assert ask(url, "/v1/models", method="GET", headers=bearing(other)).status_code == 200
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("ben")))
    error(ask(url, "/v1/models", method="GET", headers=bearing(key)), 401)
    path.chmod(0o644)
    assert error(ask(url, "/v1/models", method="GET", headers=bearing(other)), 503)["code"] == "keys_unavailable"


def test_each_key_has_its_own_work_and_learns_when_there_is_more(generator, tmp_path):
    path = tmp_path / "keys"
    anna, ben = add_key(path, "anna"), add_key(path, "ben")
    request_limits = RequestLimits(keys=path, work_per_second=1e-3, burst_seconds=1e3)
    with serving(generator, "7/0", request_limits=request_limits, limits=PATIENT) as service:
        assert ask(service.url, COMPLETIONS, {}, headers=bearing(anna)).status_code == 200
        response = ask(service.url, COMPLETIONS, {}, headers=bearing(anna))
        refused = error(response, 429)
        assert (refused["type"], refused["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert int(response.headers["retry-after"]) > 60
        error(ask(service.url, "/v1/score", {"text": "a"}, headers=bearing(anna)), 429)
        assert ask(service.url, COMPLETIONS, {}, headers=bearing(ben)).status_code == 200


def test_what_the_engine_has_no_room_for_costs_nothing(generator, tmp_path):
    anna = add_key(tmp_path / "keys", "anna")
    request_limits = RequestLimits(keys=tmp_path / "keys", work_per_second=1e-3, burst_seconds=1e3, max_seconds=3600)
    with serving(generator, "7/0", request_limits=request_limits, limits=Limits(patience_seconds=1e-6)) as service:
        blocker = service.endpoint.engine.run(1e6, _endless(), "other", time.monotonic() + 3600)
        refused = [ask(service.url, COMPLETIONS, {}, headers=bearing(anna)) for _ in range(3)]
        assert [error(answer, 429)["code"] for answer in refused] == ["queue_full"] * 3
        blocker.cancel()
        eventually(lambda: ask(service.url, COMPLETIONS, {}, headers=bearing(anna)).status_code == 200)


def _endless():
    while True:
        time.sleep(0.001)
        yield


def test_best_of_is_paid_for_once(generator, tmp_path):
    anna = add_key(tmp_path / "keys", "anna")
    request_limits = RequestLimits(keys=tmp_path / "keys", work_per_second=1e-3, burst_seconds=1e3)
    with serving(generator, "7/0", request_limits=request_limits, limits=PATIENT) as service:
        request = {"max_tokens": 4, "best_of": 2}
        assert ask(service.url, COMPLETIONS, request, headers=bearing(anna)).status_code == 200


def test_what_was_used_comes_back_with_time_up_to_the_burst():
    now = 0.0
    rate_limit = RateLimit(per_second=2, burst=10, clock=lambda: now)
    rate_limit.use("a", 25)
    assert rate_limit.wait_seconds("a") == 8
    assert rate_limit.wait_seconds("b") == 0
    now = 7.0
    assert rate_limit.wait_seconds("a") == 1
    now = 8.0
    rate_limit.use("a", 0)
    now = 1000.0
    rate_limit.use("a", 11)
    assert rate_limit.wait_seconds("a") == 1
