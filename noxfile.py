"""Sessions of nox, each with what it does: `python -m nox --list`."""

import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"

TORCH = "torch==2.13.0"
OLDEST = "transformers==5.17.0"  # the oldest that pyproject.toml allows


def install(session: nox.Session, *extras: str) -> None:
    """The package, editable, on the pinned torch; its entry points are how decoders are found."""
    session.install(TORCH)
    session.install("-e", f".[{','.join(extras)}]" if extras else ".")


@nox.session
def bench(session: nox.Session) -> None:
    """Run a benchmark and build the report: the preset `quick`, or whatever follows `--`."""
    install(session)
    session.run("python", "-m", "bench.run", *(session.posargs or ["--preset", "quick"]))


@nox.session
def report(session: nox.Session) -> None:
    """Build the page of the run folders that follow `--`, and copy it to reports/index.html."""
    install(session)
    session.run("python", "-m", "reports.build", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, ten to fifteen minutes on two cores."""
    install(session, "test")
    # One file, one process, one thread each: tiny models gain nothing from more.
    session.run(
        "pytest", "-n", "2", "--dist", "loadfile", *session.posargs, env={"OMP_NUM_THREADS": "1"}
    )


@nox.session
def oldest(session: nox.Session) -> None:
    """Targets and decoders, on `eager` and `compile`, with the oldest supported transformers."""
    install(session, "test")
    session.install(OLDEST)
    files = ["tests/test_targets.py", "tests/test_gguf.py"]
    files += ["tests/decoding/test_conformance.py", "tests/decoding/test_engines.py"]
    chosen = "test_targets or test_gguf or greedy_ids or (lengths_equal_eager and compile)"
    command = ["pytest", "-n", "2", "--dist", "loadfile", *files, "-k", chosen]
    session.run(*command, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def figures(session: nox.Session) -> None:
    """Whether the figures in the documents are those of the recorded runs."""
    install(session)
    session.run("python", "-m", "reports.quote", *(session.posargs or ["--check"]))


@nox.session
def slow(session: nox.Session) -> None:
    """Long statistical tests: 20,000 draws a decoder."""
    install(session, "test")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """The report in Chromium; `-- --screenshots FOLDER RUN...` takes pictures of a run's page."""
    install(session, "browser")
    if session.posargs[:1] == ["--screenshots"]:
        session.run("python", "-m", "tests.browser.screenshots", *session.posargs[1:])
    else:
        session.run("pytest", "-m", "browser", "tests/browser", *session.posargs)


@nox.session
def journeys(session: nox.Session) -> None:
    """Five users' paths through the commands, on the installed wheel, outside the checkout."""
    chosen = [str(Path("tests/journeys").resolve()), "-m", "journeys"]
    session.install(TORCH, "build")
    with tempfile.TemporaryDirectory() as outside:
        session.run("python", "-m", "build", "--outdir", outside, silent=True)
        (wheel,) = Path(outside).glob("*.whl")
        session.install(f"{wheel}[test]")
        session.install("--force-reinstall", "--no-deps", str(wheel))  # of the same version
        with session.chdir(outside):
            # `importlib` and a script leave the checkout out of sys.path.
            options = ["--import-mode=importlib", "-p", "no:cacheprovider", "-n", "2"]
            session.run("pytest", *options, *chosen, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and the direction of imports."""
    session.install("-e", ".", "--no-deps")
    session.install("ruff>=0.14", "import-linter>=2.5")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict."""
    install(session, "test", "types")
    session.install("nox")
    session.run("mypy")
