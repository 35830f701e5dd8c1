"""Owns the process of ONNX Runtime GenAI's model builder: it draws the decoder's graph from a model without weights.

The builder reads the whole checkpoint in float32 before it draws: 9 GiB for 2B, 33 GiB for 8B. Here it is handed a
skeleton: every weight has its shape and one number of its own that fills it without taking memory. The numbers say
afterwards which tensor the builder put where, and whether it turned it, so the weights can be streamed in.

usage: python -m batchcap.export.graph.builder_process PARENT_PID CHECKPOINT GRAPH SOURCES CACHE
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # Linux, sys/prctl.h
FIRST_NUMBER = 1000  # above every number that the builder puts into a graph by itself
PRODUCER = "onnxruntime-genai"
EXTRA_OPTIONS = ("exclude_embeds=true", "prune_lm_head=true", "hf_remote=false")


def main() -> None:
    """End with the parent, then let the builder draw."""
    parent, checkpoint, graph, sources, cache = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it was killed before the line above
        sys.exit("the export has ended")
    from onnxruntime_genai.models import builder  # noqa: PLC0415 - seconds; the lines above come first

    skeleton = Skeleton()
    drawing: Any = builder.Qwen3VLTextModel
    vars(sys.modules[drawing.load_weights.__module__])["Qwen3VLForConditionalGeneration"] = skeleton
    drawing.save_model = lambda built, _folder: skeleton.save(built, Path(graph), Path(sources))
    places = (None, checkpoint, f"{cache}/stock", "fp32", "cpu", cache)
    builder.create_model(*places, **builder.parse_extra_options(*places, list(EXTRA_OPTIONS)))


class Skeleton:
    """Stands in for the class that the builder loads checkpoints with."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._shapes: list[tuple[int, ...]] = []

    def from_pretrained(self, folder: str, **_options: Any) -> Any:  # noqa: ANN401 - a module of transformers
        """The language model of a checkpoint's configuration, its parameters numbered."""
        import torch  # noqa: PLC0415
        from transformers import AutoConfig, Qwen3VLForConditionalGeneration  # noqa: PLC0415

        with torch.device("meta"):
            model = Qwen3VLForConditionalGeneration(AutoConfig.from_pretrained(folder))
        model.model.visual = torch.nn.Identity()
        numbered: dict[int, Any] = {}
        for module_name, module in model.named_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) not in numbered:  # a tied head is the embeddings' own parameter
                    numbered[id(parameter)] = self._number(f"{module_name}.{name}", tuple(parameter.shape))
                setattr(module, name, numbered[id(parameter)])
        return model

    def _number(self, name: str, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - a parameter of torch
        """A parameter full of its number; the first row of a matrix is marked, so that turning it shows."""
        import torch  # noqa: PLC0415

        column = torch.full((shape[0],), float(FIRST_NUMBER + len(self._names)))
        self._names.append(name)
        self._shapes.append(shape)
        if len(shape) == 2:
            column[0] += 0.5
            column = column[:, None].expand(shape)
        return torch.nn.Parameter(column, requires_grad=False)

    def save(self, built: Any, graph: Path, sources: Path) -> None:  # noqa: ANN401 - the builder's model
        """Write the graph without its weights, and for each of them the parameter it comes from."""
        import onnx_ir as ir  # noqa: PLC0415

        found: dict[str, dict[str, Any]] = {}
        for value in built.model.graph.initializers.values():
            source = self._source(value.const_value)
            if source is not None:
                found[value.name] = source
                value.const_value = ir.ExternalTensor(
                    "not written", 0, 0, dtype=value.dtype, shape=value.shape, name=value.name
                )
        lost = {name for name in self._names if "embed_tokens" not in name} - {
            one["parameter"] for one in found.values()
        }
        if lost:
            raise ValueError(f"the builder left out {', '.join(sorted(lost))}")
        built.model.graph.sort()
        built.model.producer_name, built.model.producer_version = PRODUCER, builder_version()
        ir.save(built.model, graph)
        sources.write_text(json.dumps(found), encoding="utf-8")

    def _source(self, tensor: Any) -> dict[str, Any] | None:  # noqa: ANN401 - any tensor of onnx_ir
        """The parameter that an initializer was made of, as `{"parameter": name, "turned": bool}`."""
        import onnx_ir as ir  # noqa: PLC0415
        import torch  # noqa: PLC0415

        while not isinstance(tensor, torch.Tensor) and hasattr(tensor, "raw"):
            tensor = tensor.raw() if isinstance(tensor, ir.LazyTensor) else tensor.raw
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tensor.numel() == 0:
            return None
        number = float(tensor.flatten()[-1]) if tensor.ndim < 2 else float(tensor[-1, -1])
        index = round(number) - FIRST_NUMBER
        if not 0 <= index < len(self._names):
            return None
        shape = tuple(tensor.shape)
        turned = tensor.ndim == 2 and float(tensor[0, -1]) == number
        if (shape[::-1] if turned else shape) != self._shapes[index]:
            raise ValueError(f"the builder made {shape} of {self._names[index]} {self._shapes[index]}")
        return {"parameter": self._names[index], "turned": turned}


def builder_version() -> str:
    """The builder's release, and the commit that it was packed from.

    The builder's own stamp asks git, which names the commit of the repository that the virtual environment happens to
    lie in, or that GIT_DIR names: the same checkpoint would get other bytes, and another id, with every commit there.
    """
    import onnxruntime_genai  # noqa: PLC0415 - seconds

    release: str = onnxruntime_genai.__version__
    commit: str = getattr(onnxruntime_genai, "__commit__", "")
    return f"{release}+{commit[:7]}" if commit else release


if __name__ == "__main__":
    main()
