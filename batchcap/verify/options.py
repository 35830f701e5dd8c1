"""Owns the choices of a verification."""

from dataclasses import dataclass, field

from batchcap.config import DEFAULT_PROMPT
from batchcap.core.setting import Form, known_as, require_sense, setting
from batchcap.export.checkpoint.options import MAX_IMAGES


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What a bundle is verified with; see the help of each setting.

    Attributes:
        steps: tokens an image, where the bundle's context has room for them.
    """

    images: tuple[str, ...] = setting(
        (),
        "Images to compare with (folder, files, tables; repeat the option for more). Default: generated "
        "ones of many sizes.",
        form=Form.REPEATED,
    )
    limit: int = setting(MAX_IMAGES, "Most images to take of --images, evenly spread.", at_least=1)
    steps: int = field(default=64, metadata=known_as(is_given=False))
    prompt: str = setting(DEFAULT_PROMPT, "What to ask about each image.")

    def __post_init__(self) -> None:
        require_sense(self)
