#!/bin/sh
# Run a command where it may make network namespaces: tools/with_namespaces.sh [--anyway] COMMAND...
#
# As it is for root; for anybody else as the root of a new user namespace, with network and mounts
# of its own and an empty /run, where named namespaces have room. Where neither works, says why and
# leaves with 77, or with --anyway runs the command as it is. The command sees which it was in
# TRIONFQ_NAMESPACES: root, user or none.
set -eu

anyway=no
if [ "${1:-}" = --anyway ]; then
    anyway=yes
    shift
fi
[ $# -gt 0 ] || {
    echo "usage: tools/with_namespaces.sh [--anyway] COMMAND..." >&2
    exit 2
}

# Debian keeps ip and iptables off an ordinary user's PATH.
PATH=$PATH:/usr/sbin:/sbin
export PATH

if [ "$(id -u)" -eq 0 ] && unshare --net --mount true 2>/dev/null; then
    TRIONFQ_NAMESPACES=root exec "$@"
fi
# shellcheck disable=SC2016
inside='mount -t tmpfs tmpfs /run && exec "$@"'
if why=$(unshare --user --map-root-user --net --mount sh -c "$inside" sh true 2>&1); then
    export TRIONFQ_NAMESPACES=user
    exec unshare --user --map-root-user --net --mount sh -c "$inside" sh "$@"
fi
echo "no network namespaces for $(id -un): neither root nor an unprivileged user namespace ($why)" >&2
[ $anyway = yes ] || exit 77
TRIONFQ_NAMESPACES=none exec "$@"
