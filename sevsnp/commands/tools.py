# SPDX-License-Identifier: Apache-2.0
"""Write build/bin: the tools that a user calls by name."""

import shlex
import shutil
from pathlib import Path

# Not -m, and no garbage collector: a command takes a sixth of a second, and they would take a tenth of that.
START = "import gc, sys; gc.disable(); from {module} import main; sys.exit(main())"
_WRAPPER = """\
#!/bin/sh
# {name}, in the project's environment.
# -P: no module is taken from the directory it is called in, where a host's evidence may lie.
export PYTHONPATH={project}
exec {python} -P -c '{start}' "$@"
"""
_MODULES = {
    "verify_report": "sevsnp.commands.verify_report",
    "verify_report_emulated": "sevsnp.commands.verify_report_emulated",
    "inspect_report": "sevsnp.commands.inspect_report",
    "measure": "sevsnp.commands.measure",
    "idblock_generator": "sevsnp.commands.idblock_generator",
    "sev_feature_info": "sevsnp.commands.feature_info",
    "tcb_floors": "sevsnp.commands.tcb_floors",
}


# A single file like get_report, because a guest has neither this project nor the initramfs's modules.
_EMULATED = """\
#!/usr/bin/env python3
# get_report for an emulated guest: its reports are signed by a software secure processor. EMULATED - NOT CONFIDENTIAL.
import sys
import types

SOURCES = {sources!r}
for name, source in SOURCES.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name + ".py", "exec"), module.__dict__)
sys.modules["emulated_provider"].register()
sys.exit(sys.modules["get_report"].main())
"""


def make_tools(
    *,
    get_report_source: Path,
    emulated_provider: Path,
    project: str,
    python: str,
    get_report: Path,
    get_report_emulated: Path,
    **commands: Path,
) -> None:
    """Write the tools.

    get_report and get_report_emulated are single files that need only the guest's python3. The other tools run in this
    project's environment.
    """
    shutil.copyfile(get_report_source, get_report)
    sources = {"get_report": get_report_source.read_text(), "emulated_provider": emulated_provider.read_text()}
    get_report_emulated.write_text(_EMULATED.format(sources=sources))
    for name, target in commands.items():
        words = {"name": target.name, "project": shlex.quote(project), "python": shlex.quote(python)}
        target.write_text(_WRAPPER.format(start=START.format(module=_MODULES[name]), **words))
    for target in (get_report, get_report_emulated, *commands.values()):
        target.chmod(0o755)
