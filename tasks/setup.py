# SPDX-License-Identifier: Apache-2.0
"""Tasks that set up the machine and check the project."""

from tasks.graph import CHECKOUT, Task, command, say
from tasks.project import checked


def task__welcome() -> Task:
    """Say what there is to do."""
    return command("sevsnp.pipeline.welcome:welcome")


def task_install_dependencies() -> Task:
    """Install the few apt packages this machine lacks, after saying why

    Says which programs of the host are missing and what each is for, asks on a terminal, and installs them with
    apt-get, as root or through sudo. Everything else is fetched into build/ and needs no installation.

    Next: ./doitw e2e
    """
    return command("sevsnp.project.dependencies:install_dependencies")


def _nothing_missing() -> bool:
    from sevsnp.project.dependencies import is_ready

    return is_ready()


def task__dependencies() -> Task:
    """The same for tasks that build: silent where nothing is missing."""
    return {**command("sevsnp.project.dependencies:install_dependencies", alone=True), "uptodate": [_nothing_missing]}


def _checkout_is_ours() -> bool:
    checked(CHECKOUT.acquire, say)
    return True


def task__checkout() -> Task:
    """One run at a time builds in a checkout; one that launches or attests lets others build meanwhile."""
    return {"actions": [], "uptodate": [_checkout_is_ours]}


def task_test() -> Task:
    """Run the tests, or those in PATH; --fast: two minutes of them, --full: all

    Runs the tests, boots under emulation among them: most of an hour on two cores. --fast leaves out whatever boots or
    builds, and takes less than two minutes; --full adds slow sweeps. Name files or directories to run only those:
    ./doitw test tests/unit/settings

    Next: ./doitw lint
    """
    return {
        **command("sevsnp.project.testing:run_tests", needs=["_dependencies"]),
        "params": [
            {"name": "full", "long": "full", "type": bool, "default": False, "help": "slow sweeps too"},
            {"name": "fast", "long": "fast", "type": bool, "default": False, "help": "unit tests alone, two minutes"},
            {"name": "coverage", "long": "coverage", "type": bool, "default": False, "help": "how much they reach"},
            {"name": "select", "short": "k", "long": "select", "default": "", "help": "as pytest's -k"},
        ],
        "pos_arg": "paths",
    }


def task_lint() -> Task:
    """Run the linters and the type checker: ruff check, ruff format --check, mypy

    A change is wanted without a finding of theirs. `ruff format` and `ruff check --fix`, in .venv/bin, mend most.

    Next: ./doitw test
    """
    return command("sevsnp.project.testing:lint")
