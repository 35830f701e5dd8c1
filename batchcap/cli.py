"""Owns the command line: parse, make one configuration, call once. Heavy imports stay inside the commands."""

import io
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from batchcap import __version__
from batchcap.config import (
    DEFAULT_PROMPT,
    GenerationConfig,
    InputConfig,
    JobConfig,
    LimitConfig,
    PlacementConfig,
    VisionBackend,
    VisionConfig,
    VisionDtype,
)
from batchcap.errors import BatchcapError, ExitCode, UsageError
from batchcap.export.options import (
    DEFAULT_MAX_KL,
    ExportOptions,
    Int8Matrices,
    Precision,
    RoundingAlgorithm,
    missing_packages,
)

if TYPE_CHECKING:
    from batchcap.report.summary import Summary

app = typer.Typer(
    name="batchcap",
    help="Caption pictures in bulk on ordinary CPUs with Qwen3-VL: no network, nothing lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INPUT, _WORDS, _PICTURES, _PLACE, _LIMITS = "Input", "Words", "Pictures", "Speed and memory", "Limits"


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"batchcap {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More log lines on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("batchcap").setLevel(level)


@app.command()
def caption(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Picture files, folders, Parquet files, folders of Parquet files, globs in quotes."
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Job folder: captions, statistics, state.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Bundle made by `batchcap export`; default: the demo model.")
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(
            help="Parquet column with the picture: bytes, Hugging Face Image, or path. Default: found by itself.",
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
            help="Where relative paths of a path column start. Default: the Parquet file's folder.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    keep_columns: Annotated[
        str,
        typer.Option(
            help="Input columns to carry into the output, separated by commas; * for all but the picture.",
            rich_help_panel=_INPUT,
        ),
    ] = "",
    limit: Annotated[int, typer.Option(help="Caption only the first N rows; 0: all.", rich_help_panel=_INPUT)] = 0,
    prompt: Annotated[str, typer.Option(help="What to ask about each picture.", rich_help_panel=_WORDS)] = (
        DEFAULT_PROMPT
    ),
    max_new_tokens: Annotated[int, typer.Option(help="Longest caption, in tokens.", rich_help_panel=_WORDS)] = 128,
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
    max_visual_tokens: Annotated[
        int,
        typer.Option(
            help="Most visual tokens of a picture. One covers 32 x 32 pixels after the resize, so 256 see about "
            "512 x 512; more show more detail and take longer.",
            rich_help_panel=_PICTURES,
        ),
    ] = 256,
    vision_dtype: Annotated[
        VisionDtype,
        typer.Option(
            help="Arithmetic of the vision encoder: bf16 (torch), fp32, int8 (onnx); auto: bf16 in torch where the CPU "
            "has it, else fp32.",
            rich_help_panel=_PICTURES,
        ),
    ] = VisionDtype.AUTO,
    vision_backend: Annotated[
        VisionBackend,
        typer.Option(
            help="What runs the vision encoder: torch (PyTorch) or onnx (ONNX Runtime, PyTorch need not be installed); "
            "auto: torch where it is installed.",
            rich_help_panel=_PICTURES,
        ),
    ] = VisionBackend.AUTO,
    max_image_pixels: Annotated[
        int, typer.Option(help="Refuse pictures with more pixels than this.", rich_help_panel=_PICTURES)
    ] = 256_000_000,
    decoders: Annotated[
        int, typer.Option(help="Decoder processes, each with its own copy of the weights.", rich_help_panel=_PLACE)
    ] = 1,
    slots: Annotated[
        int, typer.Option(help="Captions one decoder works on at once; each takes memory.", rich_help_panel=_PLACE)
    ] = 16,
    decoder_threads: Annotated[
        int, typer.Option(help="Threads of one decoder; 0: cores / decoders.", rich_help_panel=_PLACE)
    ] = 0,
    vision_threads: Annotated[
        int, typer.Option(help="Threads of the vision encoder; 0: all cores.", rich_help_panel=_PLACE)
    ] = 0,
    patch_budget: Annotated[
        int,
        typer.Option(
            help="Patches (16 x 16 pixels) encoded in one pass; a larger picture goes alone.", rich_help_panel=_PLACE
        ),
    ] = 4096,
    queue_mib: Annotated[
        int, typer.Option(help="Memory for encoded pictures that wait for a decoder.", rich_help_panel=_PLACE)
    ] = 256,
    rows_per_part: Annotated[
        int, typer.Option(help="Rows of one captions/part-*.parquet.", rich_help_panel=_PLACE)
    ] = 1000,
    max_runtime: Annotated[
        float,
        typer.Option(
            help="Stop in good order after so many seconds (exit code 75); 0: never.", rich_help_panel=_LIMITS
        ),
    ] = 0.0,
    max_error_rate: Annotated[
        float,
        typer.Option(help="Exit code 3 if a larger share of the rows failed; 1: never.", rich_help_panel=_LIMITS),
    ] = 1.0,
    show: Annotated[int, typer.Option(help="Print the first N captions at the end.")] = 0,
) -> None:
    """Caption every picture of the inputs.

    Run the same command again to resume; what is finished is never done twice.
    """
    config = JobConfig(
        input=InputConfig(tuple(inputs), image_column, id_column, image_root, _names(keep_columns)),
        output=output,
        model=model,
        generation=GenerationConfig(
            prompt=prompt,
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
        ),
        limits=LimitConfig(limit, max_runtime, max_error_rate),
    )
    _run(config, show)


@app.command()
def run(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.toml", help="Job file; see the jobs/ folder.")],
    show: Annotated[int, typer.Option(help="Print the first N captions at the end.")] = 0,
) -> None:
    """Caption as a job file says, from cron or systemd. Relative paths start from the file's folder."""
    from batchcap.jobfile import load_job_file

    _run(load_job_file(job_file), show)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _print(text: str) -> None:
    """Print a result. A reader that has seen enough (`| head`) is no error, and changes no exit code."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(config: JobConfig, show: int) -> None:
    from batchcap.job import run_job
    from batchcap.report.progress import progress_for_terminal
    from batchcap.report.status import first_captions

    summary: Summary = run_job(config, progress_for_terminal())
    if show:
        _print(first_captions(Path(config.output), show))
    _print(summary.message)
    raise typer.Exit(int(summary.exit_code))


@app.command()
def export(
    context_of_call: typer.Context,
    checkpoint: Annotated[str, typer.Argument(help="Hugging Face folder of a Qwen3-VL checkpoint, or its hub name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to make.")],
    precision: Annotated[
        Precision,
        typer.Option(
            help="Weights of the decoder: int4 is small and fast, int8 closer to the original, fp32 exact and large."
        ),
    ] = Precision.INT4,
    block_size: Annotated[
        int, typer.Option(help="Weights that share one scale: 32, 64, 128 or 256; fewer is closer and slower.")
    ] = 128,
    algorithm: Annotated[
        RoundingAlgorithm,
        typer.Option(
            help="How weights are rounded: rtn, nearest of the values about zero; default, nearest of all values; "
            "k_quant, with the best scale of each block."
        ),
    ] = RoundingAlgorithm.RTN,
    int8_matrices: Annotated[
        Int8Matrices,
        typer.Option(
            help="Matrices of an int4 decoder that keep 8 bits: head, the one that gives the words; sensitive, some of "
            "the layers' too."
        ),
    ] = Int8Matrices.NONE,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            help="Pictures to calibrate by (folder, files, Parquet; repeat the option for more): weights are scaled so "
            "that those which matter for such pictures are rounded in finer steps (AWQ). Takes minutes.",
        ),
    ] = None,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            help="Choose precision, block size, rounding and scaling by measurement: the fastest decoder that stays "
            "within --max-kl of the checkpoint on the pictures of --calibrate, or on some that come with batchcap.",
        ),
    ] = False,
    max_kl: Annotated[
        float,
        typer.Option(
            help="With --auto, the mean Kullback-Leibler divergence of the next token from the checkpoint's that is "
            "allowed, in nats."
        ),
    ] = DEFAULT_MAX_KL,
    prompt: Annotated[
        str, typer.Option(help="What will be asked about each picture; for --calibrate and --auto.")
    ] = DEFAULT_PROMPT,
    context: Annotated[int, typer.Option(help="Longest prompt and caption together, in tokens.")] = 4096,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is already there.")] = False,
) -> None:
    """Turn a Qwen3-VL checkpoint into a bundle: INT4 decoder in ONNX, vision weights, tokenizer, checksums."""
    missing = missing_packages()
    if missing:
        raise UsageError(f"an export needs {missing}: install them, or export on a machine that has them")
    from batchcap.export.export import export_bundle
    from batchcap.export.pictures import PictureChoice

    options = ExportOptions(
        precision=precision, block_size=block_size, algorithm=algorithm, int8_matrices=int8_matrices, context=context
    )
    choice = PictureChoice(tuple(calibrate or ()), prompt=prompt)
    if auto:
        _refuse_beside_auto(context_of_call)
        from batchcap.export.auto import Search

        search = Search(choice, max_kl, _print)
        bundle = export_bundle(checkpoint, output, options, search=search, overwrite=overwrite)
    else:
        bundle = export_bundle(
            checkpoint, output, options, calibrate=choice if calibrate else None, overwrite=overwrite
        )
    _print(f"{bundle.folder}  {bundle.precision}  id {bundle.id[:16]}")


def _refuse_beside_auto(context: typer.Context) -> None:
    """What --auto chooses can't be given as well."""
    for name in ("precision", "block_size", "algorithm", "int8_matrices"):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"--auto chooses what {option} says: leave one of them out")


