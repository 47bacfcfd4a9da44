"""A server loads models from the prefixes that its operator allows, and no path leads out of them."""

import pytest

from cluster.config import Serving
from cluster.model_sources import require_source
from edlm.config import ConfigurationError


@pytest.mark.parametrize(
    ("uri", "prefixes"),
    [
        ("s3://bucket/models/a", ["s3://"]),
        ("s3://bucket/models/a", ["gs://", "s3://bucket/models"]),
        ("s3://bucket/models/a", ["s3://bucket/models/"]),
        ("file:///srv/models/a", ["file://"]),
        ("/srv/models/a", ["file:///srv"]),
        ("s3://bucket/models", ["s3://bucket/models"]),
    ],
)
def test_a_model_in_an_allowed_place_is_loaded(uri, prefixes):
    require_source(uri, prefixes)


@pytest.mark.parametrize(
    ("uri", "prefixes"),
    [
        ("http://host/a", Serving().sources),
        ("memory://a", Serving().sources),
        ("ftp://host/a", Serving().sources),
        ("s3://other/a", ["s3://bucket"]),
        ("s3://bucket-2/a", ["s3://bucket"]),
        ("s3://bucket/models/../private/a", ["s3://bucket/models"]),
        ("file:///srv/models/../../etc", ["file:///srv/models"]),
        ("/etc/a", ["s3://"]),
        ("zip://a::s3://bucket/b.zip", ["s3://"]),
        ("s3://bucket/b::http://host/a", ["s3://"]),
        ("s3://bucket/a", []),
    ],
)
def test_a_model_elsewhere_is_refused(uri, prefixes):
    with pytest.raises(ConfigurationError, match=r"serving\.sources: the model lies at .* loaded from .* only"):
        require_source(uri, prefixes)


def test_a_link_does_not_lead_out_of_an_allowed_folder(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "models" / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigurationError, match=r"serving\.sources"):
        require_source(f"file://{tmp_path}/models/a", [f"file://{tmp_path}/models"])


def test_the_refusal_tells_no_password():
    with pytest.raises(ConfigurationError, match=r"ftp://\*\*\*@host"):
        require_source("ftp://me:pw@host/a", ["s3://"])


@pytest.mark.parametrize("prefix", ["s3", "", "://x", "file://models"])
def test_a_setting_that_is_no_place_is_refused(prefix):
    with pytest.raises(ValueError, match=r"serving\.sources: .* is no prefix"):
        Serving(sources=(prefix,))
