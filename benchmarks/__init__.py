"""Measurements of the library against its rivals and against itself, from one command: `python -m benchmarks`.

A benchmark is a module of this package that defines

    def run(quick: bool) -> Results

in `results`: tables, figures, the precision. Its docstring is the text above its tables, the first sentence its line in
the list. It shows a progress bar, and times with `measure.interleaved`. The command switches 64 bits on and selects the
device before it calls `run`, and writes what comes back. A rival that is not installed is a row that says so.

Of benchopt's conventions these are kept: problem, judge and contestants apart; only the solve is timed; warm-up and
conversion outside; a rival may be left out with a reason. Its run loop is not: it restarts one solver at a time with
growing budgets and draws the objective against time, whereas most of what is judged here (the error of a gradient, the
memory and the compile time of a program) is not the objective at a budget, and ratios on a busy machine need the
contestants to take turns.
"""
