#!/bin/sh
# Runs `sparrow` as the owner of the mounted folder, so that what it writes there belongs to the caller. A container
# that was started with --user stays with that user. A folder of root's is worked on as root: it is the caller's own
# account in a rootless engine.
set -eu
if [ "$(id -u)" -ne 0 ]; then
    exec sparrow "$@"
fi
user=$(stat -c %u /workspace)
group=$(stat -c %g /workspace)
if [ "$user" -eq 0 ]; then
    exec sparrow "$@"
fi
# ssh refuses to work for a user without a name.
getent passwd "$user" >/dev/null || echo "caller:x:$user:$group::/var/lib/sparrow:/bin/sh" >>/etc/passwd || :
exec setpriv --reuid "$user" --regid "$group" --clear-groups --inh-caps=-all --no-new-privs sparrow "$@"
