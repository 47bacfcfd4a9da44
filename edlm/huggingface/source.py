"""Networks of the transformers library, opened strictly: whole, from safetensors, code of their makers by consent."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edlm.config import ConfigurationError, config
from edlm.file_systems import require_hub
from edlm.huggingface.remote_code import COMMIT, CONFIGURATIONS, consent, failures_named, remote_code
from edlm.storage import File, StorageError, digest_of, sha256

NAMED = 8  # most wrong weights that an error lists
OTHER_TASKS = re.compile(r"(^|\.)(pooler|seq_relationship)\.")  # heads that pretraining leaves beside the LM head
READ = (".json", ".safetensors", ".txt", ".model")  # suffixes of the files that determine a network and its tokenizer


@dataclass(frozen=True)
class OpenedNetwork:
    """A network of the library in float32, with its tokenizer."""

    named: str
    """As errors call it."""
    model: Any
    tokenizer: Any
    code: Mapping[str, str]
    """Files of the makers' code that define the network, by name; empty if the library does."""
    classes: Mapping[str, str]
    """Names of its classes, by those of the library's that find them (`auto_map` of config.json)."""


@config
class HuggingFaceSource:
    """A network that others trained: on the Hugging Face hub, or in a folder of the library's format.

    Its weights are safetensors. Without `trust_remote_code` no code of its makers is run: the library itself must have
    the architecture.
    """

    name: str | None = None
    """Repository on the hub, such as `google-bert/bert-base-uncased`. Give this or `folder`."""
    folder: str | None = None
    """Local folder with config.json, safetensors and the tokenizer's files."""
    revision: str | None = None
    """Commit, tag or branch on the hub; without it `main`, and changes there go unnoticed once a stage has run."""
    trust_remote_code: bool = False
    """Run code of the network's makers, with all rights of the process. On the hub, `revision` must be a whole commit.
    The model's folder holds the code, and other processes that open it need EDLM_TRUST_REMOTE_CODE."""

    def __post_init__(self) -> None:
        if (self.name is None) == (self.folder is None):
            raise ConfigurationError("a network of kind huggingface has either a `name` on the hub or a `folder`")
        if self.folder is not None and self.revision is not None:
            raise ConfigurationError(f"revision {self.revision!r} is of a `name` on the hub; a `folder` has none")
        if self.trust_remote_code and self.name is not None and not COMMIT.fullmatch(self.revision or ""):
            raise ConfigurationError(
                f"trust_remote_code: the code on the hub may change under revision {self.revision or 'main'!r}; set "
                "revision to the whole commit that you have read, 40 hexadecimal digits"
            )

    @property
    def named(self) -> str:
        """The network, as errors call it."""
        return f"the network {self.folder or self.name!r}" + (f" at {self.revision!r}" if self.revision else "")

    def version(self) -> str:
        """Return the digest of a folder's files, or the name and revision on the hub. Raise ConfigurationError."""
        if self.folder is None:
            return f"{self.name}@{self.revision or 'main'}"
        _require_folder(self.folder)
        read = (*READ, ".py") if self.trust_remote_code else READ
        # Not `inventory`, which rejects links: in the hub's own cache the files are links.
        files = sorted(path for path in Path(self.folder).iterdir() if path.suffix in read and path.is_file())
        return digest_of(File(path=p.name, bytes=p.stat().st_size, sha256=sha256(p)) for p in files)

    def allow_code(self) -> None:
        """Let this process, and those that it starts from now on, run the makers' code, if `trust_remote_code` says so.

        Raise ConfigurationError if the library is missing, the network is not there, or its code is incomplete, damaged
        or from elsewhere; StorageError if the hub does not answer.
        """
        if self.trust_remote_code:
            library()
            self._require_there()
            consent(self._code()[0])

    def opened(self, auto_class: str) -> OpenedNetwork:
        """Open the network with one of the library's classes `AutoModelFor...`, ready for inference.

        Raise ConfigurationError if the library is missing, no safetensors are there, adapters lie beside them, code of
        its makers is needed and not allowed, the architecture is unknown or has no such head, or weights are missing,
        mismatched or not finite; StorageError if the hub does not answer.
        """
        transformers = library()
        self._require_there()
        where, revision = str(self.folder or self.name), self.revision or "main"
        origin = {"revision": revision, "trust_remote_code": self.trust_remote_code}
        try:
            _require_no_adapters(self.named, where, revision)
            code, classes = self._code()
            with failures_named(self.named, code):
                model, loaded = getattr(transformers, auto_class).from_pretrained(
                    where, **origin, use_safetensors=True, dtype=torch.float32, output_loading_info=True
                )
                tokenizer = transformers.AutoTokenizer.from_pretrained(where, **origin)
        except (ConfigurationError, StorageError):
            raise
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
            raise ConfigurationError(
                f"{self.named} cannot be opened as {auto_class}; it must be stored as safetensors with its tokenizer "
                f"(`python -m workflows.convert` turns pickled weights into safetensors), and have an architecture of "
                f"the installed library (transformers {transformers.__version__}) or, with trust_remote_code: true, of "
                f"its makers' code, which is not run otherwise: {error}"
            ) from error
        self._require_whole(loaded)
        _require_finite(self.named, model)
        consent(code)
        return OpenedNetwork(self.named, model.eval().requires_grad_(False), tokenizer, code, classes)

    def _require_there(self) -> None:
        if self.folder is None:
            assert self.name is not None
            _require_hub(self.name, self.revision or "main")
        else:
            _require_folder(self.folder)

    def _code(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the makers' code that may run, and its classes; nothing without `trust_remote_code`.

        Raise ConfigurationError or StorageError as `allow_code` does.
        """
        if not self.trust_remote_code:
            return {}, {}
        try:
            copy = self.folder if self.folder is not None else _code_of_hub(str(self.name), self.revision)
            return remote_code(self.named, Path(copy), self.name)
        except (ConfigurationError, StorageError):
            raise
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the code of {self.named} cannot be read ({type(error).__name__}: {error}); check "
                + ("its files and their permissions" if self.name is None else "name, revision and your access to it")
            ) from error

    def _require_whole(self, loaded: Any) -> None:
        """Raise ConfigurationError unless the weights are those of the architecture.

        `transformers` fills missing weights with random numbers, drops unexpected ones, and continues.
        """
        for what in ("missing", "mismatched", "unexpected"):
            names = sorted(str(key) for key in loaded[f"{what}_keys"])
            if wrong := [name for name in names if what != "unexpected" or not OTHER_TASKS.search(name)]:
                raise ConfigurationError(
                    f"{self.named} has {len(wrong)} {what} weights: {', '.join(wrong[:NAMED])}; it is no complete "
                    "network of the architecture that its config.json names"
                )


def _require_finite(named: str, model: Any) -> None:
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise ConfigurationError(
            f"{named} has weights that are not finite: {', '.join(broken[:NAMED])}; restore a good copy"
        )


def _require_no_adapters(named: str, where: str, revision: str) -> None:
    """Raise ConfigurationError if adapters of peft lie in a folder or a repository, beside a network or instead of one.

    The library would apply them, pickled ones too, and fetch the network that they name from wherever it is.
    """
    if library().utils.find_adapter_config_file(where, revision=revision) is not None:
        raise ConfigurationError(
            f"{named} holds adapters of peft (adapter_config.json), which change a network, perhaps another one; "
            "merge them first (merge_and_unload of peft), and save the whole network"
        )


def library() -> Any:
    """Return the module `transformers`; it takes seconds to import, and only these networks need it.

    Raise ConfigurationError if it is not installed.
    """
    try:
        import transformers  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigurationError(
            "networks of kind huggingface are opened with the transformers library: "
            'in a checkout of the project, run pip install ".[hf]"'
        ) from error
    return transformers


def _require_folder(folder: str) -> None:
    """Raise ConfigurationError unless safetensors and a config.json are in the folder."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ConfigurationError(f"{folder} is no folder of a network: it has no config.json; check `folder`")
    if not any(path.glob("*.safetensors")):
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5"))
        raise ConfigurationError(
            f"{folder} holds no safetensors"
            + (f" but {', '.join(pickled[:NAMED])}, which would run code as they are opened" if pickled else "")
            + f"; `python -m workflows.convert SOURCE TARGET` makes {path / 'model.safetensors'} of pickled weights"
        )


def _require_hub(name: str, revision: str) -> None:
    """Raise StorageError at once if the network is neither in the hub's local cache nor the hub answers.

    The library by itself would try again for minutes. Raise ConfigurationError for a name that no repository can have,
    and for the path of a local folder.
    """
    from huggingface_hub import errors, try_to_load_from_cache  # type: ignore[import-not-found]

    if Path(name).exists():
        raise ConfigurationError(f"name {name!r} is a path here; set `folder` instead, or give a name on the hub")
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except errors.HFValidationError as error:
        raise ConfigurationError(f"name {name!r} is no repository's name on the hub: {error}") from error
    if not isinstance(cached, str):
        require_hub(f"the network {name!r}")


def _code_of_hub(name: str, revision: str | None) -> str:
    """Return a local folder with the Python files and configurations of a repository; errors of the hub's library.

    Raise StorageError if they are not in the local cache and the hub does not answer.
    """
    from huggingface_hub import errors, snapshot_download  # type: ignore[import-not-found]

    try:
        return snapshot_download(name, revision=revision, allow_patterns=["*.py", *CONFIGURATIONS])
    except errors.LocalEntryNotFoundError as error:
        raise StorageError(f"the network {name!r}: {error}") from error
