"""Owns who takes part: each contestant's environment, how its model is made, its program and its options."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from real_size import make_bundle, make_checkpoint

from peers.environments import Environment, run_logged, source_archive

GEOMETRY = "2b"
PROGRAMS = Path(__file__).parents[1]  # `python -m peers.…` works from here


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a contestant's program is started with."""

    python: Path
    model: Path


@dataclass(frozen=True, slots=True)
class Contestant:
    """One row of the table.

    Attributes:
        name: in the table, and of `--only`.
        program: module of its program.
        prepare: makes environment and model below a work folder, unless they are there; raises MissingPeerError.
        options: of the program.
        every: captions every so many-th image; for one so slow that all of them take hours.
    """

    name: str
    program: str
    prepare: Callable[[Path], Prepared]
    options: tuple[str, ...] = ()
    every: int = 1

    @property
    def is_own(self) -> bool:
        """Whether it is batchcap itself."""
        return self.program == "peers.run_batchcap"

    def command(self, prepared: Prepared, task: Path) -> list[str]:
        """The command of one run."""
        return [str(prepared.python), "-m", self.program, str(task), str(prepared.model), *self.options]


@dataclass(frozen=True, slots=True)
class Profile:
    """A way to run batchcap: a bundle and options.

    Attributes:
        name: of the profile.
        export_options: of `batchcap export`; none share one bundle, others get one by the profile's name.
        caption_options: of `batchcap caption`.
    """

    name: str
    export_options: tuple[str, ...] = ()
    caption_options: tuple[str, ...] = ()


FAST = ("--profile", "fast")
PROFILES = (
    Profile("int4"),
    Profile("int4-fast", caption_options=FAST),
    Profile("fast", ("--precision", "w8a8"), FAST),
)

OPENVINO = Environment(
    requirements=(
        "openvino==2026.4.1",
        "openvino-genai==2026.4.1.0",
        "openvino-tokenizers==2026.4.1.0",
        "nncf==3.4.0",
        "transformers==4.57.6",  # the latest that the export of Qwen3-VL accepts is 5.0
        "torch==2.13.0",
        "scipy",
        "pillow",
    ),
    # They ask for torchvision, whose wheels do not import beside PyTorch's CPU builds; the export does without.
    bare_requirements=("optimum-intel==2.2.0", "optimum==2.3.0"),
)
LLAMA_CPP = Environment(
    requirements=("torch==2.13.0", "transformers==4.57.6", "sentencepiece", "protobuf<5"),  # for the conversion
    source="llama-cpp-python==0.3.36",
    settings=(("CMAKE_ARGS", "-DGGML_NATIVE=ON"), ("CMAKE_BUILD_PARALLEL_LEVEL", "2")),
)
TRANSFORMERS = Environment(requirements=("torch==2.13.0", "transformers==5.23.0", "pillow"))


def contestants() -> list[Contestant]:
    """All of them, in the order of the table."""
    return [
        *(own_contestant(profile) for profile in PROFILES),
        Contestant("openvino", "peers.run_openvino", prepare_openvino),
        Contestant("llama.cpp", "peers.run_llama_cpp", prepare_llama_cpp, every=2),
        Contestant("transformers", "peers.run_transformers", prepare_transformers, every=8),
        Contestant("transformers-batch-4", "peers.run_transformers", prepare_transformers, ("--batch", "4"), every=4),
    ]


def own_contestant(profile: Profile) -> Contestant:
    """The command line of this project with a profile."""

    def prepare(work: Path) -> Prepared:
        name = profile.name if profile.export_options else ""
        return Prepared(Path(sys.executable), make_bundle(work, GEOMETRY, name, profile.export_options))

    return Contestant(f"batchcap-{profile.name}", "peers.run_batchcap", prepare, profile.caption_options)


def prepare_openvino(work: Path) -> Prepared:
    """Exported by optimum-intel, then the decoder in INT4 with symmetric groups of 128, the rest in INT8."""
    folder = _folder(work, "openvino")
    python = OPENVINO.make(folder)

    def export(exact: Path) -> None:
        command = [str(python.with_name("optimum-cli")), "export", "openvino", "--model", str(checkpoint(work))]
        command += ["--task", "image-text-to-text", "--weight-format", "fp16", str(exact)]
        run_logged(command, folder)

    def compress(model: Path) -> None:
        exact = _made_once(folder / "exact", export)
        command = [str(python), "-m", "peers.compress_openvino", str(exact), str(model)]
        run_logged(command, folder, {"PYTHONPATH": str(PROGRAMS)})
        shutil.rmtree(exact)

    return Prepared(python, _made_once(folder / "model", compress))


def prepare_llama_cpp(work: Path) -> Prepared:
    """Text model in Q4_0, vision tower in F16, by the converter that comes with the source."""
    folder = _folder(work, "llama.cpp")
    python = LLAMA_CPP.make(folder)

    def convert(model: Path) -> None:
        command = [str(python), "-m", "peers.convert_gguf", str(source_archive(folder)), str(checkpoint(work))]
        run_logged([*command, str(model)], folder, {"PYTHONPATH": str(PROGRAMS)})

    return Prepared(python, _made_once(folder / "model", convert))


def prepare_transformers(work: Path) -> Prepared:
    """The checkpoint itself."""
    return Prepared(TRANSFORMERS.make(_folder(work, "transformers")), checkpoint(work))


def checkpoint(work: Path) -> Path:
    """The checkpoint that everybody's model is made of."""
    return make_checkpoint(work, GEOMETRY)


def _folder(work: Path, name: str) -> Path:
    folder = work / "peers" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _made_once(model: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made under another name first: one that a failure left half made is never taken for a model."""
    if not model.exists():
        unfinished = model.with_name(f"{model.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        make(unfinished)
        unfinished.rename(model)
    return model
