"""What the process imports from which others are forked (`apart.py`), so that none of them imports it again."""

import gc
import os
from importlib import import_module
from pathlib import Path

gc.disable()
OTHERS = "torch._dynamo scipy.optimize uvicorn"  # PyTorch imports the first for its first optimizer, in a second
OURS = "cli.app look.style runs.training ship.serving.application ship.serving.server"
TASKS = (path.stem for path in (Path(__file__).parents[1] / "everstep" / "tasks").glob("[a-z]*.py"))
for name in (*OTHERS.split(), *(f"everstep.{part}" for part in OURS.split())):
    import_module(name)
import_module("quick_loops")  # shares what it compiles with the tests' own process
for name in TASKS:
    import_module(f"everstep.tasks.{name}")
os.fsync = lambda descriptor: None  # as in conftest.py
gc.freeze()  # no search for garbage in a fork has to look at modules, whose pages it would copy
gc.enable()
