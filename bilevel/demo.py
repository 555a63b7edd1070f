"""Task-driven against two-stage dictionary learning on real handwritten digits: `python -m bilevel`."""

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from bilevel import __version__
from bilevel.datasets import Digits, load_digits
from bilevel.estimators import DictionaryLearning, TaskDrivenDictionaryClassifier
from bilevel.plots import page, plot_atoms, plot_losses

SEEDS = (0, 1, 2, 3, 4)
SIZES = (10, 30)
STRENGTHS = tuple((l1, l2) for l1 in (0.05, 0.1) for l2 in (0.001, 0.01))
HEADS = (1e-5, 1e-4, 1e-3)
EPOCHS = 30
JOINT_EPOCHS = 60
TEST_SAMPLES = 600


class Run(NamedTuple):
    """One seed at one number of atoms."""

    two_stage_error: float
    task_driven_error: float
    seconds: float
    nonzeros_per_code: float
    l1: float
    l2: float
    before: np.ndarray
    after: np.ndarray
    losses: np.ndarray


class TwoStage(NamedTuple):
    """The unsupervised dictionary and logistic regression on its codes, with strengths chosen by validation."""

    validation_error: float
    learner: DictionaryLearning
    alpha: float
    codes: np.ndarray


def two_stage(X: np.ndarray, labels: np.ndarray, atoms: int, seed: int) -> TwoStage:
    """Two-stage learning at its best: l1, l2 and the strength of its head by the error on a third of the samples.

    The dictionary sees no labels, so it is learned from all of X.
    """
    fit, held_out = train_test_split(np.arange(len(X)), test_size=1 / 3, random_state=seed, stratify=labels)
    best = None
    for l1, l2 in STRENGTHS:
        learner = DictionaryLearning(atoms, l1=l1, l2=l2, max_iter=EPOCHS, random_state=seed, verbose=True)
        codes = learner.fit_transform(X)
        for alpha in HEADS:
            head = logistic_regression(codes[fit], labels[fit], alpha)
            error = 1 - float(head.score(codes[held_out], labels[held_out]))
            if best is None or error < best.validation_error:
                best = TwoStage(error, learner, alpha, codes)
    assert best is not None
    return best


def logistic_regression(codes: np.ndarray, labels: np.ndarray, alpha: float) -> LogisticRegression:
    """The mean logistic loss plus ½ alpha ‖W‖², minimized."""
    return LogisticRegression(C=1 / (alpha * len(codes)), max_iter=2000).fit(codes, labels)


def run(digits: Digits, atoms: int, seed: int) -> Run:
    """Both ways of learning on one split, with the same l1 and l2: those that are best for two-stage learning."""
    parts: Any = train_test_split(
        digits.X, digits.labels, test_size=TEST_SAMPLES, random_state=seed, stratify=digits.labels
    )
    X, X_test, labels, labels_test = parts
    baseline = two_stage(X, labels, atoms, seed)
    head = logistic_regression(baseline.codes, labels, baseline.alpha)
    two_stage_error = 1 - float(head.score(baseline.learner.transform(X_test), labels_test))
    l1, l2 = baseline.learner.l1, baseline.learner.l2
    start = time.perf_counter()
    model = TaskDrivenDictionaryClassifier(
        atoms,
        l1=l1,
        l2=l2,
        max_iter=JOINT_EPOCHS,
        init=baseline.learner.dictionary_,
        random_state=seed,
        verbose=True,
    ).fit(X, labels)
    seconds = time.perf_counter() - start
    nonzeros = float(np.count_nonzero(model.transform(X_test), axis=1).mean())
    task_driven_error = 1 - float(model.score(X_test, labels_test))
    before, after = model.unsupervised_dictionary_, model.dictionary_
    losses = model.history_["loss"]
    return Run(two_stage_error, task_driven_error, seconds, nonzeros, l1, l2, before, after, losses)


