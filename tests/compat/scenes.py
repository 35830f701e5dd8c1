"""The jobs of which folders are kept for good: what was asked for, and where each was left."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/srv/batchcap-compat")  # where the data's inputs lay when it was made
BUNDLE, INPUTS = "bundle", "inputs"

_FILES = ("images",)
_BOTH = ("images", "rows.parquet")
_COMMON = ("--vision-backend", "onnx", "--vision-dtype", "fp32", "--slots", "1", "--rows-per-part", "8")
_EVERY_KIND = "failed,truncated,repeated,degenerate,empty"
_LONG = ("--no-loop-stop", "--max-new-tokens", "160")


@dataclass(frozen=True, slots=True)
class Scene:
    """A job folder that is kept.

    Attributes:
        name: of the folder.
        inputs: names below `INPUTS`.
        options: of the job itself.
        retry: further options of the run that was killed, if it was a retry.
        kill_after: rows that were durable (in a retry: captioned again) when it was killed; None: it is finished.
    """

    name: str
    inputs: tuple[str, ...]
    options: tuple[str, ...]
    retry: tuple[str, ...] = ()
    kill_after: int | None = None

    def arguments(self, root: Path, output: Path) -> tuple[str, ...]:
        """The command line of the job, without its retry."""
        inputs = (str(root / INPUTS / name) for name in self.inputs)
        return ("caption", *inputs, "--output", str(output), "--model", str(root / BUNDLE), *_COMMON, *self.options)


JOBS = (
    Scene("finished-files", _FILES, ("--max-new-tokens", "12")),
    Scene("finished-parquet", ("rows.parquet",), ("--max-new-tokens", "12", "--keep-columns", "*")),
    Scene("killed", _BOTH, (*_LONG, "--keep-columns", "label"), kill_after=13),
    Scene("killed-prompts", _BOTH, (*_LONG, "--prompt", "short=Name it.", "--prompt", "long=Describe it."), (), 11),
    Scene("sampled", _FILES, (*_LONG, "--temperature", "0.7", "--seed", "3"), kill_after=9),
    Scene(
        "retry",
        _BOTH,
        ("--max-new-tokens", "8", "--keep-columns", "label", "--rows-per-part", "20"),
        ("--no-loop-stop", "--max-new-tokens", "160", "--retry", _EVERY_KIND),
        2,
    ),
)
