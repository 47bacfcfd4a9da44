"""The whole chain with networks that others made, as a user runs it: two Ray workers, ZeRO 2, MLflow and Serve."""

import itertools
import json
import os
import re
import socket
from pathlib import Path

import pytest
import yaml

from edlm.huggingface.remote_code import CONSENT
from tests.chats import write_chat_tokenizer
from tests.huggingface.networks import ROLES, WORDS, randomised, save_network, transformers
from tests.workflows.commands import run

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.timeout(900)]

LINES = ["the cat sat on the mat", "the dog ran on the log", "a dog sat far and a cat ran far", "a cat sat on a log"]
HEAD = {"width": 16, "layers": 1, "heads": 2}
TRAINING = {"steps": 3, "batch": 8}
THEIR_CODE = """
from transformers import GPT2Config, GPT2LMHeadModel


class TheirConfig(GPT2Config):
    model_type = "theirs"


class TheirModel(GPT2LMHeadModel):
    config_class = TheirConfig
"""
CLASSES = {"AutoConfig": "modeling_theirs.TheirConfig", "AutoModelForCausalLM": "modeling_theirs.TheirModel"}


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def save_their_causal_network(folder: Path) -> None:
    """Save a GPT-2 that only code of its makers opens, with a tokenizer that has a chat template and no mask."""
    write_chat_tokenizer(folder)
    size = {"vocab_size": 259, "n_positions": 128, "n_embd": 16, "n_layer": 1, "n_head": 2}
    randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(**size))).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "theirs", "auto_map": CLASSES}))
    (folder / "modeling_theirs.py").write_text(THEIR_CODE)


def test_a_masked_and_a_causal_network_are_trained_on_given_energies_measured_and_served(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(" ".join(three) for three in itertools.product(LINES, repeat=3)))
    size = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(**size, intermediate_size=24, max_position_embeddings=16)
    save_network(tmp_path / "bert", transformers.BertForMaskedLM(bert))
    gpt2 = transformers.GPT2Config(vocab_size=len(WORDS), n_positions=16, n_embd=16, n_layer=1, n_head=2)
    save_network(tmp_path / "gpt2", transformers.GPT2LMHeadModel(gpt2), **ROLES, bos_token="[CLS]")
    experiment = {
        "name": "foreign",
        "data": {
            "corpus": {"kind": "files", "paths": [str(tmp_path / "text.txt")], "cut": "line"},
            "tokenizer": {"kind": "huggingface", "uri": str(tmp_path / "bert"), "separator": "[SEP]"},
            "length": 8,
            "shares": {"validation": 0.2, "judge": 0},
        },
        "denoiser": {"kind": "huggingface", "folder": str(tmp_path / "bert")},
        "autoregressive": {"kind": "huggingface", "folder": str(tmp_path / "gpt2")},
        "pretrain": {**TRAINING, "ema": 0.9, "lora": {"rank": 2}},
        "autoregress": TRAINING,
        "finetune": [
            {"name": "step", "energy": {"kind": "step", **HEAD}, "training": TRAINING},
            {"name": "conditional", "energy": {"kind": "conditional", **HEAD}, "training": TRAINING},
            {"name": "coar", "energy": {"kind": "coar"}},
        ],
        "evaluate": {
            "sequences": 4, "steps": [1, 2], "candidates": [1, 2], "nelbo_draws": 2, "paper_draws": 2,
            "log_partition_draws": [2], "timed_texts": 2, "timed_steps": [2],
        },
        "register": {"model": "foreign", "energy": "step", "sampler": {"steps": 4, "candidates": 2}},
        "serving": {"port": unused_port(), "max_replicas": 1},
        "cluster": {"workers": 2, "zero": {"stage": 2}},
    }  # fmt: skip
    (tmp_path / "foreign.yaml").write_text(yaml.safe_dump(experiment))
    output = run(tmp_path / "home", "pipeline", experiment=tmp_path / "foreign.yaml")
    started = set(re.findall(r"^\[([\w-]+)\] started", output, re.MULTILINE))
    assert {"import-denoiser", "import-autoregressive", "pretrain", "autoregress", "finetune-coar"} <= started
    assert re.search(r"\[pretrain\] trains [\d,]+ of [\d,]+ parameters", output)
    assert "[autoregress] trains" not in output  # all of them
    answer = re.search(r"the endpoint answered: '(.*)'", output)
    assert answer is not None, output
    assert {*answer[1].split()} <= {word for word in WORDS if word not in ROLES.values() or word == "[SEP]"}


def test_a_causal_network_with_code_of_its_makers_learns_conversations_on_two_workers_and_is_served(tmp_path):
    save_their_causal_network(tmp_path / "theirs")
    rows = [
        [{"role": "user", "content": f"{a} plus {b}"}, {"role": "assistant", "content": f"that is {a + b}"}]
        for a in range(12)
        for b in range(12)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    end = "<|im_end|>"
    experiment = {
        "name": "chats",
        "data": {
            "corpus": {"kind": "files", "paths": [str(tmp_path / "chats.jsonl")], "messages_field": "messages"},
            "tokenizer": {"kind": "huggingface", "uri": str(tmp_path / "theirs"), "separator": end},
            "length": 96,
            "shares": {"validation": 0.2, "judge": 0},
        },
        "denoiser": {
            "kind": "huggingface",
            "folder": str(tmp_path / "theirs"),
            "trust_remote_code": True,
            "causal": {"shift": 1, "new_mask": True, "bos": end},
        },
        "pretrain": TRAINING,
        "finetune": [{"name": "step", "energy": {"kind": "step", **HEAD}, "training": TRAINING}],
        "register": {"model": "chats", "energy": "step", "sampler": {"steps": 4, "candidates": 2}},
        "serving": {"port": unused_port(), "max_replicas": 1},
        "cluster": {"workers": 2, "zero": {"stage": 2}},
    }
    (tmp_path / "chats.yaml").write_text(yaml.safe_dump(experiment))
    assert not os.environ.get(CONSENT)  # the experiment's own setting is the consent, the replica's included
    output = run(tmp_path / "home", "pipeline", experiment=tmp_path / "chats.yaml")
    started = set(re.findall(r"^\[([\w-]+)\] started", output, re.MULTILINE))
    assert {"import-denoiser", "pretrain", "finetune-step"} <= started
    assert re.search(r"the endpoint answered: '(.*)'", output), output
