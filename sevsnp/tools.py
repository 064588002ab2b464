"""build/bin: the tools that a user calls by name."""

import shlex
import shutil
from pathlib import Path

_WRAPPER = """\
#!/bin/sh
# {name}, in the project's environment.
# -P: no module is taken from the directory it is called in, where a host's evidence may lie.
exec env PYTHONPATH={project} {python} -P -m {module} "$@"
"""

# What runs in this project's environment, by name.
MODULES = {
    "verify_report": "sevsnp.attestation.cli",
    "verify_report_emulated": "sevsnp.emulation.cli",
    "inspect_report": "sevsnp.attestation.inspect_cli",
    "measure": "sevsnp.attestation.measure_cli",
    "idblock-generator": "sevsnp.attestation.idblock_cli",
    "sev-feature-info": "sevsnp.attestation.host_features",
}


def make_tools(*, get_report_source: Path, project: str, python: str, get_report: Path, **targets: Path) -> None:
    """Write the tools: get_report is one file for a bare python3; the others run in this project's environment.

    ``targets`` are the others by name, with underscores for hyphens.
    """
    shutil.copyfile(get_report_source, get_report)
    get_report.chmod(0o755)
    for name, module in MODULES.items():
        target = targets[name.replace("-", "_")]
        words = {"name": name, "project": shlex.quote(project), "python": shlex.quote(python)}
        target.write_text(_WRAPPER.format(module=module, **words))
        target.chmod(0o755)
