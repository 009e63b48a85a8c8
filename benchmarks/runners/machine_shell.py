"""Client of the shell of an emulated machine: ``python machine_shell.py SOCKET SCRIPT``, of the standard library alone.

Standard input goes to the script, and what it prints comes back, errors apart. The exit code is the script's; 255 if
the machine went away.
"""

import secrets
import socket
import sys

_GONE = 255


def _main(path: str, script: str) -> int:
    token, commands, content = secrets.token_hex(8), script.encode(), sys.stdin.buffer.read()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(f"{token} {len(commands)} {len(content)}\n".encode() + commands + content)
        with connection.makefile("rb") as replies:
            for line in replies:
                # What comes first may be the rest of a reply that an earlier client did not wait for.
                if line.startswith(f"{token} ".encode()):
                    code, printed, errors = map(int, line.split()[1:])
                    for stream, size in ((sys.stdout, printed), (sys.stderr, errors)):
                        stream.buffer.write(replies.read(size))
                    return code
    return _GONE


if __name__ == "__main__":
    try:
        sys.exit(_main(*sys.argv[1:]))
    except OSError as problem:
        sys.exit(f"no machine: {problem}")
