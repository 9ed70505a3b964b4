"""Measurements of speed, memory and scale: each against a stated rival, with the numeric gate
before the clock. They measure and never fail a test run.

`python -m benchmarks` runs every row for the CPU; `benchmarks/README.md` says what each compares
and holds the last results."""

import sys
from pathlib import Path

# the networks with random weights are those of the tests
sys.path.append(str(Path(__file__).resolve().parents[1] / 'tests'))
