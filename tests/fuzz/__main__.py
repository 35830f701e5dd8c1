"""The fuzzer: `python -m tests.fuzz [--minutes 1] [--seed N] [--target NAME]`.

Prints how many inputs were taken in, refused, or crashed the process or raised what nobody expects; those are saved
in `--save`. Exit code 1 where there is one.
"""

import argparse
import sys
from pathlib import Path

from tests.fuzz.child import Outcome
from tests.fuzz.harness import fuzz, save
from tests.fuzz.registry import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=list(TARGETS), action="append")
    parser.add_argument("--save", type=Path, default=Path("fuzz-crashes"))
    arguments = parser.parse_args()
    print("| target | inputs | accepted | rejected | crashed | kinds of crashes |")
    print("| --- | --: | --: | --: | --: | --: |")
    saved = []
    for name in arguments.target or TARGETS:
        findings = fuzz(name, arguments.seed, most_s=arguments.minutes * 60)
        counts = [findings.outcomes.total(), *(findings.outcomes[one] for one in Outcome), len(findings.crashes)]
        print(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |", flush=True)
        saved += save(findings, name, arguments.save)
    print(*saved, sep="\n")
    sys.exit(bool(saved))


if __name__ == "__main__":
    main()
