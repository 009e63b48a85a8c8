"""A pretend board: the real sshd in name spaces of its own, where aarch64 programs run.

    arm_sshd.py QEMU SSHD CONFIG PASSWD FAKES

Its one user, number 1000, is the caller's; PASSWD names the user's home and an aarch64 shell.
"""

import os
import sys
from pathlib import Path

from arm_namespace import become, bind, describe_cores, enter, fail

USER = 1000


def main() -> None:
    qemu, sshd, config, passwd, fakes = sys.argv[1:]

    def prepare() -> None:
        bind(Path(passwd), Path("/etc/passwd"))
        describe_cores(Path(fakes), Path("/"))

    try:
        enter(qemu, prepare)
        become(USER)  # as root, sshd would want a system of its own
    except OSError as error:
        fail(error)
    print("STARTING", flush=True)
    os.execv(sshd, [sshd, "-D", "-e", "-f", config])


if __name__ == "__main__":
    main()
