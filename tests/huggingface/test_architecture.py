"""A model folder's network is built of the code that there is consent to, and of no other."""

import json
import re
import shutil

import pytest

from edlm.config import ConfigurationError, parse, plain
from edlm.huggingface.denoiser import HuggingFaceDenoiserArchitecture
from edlm.huggingface.remote_code import consent
from tests.huggingface.networks import transformers
from tests.huggingface.their_code import CLASSES, MIXING, V, opened


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with other code, which leaves a mark there as it runs."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("other.py", "modeling_theirs.py"):
        (folder / name).write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    return folder


def changed(network, code=None, **architecture) -> HuggingFaceDenoiserArchitecture:
    """The network's record with other values in its architecture and its code; there is consent to the code."""
    tree = plain(network.config)
    tree["architecture"] |= architecture
    tree["code"] |= code or {}
    consent(tree["code"])
    return parse(HuggingFaceDenoiserArchitecture, tree)


@pytest.mark.parametrize("auto_class", sorted(CLASSES))
@pytest.mark.parametrize("module", ["{elsewhere}/other", "../other", "..other", "sub/other", "--other"])
def test_classes_outside_the_consented_files_are_refused_before_they_run(theirs, elsewhere, auto_class, module):
    classes = CLASSES | {auto_class: module.format(elsewhere=elsewhere) + ".C"}
    architecture = changed(opened(theirs), auto_map=classes)
    with pytest.raises(ConfigurationError, match=rf"{auto_class} from .* (it must be MODULE|another repository)"):
        architecture.build(V)
    assert not (elsewhere / "ran").exists()


@pytest.mark.parametrize("auto_class", sorted(CLASSES))
def test_a_class_of_a_file_that_is_not_kept_is_refused(theirs, auto_class):
    architecture = changed(opened(theirs), auto_map=CLASSES | {auto_class: "other.C"})
    with pytest.raises(ConfigurationError, match=r"names a class of other\.py, which is not there"):
        architecture.build(V)


def test_code_that_no_class_comes_from_is_refused(theirs):
    network = opened(theirs)
    for architecture in (changed(network, {"other.py": "x = 1\n"}), changed(network, auto_map=None)):
        with pytest.raises(ConfigurationError, match="auto_map of its architecture and its files of code do not"):
            architecture.build(V)


def test_an_architecture_that_leads_to_another_folder_is_refused(theirs, elsewhere):
    network = opened(theirs)
    classes = CLASSES | {"AutoConfig": f"{elsewhere}/other.C"}
    (elsewhere / "config.5.0.0.json").write_text(json.dumps({"auto_map": classes}))
    other_file = changed(network, configuration_files=[str(elsewhere / "config.5.0.0.json")])
    for architecture, named in ((changed(network, _name_or_path=str(elsewhere)), "_name_or_path"),
                                (other_file, "configuration_files")):  # fmt: skip
        with pytest.raises(ConfigurationError, match=rf"{named}.*(remove it|without configuration_files)"):
            architecture.build(V)
    assert not (elsewhere / "ran").exists()


def test_kept_code_that_fails_is_reported_with_the_version_of_the_library(theirs):
    network = opened(theirs)
    architecture = changed(network, {"mixing.py": MIXING.replace("def mixed(x)", "def mixed(x")})
    shutil.rmtree(theirs)
    with pytest.raises(ConfigurationError, match=rf"transformers {re.escape(transformers.__version__)}: SyntaxError: "):
        architecture.build(V)
