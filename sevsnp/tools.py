"""build/bin: the tools that a user calls by name."""

import shlex
import shutil
from pathlib import Path

# Not -m, and no garbage collector: of a sixth of a second they would take a tenth.
START = "import gc, sys; gc.disable(); from {module} import main; sys.exit(main())"
_WRAPPER = """\
#!/bin/sh
# {name}, in the project's environment.
# -P: no module is taken from the directory it is called in, where a host's evidence may lie.
export PYTHONPATH={project}
exec {python} -P -c '{start}' "$@"
"""
_MODULES = {
    "verify_report": "sevsnp.attestation.cli",
    "verify_report_emulated": "sevsnp.emulation.cli",
    "inspect_report": "sevsnp.attestation.inspect_cli",
    "measure": "sevsnp.attestation.measure_cli",
    "idblock_generator": "sevsnp.attestation.idblock_cli",
    "sev_feature_info": "sevsnp.vm.feature_info",
}


def make_tools(*, get_report_source: Path, project: str, python: str, get_report: Path, **commands: Path) -> None:
    """Write the tools: get_report is one file for a bare python3; the others run in this project's environment."""
    shutil.copyfile(get_report_source, get_report)
    for name, target in commands.items():
        words = {"name": target.name, "project": shlex.quote(project), "python": shlex.quote(python)}
        target.write_text(_WRAPPER.format(start=START.format(module=_MODULES[name]), **words))
    for target in (get_report, *commands.values()):
        target.chmod(0o755)
