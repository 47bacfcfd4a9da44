"""Parameters are flat, within MLflow's limits, and tell no secret."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.tracking.parameters import LONGEST_KEY, LONGEST_VALUE, parameters
from edlm.redaction import redacted

SECRETS = [
    "hf_token",
    "hf_token_value",
    "token_1",
    "token_",
    "password",
    "db.password",
    "apiKey",
    "api_key",
    "AWS_SECRET_ACCESS_KEY",
    "privateKey",
    "accessToken",
]
HARMLESS = [
    "tokenizer",
    "tokens",
    "tokens_per_second",
    "token_temperatures",
    "secretary",
    "monkey",
    "key",
    "keys",
    "author",
    "passes",
]


@pytest.mark.parametrize("key", SECRETS)
def test_a_secret_is_not_told(key):
    assert parameters({"outer": {key: "s3cr3t"}}) == {f"outer.{key}": "***"}
    assert parameters({"outer": {key: ["s3cr3t", {"deep": "s3cr3t"}]}}) == {f"outer.{key}": "***"}


@pytest.mark.parametrize("key", HARMLESS)
def test_what_only_looks_like_a_secret_is_reported(key):
    assert parameters({key: "plain"}) == {key: "plain"}


def test_users_and_passwords_in_uris_are_not_told():
    tree = {"files": ["s3://KEY:SECRET@bucket/x?region=eu", "postgresql://me:pw@host/db and https://a/b@c"]}
    assert redacted(tree) == {"files": ["s3://***@bucket/x?region=eu", "postgresql://***@host/db and https://a/b@c"]}


def test_a_tree_becomes_one_line_for_each_leaf():
    tree = {"a": {"b": 1, "c": None}, "betas": [0.9, 0.95], "runs": [{"k": 1}, {"k": True}], "text": "x", "none": {}}
    assert parameters(tree) == {
        "a.b": "1",
        "a.c": "null",
        "betas": "[0.9, 0.95]",
        "runs.0.k": "1",
        "runs.1.k": "true",
        "text": "x",
        "none": "{}",
    }


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.dictionaries(
    st.text(min_size=1, max_size=5), st.recursive(leaves, lambda deeper: st.lists(deeper, max_size=3))
)


@given(tree=trees)
def test_any_tree_keeps_to_the_limits(tree):
    for key, value in parameters(tree).items():
        assert len(key) <= LONGEST_KEY
        assert len(value) <= LONGEST_VALUE


def test_what_is_too_long_keeps_its_beginning_and_stays_distinct():
    first, second = "n" * 9000 + "1", "n" * 9000 + "2"
    cut = parameters({"a": first, "b": second, "k" * 300: "x"})
    assert len(cut["a"]) == LONGEST_VALUE
    assert cut["a"].startswith("nnn")
    assert "(9001:" in cut["a"]
    assert cut["a"] != cut["b"]
    assert max(map(len, cut)) == LONGEST_KEY
