"""Owns `batchcap doctor`: what this machine is, what a job would use on it, and why."""

import json
import platform
import shutil
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from batchcap import __version__
from batchcap.config import (
    DEMO_MODEL,
    InputConfig,
    JobConfig,
    PlacementConfig,
    Profile,
    VisionBackend,
    VisionConfig,
    VisionDtype,
)
from batchcap.core import offline
from batchcap.core.cache import cache_folder
from batchcap.core.errors import ExitCode, UsageError
from batchcap.core.machine import (
    MIB,
    available_cores,
    available_memory_bytes,
    cpu_flags,
    cpu_name,
    total_memory_bytes,
)
from batchcap.engines.capacity import memory_need
from batchcap.engines.config import EngineConfig
from batchcap.engines.cores import Threads, plan_for
from batchcap.engines.profiles import Resolution, resolve
from batchcap.engines.tuned import read_tuned
from batchcap.export.demo import load_model
from batchcap.model.bundle import Bundle
from batchcap.vision.dtype import resolve_backend, resolve_encoder

PACKAGES = ("torch", "transformers", "onnxruntime", "onnxruntime-genai", "pillow", "pyarrow", "tokenizers")
EXPORT_PACKAGES = ("torch", "transformers", "onnxruntime-genai")  # captioning with a bundle works without them
# Flags that decide the speed of the kernels in use, fastest last.
SPEED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


DEFAULT_PLACEMENT = PlacementConfig()


@dataclass(slots=True)
class Findings:
    """What was found: facts by section, and problems a person should mend."""

    sections: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> ExitCode:
        """Usage error with a problem, else complete."""
        return ExitCode.USAGE if self.problems else ExitCode.COMPLETE

    def to_json(self) -> str:
        """One JSON object."""
        content: dict[str, Any] = {**self.sections, "problems": self.problems}
        return json.dumps(content, indent=2, ensure_ascii=False)

    def to_text(self) -> str:
        """Lines for a person."""
        lines: list[str] = []
        for title, facts in self.sections.items():
            width = max(len(name) for name in facts)
            lines += [title, *(f"  {name:<{width}}  {value}" for name, value in facts.items()), ""]
        lines += [f"problem: {problem}" for problem in self.problems] or ["no problem found"]
        return "\n".join(lines)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "batchcap": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def _machine() -> dict[str, str]:
    flags = cpu_flags()
    cache = cache_folder()
    disk = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists()))
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": f"{available_cores()} for this process",
        "features": " ".join(flag for flag in SPEED_FLAGS if flag in flags)
        or ("none of the fast ones" if flags else "unknown, /proc/cpuinfo does not say"),
        "memory": f"{available_memory_bytes() / MIB:,.0f} MiB free of {total_memory_bytes() / MIB:,.0f} MiB",
        "disk": f"{disk.free / MIB:,.0f} MiB free for the cache in {cache}",
        "network": offline.statement() if not offline.faults() else "telemetry may be sent: see the problems below",
    }


def _model(bundle: Bundle) -> dict[str, str]:
    text, vision = bundle.geometry.text, bundle.geometry.vision
    return {
        "bundle": f"{bundle.folder} (all checksums verified)",
        "id": bundle.id[:16],
        "source": bundle.source,
        "decoder": f"{text.layers} layers of {text.hidden_size}, {bundle.precision}, context {bundle.context} tokens",
        "vision": f"{vision.depth} blocks of {vision.hidden_size}, DeepStack from {list(vision.deepstack_levels)}",
    }


def _why_encoder(vision: VisionConfig, dtype: VisionDtype) -> str:
    if vision.backend is not VisionBackend.AUTO:
        return "by profile, tuning or option"
    if resolve_backend(vision.backend, vision.dtype) is VisionBackend.ONNX:
        return "PyTorch is not installed"
    bf16 = "bf16 arithmetic" if dtype is VisionDtype.BF16 else "no bf16 arithmetic"
    return f"PyTorch is installed, the CPU has {bf16}"


def _plan(bundle: Bundle, resolution: Resolution) -> tuple[dict[str, str], str | None]:
    """What a job with these settings would use, and the problem with it, if there is one."""
    config = resolution.config
    placement, vision = config.placement, config.vision
    threads = Threads.of(placement, available_cores())
    backend, dtype = resolve_encoder(vision)
    need, free_bytes = memory_need(EngineConfig.of_job(bundle, config)), available_memory_bytes()
    slots = need.slots_within(free_bytes, placement.slots)
    fewer = "" if slots == placement.slots else f" (of {placement.slots}: more do not fit into the free memory)"
    facts = {
        "profile": resolution.why,
        "vision": f"{backend} {dtype} on {threads.vision} threads ({_why_encoder(vision, dtype)})",
        "visual tokens": f"at most {vision.max_visual_tokens} an image, {bundle.geometry.vision.token_side_px} x "
        f"{bundle.geometry.vision.token_side_px} pixels each",
        "decoders": f"{placement.decoders} with {slots} slots{fewer} and {threads.decoder} threads",
        "cores": plan_for(placement).to_text(),
        "KV cache": f"{slots * need.slot / MIB:,.0f} MiB",
        "feature queue": f"at most {placement.queue_mib} MiB",
        "memory": f"about {need.total(slots) / MIB:,.0f} MiB",
    }
    if need.total(slots) <= free_bytes:
        return facts, None
    return facts, (
        f"even with {slots} slots a job needs about {need.total(slots) / MIB:,.0f} MiB and {free_bytes / MIB:,.0f} MiB "
        "are free: end other programs, or take a smaller model"
    )


def examine(
    model: str | None,
    profile: Profile = Profile.AUTO,
    placement: PlacementConfig = DEFAULT_PLACEMENT,
    given: frozenset[str] = frozenset(),
    *,
    check: bool = True,
) -> Findings:
    """Look at the machine and at the model.

    Args:
        model: bundle folder, or `DEMO_MODEL`; None: only the machine is looked at.
        profile: of the job to be planned.
        placement: what that job is asked to use.
        given: names of the settings in it that were asked for; the profile decides the others.
        check: whether to load the model and see that captions don't depend on where they are made.
    """
    findings = Findings({"versions": _versions(), "machine": _machine()})
    versions = findings.sections["versions"].items()
    missing = [name for name, version in versions if version == "missing" and name not in EXPORT_PACKAGES]
    findings.problems += [f"{name} is not installed: run `pip install {name}`" for name in missing]
    findings.problems += offline.faults()
    if model is None:
        findings.sections["model"] = {
            "bundle": f"none: add --model BUNDLE or --model {DEMO_MODEL} to see the plan of a job"
        }
        return findings
    try:
        bundle = load_model(model)
    except UsageError as error:
        findings.problems.append(str(error))
        return findings
    findings.sections["model"] = _model(bundle)
    config = JobConfig(InputConfig(("pictures",)), "captions", profile=profile, placement=placement, explicit=given)
    resolution = resolve(config, bundle, read_tuned(bundle.id))
    which = "these" if given or profile is not Profile.AUTO else "default"
    findings.sections[f"a job with {which} options"], problem = _plan(bundle, resolution)
    findings.problems += [problem] if problem else []
    if check and problem is None:
        from batchcap.report.determinism import check_determinism  # noqa: PLC0415 - loads the model libraries

        determinism = check_determinism(bundle, resolution.config)
        findings.sections["the same caption everywhere"] = determinism.facts
        findings.problems += determinism.problems
    return findings
