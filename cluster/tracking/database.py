"""Creation of an SQLite database for MLflow: by one process, and visible to the others only when it is complete."""

import fcntl
import os
from pathlib import Path


def create_database(file: Path, artifacts: str) -> None:
    """Create the database with MLflow's tables unless the file exists; processes that come meanwhile wait.

    MLflow itself creates tables and migrates them one by one, in every process that finds none, and a process that is
    killed in the middle leaves a database that no process can open. Here they are made in a file of another name.
    """
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # takes a second, once

        new = file.with_name(f".{file.name}.new")
        new.unlink(missing_ok=True)  # of a process that was killed
        SqlAlchemyStore(f"sqlite:///{new}", artifacts)._dispose_engine()
        try:
            os.link(new, file)  # unlike a rename, it replaces no file that another program has made meanwhile
        except FileExistsError:
            pass
        finally:
            new.unlink()
