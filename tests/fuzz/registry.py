"""What is fuzzed: the readers alone, and whole jobs of each kind of input."""

from tests.fuzz.jobs import JOBS
from tests.fuzz.targets import READERS

TARGETS = {target.name: target for target in (*READERS, *JOBS)}
