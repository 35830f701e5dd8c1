"""Owns `batchcap merge`: the folders of an array job become one."""

from pathlib import Path
from typing import Annotated

import typer

from batchcap.commands.results import print_result


def merge(
    outputs: Annotated[
        list[Path], typer.Argument(metavar="OUT…", help="Job folders of --shard 1/N to N/N, in any order.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new job folder.")],
) -> None:
    """Join the job folders of all shards of a job, as if it had been one run.

    They must be complete, and stay as they are. The new folder appears whole or not at all.
    """
    from batchcap.job.merge import merge as merge_shards

    print_result(merge_shards(outputs, output))
