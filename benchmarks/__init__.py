"""Measurements of speed, memory and scale: each against a stated rival, with the numeric gate
before the clock. They measure and never fail a test run.

`python -m benchmarks` runs every row for the CPU; `benchmarks/README.md` says what each compares
and holds the last results."""
