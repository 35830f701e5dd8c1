"""The accuracy column of the profiles: what each costs the demo model, on scenes it was never trained on.

usage: python -m benchmarks.profiles [--scenes 1000] [--answers 100] [--precision int4 w8a8]

Whole jobs, as a user runs them: exact captions, captions that are those of transformers in float32 (of the first
scenes: it takes a second for each), and what the job itself reports about speed and memory. The model is so small that
its libraries take most of both: compare neither with a real one. Exit code 1 where a profile loses more than a point of
exact captions against `auto` with an INT4 decoder: a profile like that is not offered.
"""

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from batchcap.config import InputConfig, JobConfig, Profile
from batchcap.export.checkpoint.options import ExportOptions, Precision
from batchcap.export.demo import demo_checkpoint, load_model
from batchcap.export.export import export_bundle
from batchcap.job.progress import LogProgress
from batchcap.job.run import run_job
from batchcap.store.folder import JobFolder
from training.evaluate import Reference, examples

MAX_LOST = 0.01


@dataclass(frozen=True, slots=True)
class Scenes:
    """Images in a folder, with their true captions by file name; of some of them those of transformers, too."""

    folder: Path
    truth: dict[str, str]
    reference: dict[str, str]

    @classmethod
    def drawn(cls, folder: Path, count: int, answers: int) -> "Scenes":
        """The first scenes of the evaluation; the same ones each time."""
        folder.mkdir()
        reference, truth, same = Reference(demo_checkpoint()), {}, {}
        for number, example in enumerate(examples(count)):
            name = f"{number:05d}.png"
            example.image.save(folder / name)
            truth[name] = example.caption
            if number < answers:
                same[name] = reference.caption(example.image)
        return cls(folder, truth, same)


@dataclass(frozen=True, slots=True)
class Row:
    """A profile with a decoder.

    Attributes:
        decoder: its precision.
        profile: of the job.
        exact: share of captions that are true.
        same: share of captions that are transformers'.
        images_per_min: of the job.
        peak_mib: most memory of all its processes.
    """

    decoder: str
    profile: Profile
    exact: float
    same: float
    images_per_min: float
    peak_mib: float

    def cells(self) -> tuple[str, ...]:
        """As text."""
        shares = (f"{share:.1%}" for share in (self.exact, self.same))
        return self.decoder, self.profile, *shares, f"{self.images_per_min:.0f}", f"{self.peak_mib:.0f}"


def measure(scenes: Scenes, bundle: Path, profile: Profile, output: Path) -> Row:
    """Run a job with a profile, nothing else given."""
    inputs = InputConfig((str(scenes.folder),))
    job = JobConfig(inputs, str(output), str(bundle), profile=profile, explicit=frozenset())
    run_job(job, LogProgress(), load_model=load_model)
    found = pq.read_table(output, columns=["id", "caption"]).to_pylist()
    captions = {row["id"]: row["caption"] for row in found}
    run = json.loads(JobFolder(output).summary_path.read_text())["run"]
    return Row(
        decoder=bundle.name,
        profile=profile,
        exact=sum(captions[name] == caption for name, caption in scenes.truth.items()) / len(scenes.truth),
        same=sum(captions[name] == caption for name, caption in scenes.reference.items()) / len(scenes.reference),
        images_per_min=run["images_per_min"],
        peak_mib=run["peak_memory_mib"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--precision", type=Precision, nargs="+", default=[Precision.INT4, Precision.W8A8])
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BATCHCAP_CACHE"] = folder  # what was tuned on this machine is no part of a profile
        scenes = Scenes.drawn(Path(folder) / "scenes", options.scenes, options.answers)
        print("| decoder | profile | exact | as transformers | images/min | MiB |")
        print("| --- | --- | --: | --: | --: | --: |", flush=True)
        for precision in options.precision:
            bundle = Path(folder) / str(precision)
            export_bundle(str(demo_checkpoint()), bundle, ExportOptions(precision=precision))
            for profile in Profile:
                rows.append(measure(scenes, bundle, profile, Path(folder) / f"{precision}-{profile}"))
                print(f"| {' | '.join(rows[-1].cells())} |", flush=True)
    lost = [row for row in rows if rows[0].exact - row.exact > MAX_LOST]
    for row in lost:
        print(f"{row.decoder} {row.profile} loses {rows[0].exact - row.exact:.1%} of the captions")
    raise SystemExit(1 if lost else 0)


if __name__ == "__main__":
    main()
