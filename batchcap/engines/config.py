"""Owns what an engine is told: the model, what is usually asked of it, and how much it may take."""

from dataclasses import dataclass, field

from batchcap.config import GenerationConfig, JobConfig, LimitConfig, PlacementConfig, VisionConfig
from batchcap.model.bundle import Bundle


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is told.

    Attributes:
        bundle: the model.
        generation: what requests usually ask: what is made for it may be too small for requests that ask for more.
        vision: how images are encoded.
        placement: how much the stages may take of the machine that they run on.
        image_timeout_s: a worker that does not come to an end with an image for so long is ended itself.
    """

    bundle: Bundle
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    image_timeout_s: float = field(default_factory=lambda: LimitConfig().image_timeout_s)

    @classmethod
    def of_job(cls, bundle: Bundle, job: JobConfig) -> "EngineConfig":
        """What a job tells its engine."""
        return cls(bundle, job.generation, job.vision, job.placement, job.limits.image_timeout_s)
