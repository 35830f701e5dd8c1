"""Owns `batchcap export` and `batchcap verify`: a checkpoint becomes a bundle, and is compared with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchcap.commands.options import Given, is_given, options_of
from batchcap.commands.results import print_result
from batchcap.core.errors import ExitCode, UsageError
from batchcap.core.setting import option_of
from batchcap.export.checkpoint.options import ExportOptions, FitOptions, Precision, missing_packages
from batchcap.verify.options import VerifyOptions

if TYPE_CHECKING:
    from batchcap.export.quality.quality import QualityTable
    from batchcap.verify.table import Report

_BLOCK_CHOICES = ("block_size", "algorithm", "int8_matrices")
# Options beside which others say nothing, and why.
_MEANINGLESS = {
    Precision.INT8: (("int8_matrices",), "int8 gives every matrix 8 bits"),
    Precision.W8A8: (_BLOCK_CHOICES, "w8a8 has one scale for each output"),
    Precision.FP32: (_BLOCK_CHOICES, "fp32 rounds nothing"),
}


@options_of(ExportOptions, FitOptions, last=("context", "overwrite"))
def export(
    context_of_call: typer.Context,
    checkpoint: Annotated[str, typer.Argument(help="Hugging Face folder of a Qwen3-VL checkpoint, or its hub name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to make.")],
    given: Given,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is already there.")] = False,
) -> None:
    """Turn a Qwen3-VL checkpoint into a bundle: INT4 decoder in ONNX, vision weights, tokenizer, checksums."""
    missing = missing_packages()
    if missing:
        raise UsageError(f"an export needs {missing}: install them, or export on a machine that has them")
    from batchcap.export.export import export_bundle
    from batchcap.export.quality.images import ImageChoice

    options, fit = given.build(ExportOptions), given.build(FitOptions)
    choice = ImageChoice(fit.calibrate, prompt=fit.prompt)
    _refuse_meaningless(context_of_call, options.precision, fit)
    if fit.auto:
        from batchcap.export.search.precision_search import Search

        search = Search(choice, fit.max_kl, print_result)
        bundle = export_bundle(checkpoint, output, options, search=search, overwrite=overwrite)
    else:
        calibrate = choice if fit.calibrate else None
        bundle = export_bundle(checkpoint, output, options, calibrate=calibrate, overwrite=overwrite)
    print_result(f"{bundle.folder}  {bundle.precision}  id {bundle.id[:16]}")


def _refuse_meaningless(context: typer.Context, precision: Precision, fit: FitOptions) -> None:
    """Options that say nothing beside the others can't be given together with them."""
    if fit.auto:
        _refuse(context, ("precision", *_BLOCK_CHOICES), "--auto chooses what {} says")
    else:
        names, reason = _MEANINGLESS.get(precision, ((), ""))
        _refuse(context, names, reason + ", so {} says nothing")
        _refuse(context, ("max_kl",), "only --auto keeps to {}, and it is not given", "give both")
    if not (fit.auto or fit.calibrate):
        reason = "{} is asked about the images of --calibrate or --auto, and neither is given"
        _refuse(context, ("prompt",), reason, "give both")


def _refuse(context: typer.Context, parameters: tuple[str, ...], reason: str, instead: str = "") -> None:
    for name in parameters:
        if is_given(context, name):
            advice = f"{instead}, or leave it out" if instead else "leave one of them out"
            raise UsageError(f"{reason.format(option_of(name))}: {advice}")


@options_of(VerifyOptions)
def verify(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="Bundle made by `batchcap export`; with --quality, one or more."),
    ],
    checkpoint: Annotated[
        str, typer.Option(help="The checkpoint it was made from: Hugging Face folder, or its hub name.")
    ],
    given: Given,
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
    if json is not None and (json.is_dir() or not json.parent.is_dir()):
        raise UsageError(f"there can be no file {json}: name one in a folder that is there with --json")
    options = given.build(VerifyOptions)
    if quality:
        _compare(bundles, checkpoint, options, json)
        return
    if len(bundles) > 1:
        raise UsageError("one bundle is checked at a time: name one, or compare several with --quality")
    from batchcap.verify.verify import verify_bundle

    report = verify_bundle(bundles[0], checkpoint, options)
    _print(report, json)
    raise typer.Exit(int(ExitCode.COMPLETE if report.passed else ExitCode.TOO_MANY_FAILURES))


def _compare(bundles: list[Path], checkpoint: str, options: VerifyOptions, json: Path | None) -> None:
    from batchcap.export.quality.images import ImageChoice
    from batchcap.export.quality.quality import compare_bundles

    choice = ImageChoice(options.images, options.limit, options.prompt)
    _print(compare_bundles(bundles, checkpoint, choice), json)


def _print(table: "QualityTable | Report", json: Path | None) -> None:
    from batchcap.verify.verify import write_json

    print_result(table.to_text())
    if json is not None:
        write_json(table, json)