def metrics(runs: Sequence[Run]) -> dict:
    """Medians over the seeds, and what each seed gave."""
    median = lambda values: float(np.median(values))
    return {
        "two_stage_test_error": median([r.two_stage_error for r in runs]),
        "task_driven_test_error": median([r.task_driven_error for r in runs]),
        "seconds": median([r.seconds for r in runs]),
        "nonzeros_per_code": median([r.nonzeros_per_code for r in runs]),
        "seeds": list(SEEDS[: len(runs)]),
        "per_seed": [
            {
                "two_stage_test_error": r.two_stage_error,
                "task_driven_test_error": r.task_driven_error,
                "l1": r.l1,
                "l2": r.l2,
            }
            for r in runs
        ],
    }


def draw_atoms(results: dict[int, list[Run]], image_shape: tuple[int, int]) -> bytes:
    """The first seed's atoms before and after the joint training."""
    import matplotlib.pyplot as plt

    columns = {atoms: 10 if atoms > 10 else 5 for atoms in results}
    heights = [-(-atoms // columns[atoms]) / columns[atoms] for atoms in results]
    size = (11, 5.5 * sum(heights) + 0.6 * len(results))
    figure, axes = plt.subplots(
        len(results), 2, figsize=size, squeeze=False, height_ratios=heights, layout="constrained"
    )
    for row, (atoms, runs) in zip(axes, results.items(), strict=True):
        options: dict[str, Any] = dict(columns=columns[atoms], image_shape=image_shape)
        plot_atoms(runs[0].before, title=f"{atoms} atoms, learned without labels", ax=row[0], **options)
        plot_atoms(runs[0].after, title=f"{atoms} atoms, learned for the task", ax=row[1], **options)
    return page.to_png(figure)


def draw_training(results: dict[int, list[Run]], steps_per_epoch: int) -> bytes:
    """The losses of the joint training, and the test errors of both ways."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    ways = ("two-stage", "task-driven")
    for index, (atoms, runs) in enumerate(results.items()):
        color = f"C{index}"
        plot_losses([r.losses for r in runs], window=steps_per_epoch, label=f"{atoms} atoms", color=color, ax=left)
        for run in runs:
            errors = [100 * run.two_stage_error, 100 * run.task_driven_error]
            right.plot(ways, errors, "o-", color=color, lw=0.8, ms=4, alpha=0.5)
        medians = [
            100 * np.median(e) for e in zip(*((r.two_stage_error, r.task_driven_error) for r in runs), strict=True)
        ]
        right.plot(ways, medians, "o-", color=color, lw=2.5, ms=8, label=f"{atoms} atoms")
    left.set_title("Joint training loss, median thick")
    right.set_title("Test error, median thick")
    right.set_ylabel("%")
    right.set_ylim(bottom=0)
    right.set_xlim(-0.4, 1.4)
    right.grid(alpha=0.3)
    left.legend()
    right.legend()
    return page.to_png(figure)


HEADER = ("atoms", "two-stage error", "task-driven error", "ratio", "nonzeros per code", "seconds per training")

EQUATION = (
    '<p><math display="block"><munder><mi>min</mi><mrow><mi>D</mi><mo>,</mo><mi>W</mi></mrow></munder>'
    "<mfrac><mn>1</mn><mi>n</mi></mfrac><munder><mo>&#x2211;</mo><mi>i</mi></munder>"
    "<mspace width='0.3em'/><mi>loss</mi><mo>(</mo>"
    "<msup><mi>W</mi><mo>&#x22A4;</mo></msup><msub><mi>c</mi><mi>i</mi></msub><mo>(</mo><mi>D</mi><mo>)</mo><mo>,</mo>"
    "<msub><mi>y</mi><mi>i</mi></msub><mo>)</mo><mo>,</mo><mspace width='1em'/><msub><mi>c</mi><mi>i</mi></msub>"
    "<mo>(</mo><mi>D</mi><mo>)</mo><mo>=</mo><munder><mi>argmin</mi><mi>c</mi></munder>"
    "<mspace width='0.4em'/><mfrac><mn>1</mn><mn>2</mn>"
    "</mfrac><msup><mrow><mo>&#x2016;</mo><msub><mi>x</mi><mi>i</mi></msub><mo>&#x2212;</mo><msup><mi>D</mi>"
    "<mo>&#x22A4;</mo></msup><mi>c</mi><mo>&#x2016;</mo></mrow><mn>2</mn></msup><mo>+</mo><msub><mi>l</mi><mn>1</mn>"
    "</msub><msub><mrow><mo>&#x2016;</mo><mi>c</mi><mo>&#x2016;</mo></mrow><mn>1</mn></msub><mo>+</mo><mfrac><msub>"
    "<mi>l</mi><mn>2</mn></msub><mn>2</mn></mfrac><msup><mrow><mo>&#x2016;</mo><mi>c</mi><mo>&#x2016;</mo></mrow>"
    "<mn>2</mn></msup></math></p>"
)


def rows(summary: dict[str, dict]) -> list[tuple[str, ...]]:
    """The table, as text."""
    return [
        (
            atoms,
            f"{100 * m['two_stage_test_error']:.1f} %",
            f"{100 * m['task_driven_test_error']:.1f} %",
            f"{m['task_driven_test_error'] / max(m['two_stage_test_error'], 1e-12):.2f}",
            f"{m['nonzeros_per_code']:.1f}",
            f"{m['seconds']:.1f}",
        )
        for atoms, m in summary.items()
    ]


def write_report(out: Path, summary: dict[str, dict], results: dict[int, list[Run]], digits: Digits) -> None:
    """Figures, page, and last of all the metrics, each whole or not at all."""
    batches = -(-(len(digits.X) - TEST_SAMPLES) // 256)
    atoms, training = draw_atoms(results, digits.image_shape), draw_training(results, batches)
    caption = f"Medians over {len(next(iter(results.values())))} random splits; {TEST_SAMPLES} test images."
    versions = f"bilevel {__version__}, JAX {jax.__version__}, Python {platform.python_version()}"
    parts = [
        page.paragraph(
            "Can a dictionary of a few atoms that is learned for a task beat one that is learned for the images alone? "
            "Both are learned here from the same images of handwritten digits (1,797 of 8×8 pixels), with the same l1 "
            "and l2: those that serve two-stage learning best in validation. Task-driven learning begins with the "
            "dictionary at which two-stage learning ends."
        ),
        EQUATION,
        page.table(HEADER, rows(summary), caption),
        page.figure(training, "Loss of the joint training, and test errors of each split."),
        page.figure(atoms, "Atoms before and after they learned of the labels: red positive, blue negative."),
    ]
    out.mkdir(parents=True, exist_ok=True)
    replace(out / "atoms.png", atoms)
    replace(out / "training.png", training)
    replace(out / "report.html", page.page("Task-driven dictionary learning", parts, versions).encode())
    replace(out / "metrics.json", (json.dumps(summary, indent=2) + "\n").encode())


def replace(path: Path, content: bytes) -> None:
    """Write the file whole, or leave what was there."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m bilevel", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results (%(default)s)")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1), help="how many")
    options = parser.parse_args(argv)
    # Before the work and not after it, should matplotlib be missing; and no window is wanted.
    page.use_files_only()
    # Metrics of an earlier run would belie the figures, should this one be interrupted while it writes.
    (options.out / "metrics.json").unlink(missing_ok=True)
    digits = load_digits()
    results: dict[int, list[Run]] = {}
    for atoms in SIZES:
        results[atoms] = []
        for seed in SEEDS[: options.seeds]:
            done = run(digits, atoms, seed)
            results[atoms].append(done)
            tqdm.write(
                f"{atoms} atoms, seed {seed}, l1 = {done.l1}, l2 = {done.l2}: test error "
                f"{100 * done.two_stage_error:.1f} % two-stage, {100 * done.task_driven_error:.1f} % task-driven"
            )
    summary = {str(atoms): metrics(runs) for atoms, runs in results.items()}
    write_report(options.out, summary, results, digits)
    widths = [max(len(row[i]) for row in (HEADER, *rows(summary))) for i in range(len(HEADER))]
    print()
    for row in (HEADER, *rows(summary)):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(f"\n{options.out / 'report.html'} has the figures.")
