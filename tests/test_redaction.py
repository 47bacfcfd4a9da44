"""No secret is told: in a configuration, a URI, a message or a log record, whatever is around it."""

import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edlm.redaction import HIDDEN, redact_logs, redacted, redacted_text

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
secrets = st.text(LETTERS, min_size=20, max_size=40).map(lambda text: "Zq7" + text)
words = st.text(LETTERS + " .,:/-\n", max_size=30)
FORMS = {
    "user and password of a URI": "s3://me:{}@bucket/x?region=eu",
    "password alone": "postgresql://:{}@host:5432/db",
    "signed URL of S3": "https://host/x?X-Amz-Credential=me&X-Amz-Signature={}",
    "signed URL of Azure": "https://host/x?sv=2024&sig={}&se=2026",
    "token in a query": "https://host/x?access_token={}#top",
    "variable": "AWS_SECRET_ACCESS_KEY={}",
    "session token": "AWS_SESSION_TOKEN={}",
    "bearer": "Authorization: Bearer {}",
    "basic": "Authorization: Basic {}==",
    "JSON": '{{"client_secret": "{}"}}',
    "keyword argument": "S3FileSystem(secret='{}')",
    "hub": "hf_{}",
}


@given(secret=secrets, before=words, after=words, form=st.sampled_from(sorted(FORMS)))
def test_no_form_of_a_secret_is_told_whatever_is_around_it(secret, before, after, form):
    text = f"{before} {FORMS[form].format(secret)} {after}"
    assert secret not in redacted_text(text)
    assert redacted_text(redacted_text(text)) == redacted_text(text)


@given(path=st.lists(st.sampled_from(["a", "runs", "files"]), min_size=1, max_size=3), secret=secrets)
def test_no_configuration_tells_a_secret(path, secret):
    tree = {"password": secret, "uri": f"https://u:{secret}@h/x", "list": [f"API_KEY={secret}"]}
    for name in path:
        tree = {name: tree}
    assert secret not in str(redacted(tree))


@pytest.mark.parametrize("identity", ["AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE"])
def test_the_identity_of_an_aws_key_is_not_told(identity):
    assert redacted_text(f"InvalidAccessKeyId: {identity}.") == f"InvalidAccessKeyId: {HIDDEN}."


@pytest.mark.parametrize(
    "text",
    [
        "tokens_per_second=3, tokenizer=bytes",
        "token_temperatures: 0.9",
        "s3://bucket/runs?region=eu, https://host/a/b@c",
        "a bearer of news, and a hf_model",
        "set AWS_SECRET_ACCESS_KEY, or MLFLOW_TRACKING_TOKEN",
    ],
)
def test_what_is_no_secret_is_told(text):
    assert redacted_text(text) == text


@pytest.fixture
def _records_are_redacted():
    before = logging.getLogRecordFactory()
    redact_logs()
    redact_logs()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("_records_are_redacted")
def test_no_log_record_tells_a_secret(caplog):
    secret = "Zq7abcdefghijklmnop"
    log = logging.getLogger("edlm.of.a.test")
    log.warning("asked %s", f"https://me:{secret}@host")
    log.warning("%s", ValueError(f"s3://me:{secret}@bucket"))
    log.warning("%s %d", "plain", 3)
    try:
        raise OSError(f"https://host?token={secret}")
    except OSError:
        log.exception("failed")
    assert secret not in caplog.text
    assert f"https://{HIDDEN}@host" in caplog.text
    assert f"https://host?token={HIDDEN}" in caplog.text
    assert caplog.records[2].args == ("plain", 3)


def test_an_error_that_ends_a_process_or_a_thread_of_it_is_printed_without_secrets():
    script = """
import threading
from edlm.redaction import redact_logs

redact_logs()

def fail(kind):
    raise kind("s3://me:Zq7abcdef@bucket/x: https://host/x?X-Amz-Signature=Zq7abcdef&region=eu")

thread = threading.Thread(target=fail, args=(OSError,), name="shipping")
thread.start()
thread.join()
try:
    fail(OSError)
except OSError as error:
    raise RuntimeError("password=Zq7abcdef") from error
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Zq7abcdef" not in ended.stdout + ended.stderr
    lines = ended.stderr.splitlines()
    assert lines[0] == "Exception in thread shipping:"
    assert lines.count(f"OSError: s3://{HIDDEN}@bucket/x: https://host/x?X-Amz-Signature={HIDDEN}&region=eu") == 2
    assert lines[-1] == f"RuntimeError: password={HIDDEN}"
    assert ", in fail\n" in ended.stderr
