"""Process groups of torch in workers that tests start as scripts."""

import os
import sys
from typing import NoReturn

import torch.distributed


def leave() -> NoReturn:
    """End a worker that has done its work, once all have, without the exit of the interpreter.

    In it gloo's threads, which outlive their group while an engine holds it, release tensors of an interpreter that is
    gone: 2 of 140 idle workers were aborted ("terminate called without an active exception", torch 2.13).
    """
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
