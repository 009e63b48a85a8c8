"""The command ``sparrow``. Files here only parse options; each calls one library function and prints its result.

Commands are imported when they are called: ``sparrow --help`` loads neither torch nor tvm.
"""

from sparrow.deploy.cli.main import main

__all__ = ["main"]
