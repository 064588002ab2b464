"""Tasks that set up the machine and check the project."""

from tasks.graph import Task, command


def task__welcome() -> Task:
    """Say what there is to do."""
    return {**command("sevsnp.welcome:welcome"), "uptodate": [False]}


def task_install_dependencies() -> Task:
    """Install the few apt packages this machine lacks, after saying why each is needed."""
    return command("sevsnp.dependencies:install_dependencies")


def task_test() -> Task:
    """Run the tests; --full adds the slow sweeps, --select WORDS runs those that match (pytest's -k)."""
    return {
        **command("sevsnp.testing:run_tests", needs=["install_dependencies"]),
        "params": [
            {"name": "full", "long": "full", "type": bool, "default": False, "help": "slow sweeps too"},
            {"name": "select", "short": "k", "long": "select", "default": "", "help": "as pytest's -k"},
        ],
    }
