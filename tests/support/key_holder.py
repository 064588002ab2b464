# SPDX-License-Identifier: Apache-2.0
"""A program for test_core_dumps.py: gets a disk key as the product does, prints how it is protected, and crashes.

python key_holder.py environment|file|made|typed PLACE protected|unprotected
"""

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path

from sevsnp.keys import taken_key
from sevsnp.system import command

how, place, arm = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
if arm == "unprotected":
    taken_key.keep_from_dumps = lambda: None  # before the modules that call it import it

from sevsnp.keys import luks_key  # noqa: E402

# linux/prctl.h
PR_GET_DUMPABLE = 3
UUID = "11111111-2222-3333-4444-555555555555"

taken_key.take_over()
if how == "made":
    key = luks_key.make_key(place, UUID)
else:
    given = luks_key.given({"environment": "", "file": str(place), "typed": "-"}[how])
    assert given
    key = given
child = command.run([sys.executable, "-I", "-c", "import resource; print(resource.getrlimit(resource.RLIMIT_CORE)[0])"])
found = {
    "key": key.data.hex(),
    "dumpable": ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0),
    "limit": resource.getrlimit(resource.RLIMIT_CORE)[0],
    "limit of a child": int(child),
}
print(f"FOUND {json.dumps(found)}", flush=True)
os.kill(os.getpid(), signal.SIGABRT)