@app.command()
def verify(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="Bundle made by `batchcap export`; with --quality, one or more."),
    ],
    checkpoint: Annotated[
        str, typer.Option(help="The checkpoint it was made from: Hugging Face folder, or its hub name.")
    ],
    images: Annotated[
        list[str] | None,
        typer.Option(
            help="Pictures to compare with (folder, files, Parquet; repeat the option for more). Default: generated "
            "ones of many sizes."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="Most pictures to take of --images, evenly spread.")] = 24,
    prompt: Annotated[str, typer.Option(help="What to ask about each picture.")] = DEFAULT_PROMPT,
    quality: Annotated[
        bool,
        typer.Option(
            "--quality",
            help="Check nothing; measure what rounding costs, a row for each bundle: KL divergence, share of the same "
            "tokens and captions, size, speed.",
        ),
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the table as JSON to this file, too.")] = None,
) -> None:
    """Compare a bundle with its checkpoint in transformers: features, weights, logits, captions. Takes minutes.

    Exit code 0 if every check is within its tolerance, 3 if not.
    """
    missing = missing_packages()
    if missing:
        raise UsageError(f"the comparison needs {missing}: install them, or verify on a machine that has them")
    from batchcap.export.pictures import PictureChoice
    from batchcap.verify.quality import compare_bundles
    from batchcap.verify.verify import VerifyOptions, verify_bundle, write_json

    if quality:
        table = compare_bundles(bundles, checkpoint, PictureChoice(tuple(images or ()), limit, prompt))
        if json is not None:
            write_json(table, json)
        _print(table.to_text())
        return
    if len(bundles) > 1:
        raise UsageError("one bundle is checked at a time: name one, or compare several with --quality")
    report = verify_bundle(bundles[0], checkpoint, VerifyOptions(tuple(images or ()), limit, prompt=prompt))
    if json is not None:
        write_json(report, json)
    _print(report.to_text())
    raise typer.Exit(int(ExitCode.COMPLETE if report.passed else ExitCode.TOO_MANY_FAILURES))


