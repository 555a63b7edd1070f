"""`python -m benchmarks`: list the benchmarks, run one, or gather all results on a page."""

import argparse
import ast
import importlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks.report import report
from benchmarks.results import environment, write
from bilevel.plots.page import use_files_only


def found() -> dict[str, str]:
    """The modules of this package that define `run`, and the first sentence of what each says of itself."""
    benchmarks = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        module = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in module.body):
            benchmarks[path.stem] = (ast.get_docstring(module) or "").split("\n\n")[0].replace("\n", " ")
    return benchmarks


def main(arguments: Sequence[str] | None = None) -> None:
    benchmarks = found()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", help="a benchmark, or `report`; nothing lists the benchmarks")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rivals and repeats")
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="where JAX computes (its default)")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder of results (%(default)s)")
    options = parser.parse_args(arguments)
    if options.name is None:
        width = max(map(len, benchmarks))
        print("\n".join(f"{name:{width}}  {text}" for name, text in benchmarks.items()))
        print(f"{'report':{width}}  One HTML page of all results in the folder.")
    elif options.name == "report":
        try:
            print(report(options.out))
        except FileNotFoundError as error:
            parser.error(str(error))
    elif options.name in benchmarks:
        try:
            device = jax.devices(options.device)[0] if options.device else None
        except RuntimeError:
            parser.error(f"JAX finds no {options.device} here, only {jax.devices()[0].platform}. Leave --device out.")
        # Before anything is measured, lest it be lost.
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=options.out).close()
        except OSError as error:
            parser.error(f"nothing can be written into {options.out} ({error.strerror}). Try another folder: --out")
        measure(options.name, options.quick, device, options.out)
    else:
        parser.error(f"there is no benchmark {options.name!r}. There are: {', '.join([*benchmarks, 'report'])}.")


def measure(name: str, quick: bool, device: jax.Device | None, out: Path) -> None:
    """Run a benchmark in 64 bits on a device, None for JAX's own choice, and write its results."""
    use_files_only()
    module = importlib.import_module(f"benchmarks.{name}")
    jax.config.update("jax_enable_x64", True)
    # Times with compilation are to be those of a first run.
    jax.config.update("jax_enable_compilation_cache", False)
    if device is not None:
        jax.config.update("jax_default_device", device)
    record = {"quick": quick, **environment()}
    start = time.perf_counter()
    results = module.run(quick)
    record["seconds"] = time.perf_counter() - start
    print(write(name, module.__doc__ or "", results, record, out))


if __name__ == "__main__":
    main()
