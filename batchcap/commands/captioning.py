"""Owns `batchcap caption` and `batchcap run`: options or a job file become one configuration, and the job is run."""

import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchcap.commands.begun import BegunJob
from batchcap.commands.given_prompt import read_prompt
from batchcap.commands.results import MAX_SHOWN, print_result
from batchcap.commands.signals import stop_on_signals
from batchcap.config import (
    DEFAULT_PROMPT,
    DEMO_MODEL,
    MODEL_VARIABLE,
    PROMPT_NAME,
    GenerationConfig,
    InputConfig,
    JobConfig,
    LimitConfig,
    OnChanged,
    PlacementConfig,
    Profile,
    ResumeConfig,
    VisionBackend,
    VisionConfig,
    VisionDtype,
    prompt_name_fault,
)
from batchcap.core.errors import UsageError
from batchcap.core.setting import Mistake, SettingsError, require_sense_in_new_job

if TYPE_CHECKING:
    from batchcap.job.summary import Summary

log = logging.getLogger(__name__)

_PLACEMENT = PlacementConfig()  # owns the defaults
# What stands before = and was meant as a name, though it may be none: `1=x`, `my-name=x`.
_NAME_BY_ITS_LOOKS = re.compile(r"[\w.-]+")
# Panels of the help text; the ten options that most people need stand before them.
_INPUT = "Input"
_WORDS = "Prompt and decoding"
_IMAGES = "Image and vision"
_PLACE = "Speed and memory"
_LIMITS = "Limits"
_RESUME = "Resume"


