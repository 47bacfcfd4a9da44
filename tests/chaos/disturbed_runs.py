"""What commands leave that were disturbed: nothing that undisturbed ones do not leave, too."""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

COMMAND = "the command"
RAY_FOLDER = re.compile(r"/edlm-ray-\w+")
OF_A_LAUNCH = (
    (re.compile(r"(step-\d+)-\w{8}\b"), r"\1-*"),
    (re.compile(r"\b[0-9a-f]{32,}\b"), "*"),  # of an MLflow run, of a digest
    (re.compile(r"(work/pipelines/)[^/]+"), r"\1*"),
    (re.compile(r"(journals/[\w-]+-)[0-9a-f]{12}\b"), r"\1*"),
    (re.compile(r"(/journal/)\d+-\w+-\d+(\.jsonl)"), r"\1*\2"),  # copies of a launch's metrics in a store
)
"""Names that are others at each launch or storage, and what stands for them."""


@dataclass(frozen=True)
class CommandFolders:
    """The folders of a command's own, outside of which it leaves nothing."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    def environment(self) -> dict[str, str]:
        """Return the variables that send a command there; with a store as its storage, its journals, too."""
        for folder in (self.home, self.cache, self.temporary):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return {
            "HOME": str(self.home),
            "EDLM_HOME": str(self.home),
            "EDLM_CACHE": str(self.cache),
            "TMPDIR": str(self.temporary),
        }


def general(path: str) -> str:
    """Return a path as it is for every launch."""
    for pattern, stands in OF_A_LAUNCH:
        path = pattern.sub(stands, path)
    return path


def names(paths: Iterable[str]) -> set[str]:
    """Return paths as they are for every launch."""
    return set(map(general, paths))


def files(folder: Path) -> Iterator[str]:
    """Yield the paths below a folder of all files, those that begin with a dot, too, and of empty folders."""
    for parent, folders, inside in os.walk(folder):
        for name in inside if folders or inside else [""]:
            yield str((Path(parent) / name).relative_to(folder))


def left_over(actual: CommandFolders, expected: CommandFolders) -> set[str]:
    """Return what disturbed commands left and undisturbed ones did not: files, temporary ones, entries of the cache."""
    found = set()
    for name in ("home", "tmp"):
        found |= {f"{name}/{path}" for path in names(files(actual.root / name)) - names(files(expected.root / name))}
    entries, usual = (Counter(map(general, files(one.cache))) for one in (actual, expected))
    return found | {f"cache/{name}, {count} times" for name, count in (entries - usual).items()}


def require_nothing_left(actual: CommandFolders, expected: CommandFolders) -> None:
    """Raise AssertionError for anything `left_over`."""
    assert sorted(left_over(actual, expected)) == []


def living(process: subprocess.Popen, victim: str) -> list[psutil.Process]:
    """Return the command (`COMMAND`), or its descendants with this in their titles."""
    command = psutil.Process(process.pid)
    return [command] if victim == COMMAND else [one for one in command.children(recursive=True) if victim in title(one)]


def title(process: psutil.Process) -> str:
    """Return the words of a process's command as one; of one that ends just now, nothing."""
    with suppress(psutil.NoSuchProcess):
        return "".join(process.cmdline())
    return ""


def ray_folders(process: subprocess.Popen) -> set[str]:
    """Return the folders of the private Rays that a command has started, as its descendants are called with them."""
    children = psutil.Process(process.pid).children(recursive=True)
    return {f"/tmp{name}" for child in children for name in RAY_FOLDER.findall(title(child))}