@app.command()
def status(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Job folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    captions: Annotated[int, typer.Option(help="Print the first N captions too.")] = 0,
) -> None:
    """Show how far a job is: done, left, rate, failures by kind. Works while it runs, too."""
    from batchcap.report.status import first_captions, read_status

    state = read_status(output)
    _print(state.to_json() if json else state.to_text())
    if captions and not json:
        _print(first_captions(output, captions))


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Bundle to look at; default: the demo model.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, CPU features and memory, and what a job would use on this machine and why."""
    from batchcap.report.doctor import examine

    findings = examine(model)
    _print(findings.to_json() if json else findings.to_text())
    raise typer.Exit(int(findings.exit_code))


class _InterruptedError(BatchcapError):
    """Ctrl-C outside a job. Not KeyboardInterrupt, which the command-line library would turn into exit code 1."""

    exit_code = ExitCode.INTERRUPTED


class _TerminatedError(BatchcapError):
    """SIGTERM outside a job: while the inputs are listed or the bundle is checked, say."""

    exit_code = ExitCode.STOPPED_EARLY


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGTERM:
        raise _TerminatedError("stopped before any work was begun")
    raise _InterruptedError("interrupted")


def _open_standard_streams() -> None:
    """Streams that the caller has closed (`2>&-`) lead nowhere; else files of ours would get their numbers."""
    for number, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(descriptor, True)
            stream = os.fdopen(descriptor, mode, encoding="utf-8")
            setattr(sys, ("stdin", "stdout", "stderr")[number], stream)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a caption may hold what this terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """The `batchcap` command: every error becomes one line on stderr and the documented exit code.

    Set BATCHCAP_DEBUG=1 to see the traceback of an unexpected error.
    """
    _open_standard_streams()
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except BatchcapError as error:
        typer.echo(f"batchcap: error: {error}", err=True)
        sys.exit(int(error.exit_code))
    except Exception as error:  # noqa: BLE001 - the command line's edge
        if os.environ.get("BATCHCAP_DEBUG"):
            traceback.print_exc()
        typer.echo(
            f"batchcap: error: unexpected {type(error).__name__}: {error}\n"
            "This is a bug in batchcap. Nothing finished is lost; BATCHCAP_DEBUG=1 shows the traceback.",
            err=True,
        )
        sys.exit(int(ExitCode.UNEXPECTED))


if __name__ == "__main__":
    main()