def caption(
    context_of_call: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Image files, folders, Parquet files, folders of Parquet files, globs in quotes."
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Job folder: captions, statistics, state.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            envvar=MODEL_VARIABLE,
            help=f"Bundle made by `batchcap export`. {DEMO_MODEL}: the embedded model, which knows drawn scenes only "
            f"(a folder of that name: ./{DEMO_MODEL}).",
        ),
    ] = None,
    prompt: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]TEXT",
            help="What to ask about each image; @FILE reads it from a file, @@ begins a text with @. Give several as "
            "NAME=TEXT for several captions of each image, in columns of their own: caption_NAME and so on.",
        ),
    ] = [DEFAULT_PROMPT],  # noqa: B006 - typer reads the default, nobody changes it
    max_new_tokens: Annotated[int, typer.Option(help="Longest caption, in tokens.")] = 128,
    max_visual_tokens: Annotated[
        int,
        typer.Option(
            help="Most visual tokens of an image. One covers 32 x 32 pixels after the resize, so 256 see about "
            "512 x 512; more show more detail and take longer.",
        ),
    ] = 256,
    keep_columns: Annotated[
        str,
        typer.Option(
            help="Input columns to carry into the output, separated by commas; * for all but the image.",
        ),
    ] = "",
    limit: Annotated[int, typer.Option(help="Caption only the first N rows; 0: all.")] = 0,
    profile: Annotated[
        Profile,
        typer.Option(
            help="Defaults of Speed and memory and of the vision encoder. auto: what `batchcap tune` found here, else "
            "those shown; small: less memory; fast: the fastest encoder of this CPU, even where it rounds more, and "
            "more slots where the bundle is w8a8. What you give yourself always counts.",
        ),
    ] = Profile.AUTO,
    retry: Annotated[
        str,
        typer.Option(
            help="Caption these rows of earlier runs again, separated by commas: failed; truncated, repeated, "
            "degenerate, empty (verdicts), which need another --max-new-tokens, or another option of Prompt and "
            "decoding, than the job has.",
        ),
    ] = "",
    show: Annotated[int, typer.Option(min=0, max=MAX_SHOWN, help="Print the first N captions at the end.")] = 0,
    image_column: Annotated[
        str | None,
        typer.Option(
            help="Parquet column with the image: bytes, Hugging Face Image, or path. Default: found by itself.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Parquet column to use as id. Default: file name and row number.", rich_help_panel=_INPUT),
    ] = None,
    image_root: Annotated[
        str | None,
        typer.Option(
            help="Where relative paths of a path column start, and what no path may lead out of. Default: the Parquet "
            "file's folder, and anywhere.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest token; above 0: drawn by chance.", rich_help_panel=_WORDS)
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(help="Draw from the likeliest tokens that hold this probability; 1: off.", rich_help_panel=_WORDS),
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from the K likeliest tokens; 0: off.", rich_help_panel=_WORDS)] = 0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens used before get less likely; 1: off.", rich_help_panel=_WORDS)
    ] = 1.0,
    seed: Annotated[
        int, typer.Option(help="Seed of the draws; each row's id is mixed in.", rich_help_panel=_WORDS)
    ] = 0,
    loop_stop: Annotated[
        bool, typer.Option(help="Stop a caption early that repeats itself without end.", rich_help_panel=_WORDS)
    ] = True,
    vision_dtype: Annotated[
        VisionDtype,
        typer.Option(
            help="Arithmetic of the vision encoder: bf16 (torch), fp32, int8 (onnx); auto: bf16 in torch where the CPU "
            "has it, else fp32.",
            rich_help_panel=_IMAGES,
        ),
    ] = VisionDtype.AUTO,
    vision_backend: Annotated[
        VisionBackend,
        typer.Option(
            help="What runs the vision encoder: torch (PyTorch) or onnx (ONNX Runtime, PyTorch need not be installed); "
            "auto: torch where it is installed.",
            rich_help_panel=_IMAGES,
        ),
    ] = VisionBackend.AUTO,
    max_image_pixels: Annotated[
        int, typer.Option(help="Refuse images with more pixels than this.", rich_help_panel=_IMAGES)
    ] = 256_000_000,
    decoders: Annotated[
        int, typer.Option(help="Decoder processes; they share the weights of a large model.", rich_help_panel=_PLACE)
    ] = _PLACEMENT.decoders,
    slots: Annotated[
        int, typer.Option(help="Captions one decoder works on at once; each takes memory.", rich_help_panel=_PLACE)
    ] = _PLACEMENT.slots,
    decoder_threads: Annotated[
        int, typer.Option(help="Threads of one decoder; 0: cores / decoders.", rich_help_panel=_PLACE)
    ] = _PLACEMENT.decoder_threads,
    vision_threads: Annotated[
        int, typer.Option(help="Threads of the vision encoder; 0: all cores.", rich_help_panel=_PLACE)
    ] = _PLACEMENT.vision_threads,
    patch_budget: Annotated[
        int,
        typer.Option(
            help="Patches (16 x 16 pixels) encoded at once; a larger image goes alone.", rich_help_panel=_PLACE
        ),
    ] = _PLACEMENT.patch_budget,
    queue_mib: Annotated[
        int, typer.Option(help="Memory for encoded images that wait for a decoder.", rich_help_panel=_PLACE)
    ] = _PLACEMENT.queue_mib,
    rows_per_part: Annotated[
        int, typer.Option(help="Rows of one part-*.parquet.", rich_help_panel=_PLACE)
    ] = _PLACEMENT.rows_per_part,
    own_cores: Annotated[
        bool,
        typer.Option(
            help="On machines of 8 cores and more keep each decoder on cores of its own, of one NUMA node where it "
            "fits; `batchcap doctor` shows the plan.",
            rich_help_panel=_PLACE,
        ),
    ] = True,
    max_runtime: Annotated[
        float,
        typer.Option(
            help="Stop in good order after so many seconds (exit code 75); 0: never.", rich_help_panel=_LIMITS
        ),
    ] = 0.0,
    max_error_rate: Annotated[
        float,
        typer.Option(
            help="Exit code 3 if a larger share of the rows failed; if all did, always.", rich_help_panel=_LIMITS
        ),
    ] = 1.0,
    image_timeout: Annotated[
        float,
        typer.Option(
            "--image-timeout",
            "--picture-timeout",
            help="Seconds before a worker that is stuck on an image is restarted; after two restarts the image fails.",
            rich_help_panel=_LIMITS,
        ),
    ] = 600.0,
    on_changed: Annotated[
        OnChanged,
        typer.Option(
            help="If an image is not the one that an earlier run has captioned under its name, or a Parquet file was "
            "changed: stop (exit code 5), keep the captions there are, or recaption.",
            rich_help_panel=_RESUME,
        ),
    ] = OnChanged.STOP,
) -> None:
    """Caption every image of the inputs.

    Run the same command again to resume; what is finished is never done twice.
    """
    output = os.path.expanduser(output)  # noqa: PTH111 - as it is where there is no such user
    begun = BegunJob(output)
    config = JobConfig(
        input=InputConfig(tuple(inputs), image_column, id_column, image_root, _names(keep_columns)),
        output=output,
        model=model,
        profile=profile,
        generation=GenerationConfig(
            prompt=_prompt(prompt, begun),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
            loop_stop=loop_stop,
        ),
        vision=VisionConfig(max_visual_tokens, vision_dtype, max_image_pixels, vision_backend),
        placement=PlacementConfig(
            decoders=decoders,
            slots=slots,
            decoder_threads=decoder_threads,
            vision_threads=vision_threads,
            patch_budget=patch_budget,
            queue_mib=queue_mib,
            rows_per_part=rows_per_part,
            own_cores=own_cores,
        ),
        limits=LimitConfig(limit, max_runtime, max_error_rate, image_timeout),
        resume=ResumeConfig(_names(retry), on_changed),
        explicit=given_settings(context_of_call),
    )
    require_sense_in_new_job(config.generation, config.vision, begun=begun.value)
    if config.resume.retry:
        _require_begun(Path(config.output))
    _run(config, show)


