"""Owns `batchcap export` and `batchcap verify`: a checkpoint becomes a bundle, and is compared with it."""

from pathlib import Path
from typing import Annotated

import typer

from batchcap.commands.results import print_result
from batchcap.config import DEFAULT_PROMPT
from batchcap.core.errors import ExitCode, UsageError
from batchcap.export.checkpoint.options import (
    DEFAULT_MAX_KL,
    ExportOptions,
    Int8Matrices,
    Precision,
    RoundingAlgorithm,
    missing_packages,
)

_BLOCK_CHOICES = ("block_size", "algorithm", "int8_matrices")
# Options beside which others say nothing, and why.
_MEANINGLESS = {
    Precision.INT8: (("int8_matrices",), "int8 gives every matrix 8 bits"),
    Precision.W8A8: (_BLOCK_CHOICES, "w8a8 has one scale for each output"),
    Precision.FP32: (_BLOCK_CHOICES, "fp32 rounds nothing"),
}


def export(
    context_of_call: typer.Context,
    checkpoint: Annotated[str, typer.Argument(help="Hugging Face folder of a Qwen3-VL checkpoint, or its hub name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to make.")],
    precision: Annotated[
        Precision,
        typer.Option(
            help="Weights of the decoder: int4 is small and fast, int8 closer to the original, fp32 exact and large; "
            "w8a8 rounds what the weights are multiplied with, too: twice as large as int4, fastest for many captions "
            "at once."
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
            help="Images to calibrate by (folder, files, Parquet; repeat the option for more): weights are scaled so "
            "that those which matter for such images are rounded in finer steps (AWQ). Takes minutes.",
        ),
    ] = None,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            help="Choose precision, block size, rounding and scaling by measurement: the fastest decoder that stays "
            "within --max-kl of the checkpoint on the images of --calibrate, or on some that come with batchcap.",
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
        str, typer.Option(help="What will be asked about each image; for --calibrate and --auto.")
    ] = DEFAULT_PROMPT,
    context: Annotated[int, typer.Option(help="Longest prompt and caption together, in tokens.")] = 4096,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is already there.")] = False,
) -> None:
    """Turn a Qwen3-VL checkpoint into a bundle: INT4 decoder in ONNX, vision weights, tokenizer, checksums."""
    missing = missing_packages()
    if missing:
        raise UsageError(f"an export needs {missing}: install them, or export on a machine that has them")
    from batchcap.export.export import export_bundle
    from batchcap.export.quality.images import ImageChoice

    options = ExportOptions(
        precision=precision, block_size=block_size, algorithm=algorithm, int8_matrices=int8_matrices, context=context
    )
    choice = ImageChoice(tuple(calibrate or ()), prompt=prompt)
    if auto:
        _refuse(context_of_call, ("precision", *_BLOCK_CHOICES), "--auto chooses what {} says")
    else:
        names, reason = _MEANINGLESS.get(precision, ((), ""))
        _refuse(context_of_call, names, reason + ", so {} says nothing")
        _refuse(context_of_call, ("max_kl",), "only --auto keeps to {}, and it is not given", "give both")
    if not (auto or calibrate):
        reason = "{} is asked about the images of --calibrate or --auto, and neither is given"
        _refuse(context_of_call, ("prompt",), reason, "give both")
    if auto:
        from batchcap.export.search.precision_search import Search

        search = Search(choice, max_kl, print_result)
        bundle = export_bundle(checkpoint, output, options, search=search, overwrite=overwrite)
    else:
        bundle = export_bundle(
            checkpoint, output, options, calibrate=choice if calibrate else None, overwrite=overwrite
        )
    print_result(f"{bundle.folder}  {bundle.precision}  id {bundle.id[:16]}")


def _refuse(context: typer.Context, parameters: tuple[str, ...], reason: str, instead: str = "") -> None:
    """Options that mean nothing beside the others can't be given together with them."""
    for name in parameters:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            advice = f"{instead}, or leave it out" if instead else "leave one of them out"
            raise UsageError(f"{reason.format('--' + name.replace('_', '-'))}: {advice}")


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
            help="Images to compare with (folder, files, Parquet; repeat the option for more). Default: generated "
            "ones of many sizes."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="Most images to take of --images, evenly spread.")] = 24,
    prompt: Annotated[str, typer.Option(help="What to ask about each image.")] = DEFAULT_PROMPT,
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
    from batchcap.export.quality.images import ImageChoice
    from batchcap.export.quality.quality import compare_bundles
    from batchcap.verify.verify import VerifyOptions, verify_bundle, write_json

    if json is not None and (json.is_dir() or not json.parent.is_dir()):
        raise UsageError(f"there can be no file {json}: name one in a folder that is there with --json")
    if quality:
        table = compare_bundles(bundles, checkpoint, ImageChoice(tuple(images or ()), limit, prompt))
        print_result(table.to_text())
        if json is not None:
            write_json(table, json)
        return
    if len(bundles) > 1:
        raise UsageError("one bundle is checked at a time: name one, or compare several with --quality")
    report = verify_bundle(bundles[0], checkpoint, VerifyOptions(tuple(images or ()), limit, prompt=prompt))
    print_result(report.to_text())
    if json is not None:
        write_json(report, json)
    raise typer.Exit(int(ExitCode.COMPLETE if report.passed else ExitCode.TOO_MANY_FAILURES))