def _require_begun(output: Path) -> None:
    """A retry by hand is of a job that is there. In a job file it stands from the first night on."""
    from batchcap.store.folder import JobFolder, alike

    try:
        JobFolder.open_existing(output)
    except UsageError:
        raise UsageError(
            f"--retry captions rows of an earlier run again, and {output} is not a job folder: check --output, or "
            f"leave --retry out to begin a job{alike(output)}"
        ) from None


def run(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.toml", help="Job file; see the jobs/ folder.")],
    show: Annotated[int, typer.Option(min=0, max=MAX_SHOWN, help="Print the first N captions at the end.")] = 0,
) -> None:
    """Caption as a job file says, from cron or systemd. Relative paths start from the file's folder."""
    from batchcap.commands.jobfile import load_job_file

    config = load_job_file(job_file)
    if config.model is None:
        config = dataclasses.replace(config, model=_model_of_the_surroundings(Path(config.output)))
    _run(config, show)


def _model_of_the_surroundings(output: Path) -> str | None:
    """The model of a job file that names none."""
    from batchcap.store.fingerprint import begun_model

    if named := os.environ.get(MODEL_VARIABLE):
        return named
    if begun_model(output) != DEMO_MODEL:
        return None
    log.warning(
        'the job file names no model: its job was begun with the demo model and goes on with it; write model = "%s" '
        "into the file",
        DEMO_MODEL,
    )
    return DEMO_MODEL


def given_settings(context: typer.Context) -> frozenset[str]:
    """Names of the settings that are on the command line, which no profile changes."""
    from batchcap.engines.profiles import NAMES

    sources = {name: context.get_parameter_source(name) for name in NAMES}
    return frozenset(name for name, source in sources.items() if source is not None and source.name != "DEFAULT")


def _prompt(given: list[str], begun: BegunJob) -> str | dict[str, str]:
    """`--prompt` as the configuration wants it: one text, or texts by name."""
    named: dict[str, str] = {}
    for text in given:
        name, equals, asked = text.partition("=")
        if equals and PROMPT_NAME.fullmatch(name):
            if name in named:
                raise SettingsError([Mistake("prompt", f"has two prompts called {name}: give each another name")])
            named[name] = asked
            continue
        if len(given) > 1:
            rule = (
                "with several prompts each needs a name: write --prompt NAME=TEXT, with a NAME of letters, digits and _"
            )
            raise SettingsError([Mistake("prompt", f"{text!r} has no name; {rule}")])
        if equals and _NAME_BY_ITS_LOOKS.fullmatch(name) and text != begun.prompt:
            rule = f"{prompt_name_fault(name)}; for this very text, put it into a file and write @FILE"
            raise SettingsError([Mistake("prompt", rule)])
        return read_prompt(text, Path(), begun)
    return read_prompt(named, Path(), begun)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run(config: JobConfig, show: int) -> None:
    from batchcap.export.demo import load_model
    from batchcap.job.progress import progress_for_terminal
    from batchcap.job.run import run_job
    from batchcap.report.status import first_captions

    summary: Summary = run_job(config, progress_for_terminal(), load_model=load_model, stopping=stop_on_signals())
    if show:
        print_result(first_captions(Path(config.output), show))
    print_result(summary.message)
    raise typer.Exit(int(summary.exit_code))
