#!/bin/sh
# Make this checkout ready to run: tools/setup.sh demo|test|docs
#
# Needs python3 (3.11 or newer; another one by PYTHON=...) and, for Debian packages, root. Makes
# .venv, installs the project into it, and does nothing at all where all is as pyproject.toml says.
# Leaves with 1 when something failed, with 3 when something has to be installed by an administrator
# first; a line says what.
set -eu

cd "$(dirname "$0")/.."
want=${1:?usage: tools/setup.sh demo|test|docs}
venv=.venv
PATH=$PATH:/usr/sbin:/sbin # where Debian keeps iptables, off an ordinary user's PATH

say() {
    echo "set-up: $*" >&2
}

# --- Debian packages ------------------------------------------------------------------------------

# Quiet, but for what it says when it fails. Without noninteractive and </dev/null tshark asks a
# question; the lists are brought up to date only when something is missing.
apt_install() {
    log=$(mktemp)
    (
        export DEBIAN_FRONTEND=noninteractive
        apt-get -q update
        apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$@"
    ) </dev/null >"$log" 2>&1 || {
        cat "$log" >&2
        rm -f "$log"
        return 1
    }
    rm -f "$log"
}

may_apt() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null
}

# Programs or files, and the packages that bring them. Whoever cannot install runs what needs none.
need() {
    missing=
    for pair in "$@"; do
        case $pair in
        /*) [ -e "${pair%%:*}" ] ;;
        *) command -v "${pair%%:*}" >/dev/null ;;
        esac || missing="$missing ${pair#*:}"
    done
    [ -n "$missing" ] || return 0
    if may_apt; then
        say "installing Debian packages:$missing"
        # shellcheck disable=SC2086
        apt_install $missing || {
            say "apt-get could not install:$missing"
            exit 1
        }
    else
        say "missing, and what needs them is left out: Debian packages$missing" \
            "(as root: apt-get install$missing)"
    fi
}

# --- Python ---------------------------------------------------------------------------------------

python=${PYTHON:-python3}
command -v "$python" >/dev/null || {
    say "$python is not on the PATH; Python 3.11 or newer is needed (Debian: apt-get install python3)"
    exit 3
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "Python 3.11 or newer is needed, $(command -v "$python") is $("$python" -V 2>&1);" \
        "name another by PYTHON=/path/to/python3"
    exit 3
}

# The venv module alone does not tell: Debian leaves out ensurepip, which brings pip.
can_make_venv() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null
}

make_venv() {
    can_make_venv || {
        if may_apt; then
            say "installing Debian package: python3-venv"
            apt_install python3-venv || :
        fi
        can_make_venv || {
            say "$(command -v "$python") cannot make a virtual environment:" \
                "Debian package python3-venv is missing (as root: apt-get install python3-venv)"
            exit 3
        }
    }
    say "making $venv with $("$python" -V 2>&1)"
    "$python" -m venv --clear "$venv"
    pwd >"$venv/.made-in"
}

# One whose interpreter has gone does not start, and one from another folder points back there.
if ! "$venv/bin/python" -c 'import pip' 2>/dev/null ||
    [ "$(cat "$venv/.made-in" 2>/dev/null)" != "$(pwd)" ]; then
    make_venv
fi

key=$(sha256sum pyproject.toml | cut -d' ' -f1)
install() { # extra
    stamp=$venv/.set-up${1:+-$1}
    # An installation with an extra is one without it, too.
    for done in "$stamp" "$venv/.set-up-${1:-dev}"; do
        if [ -f "$done" ] && [ "$(cat "$done")" = "$key" ]; then
            return 0
        fi
    done
    say "installing trionfq${1:+ with its extra '$1'} into $venv"
    # Asked of pip, not of an index: the machine's own configuration says where packages are.
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input \
        --editable ".${1:+[$1]}" </dev/null || {
        say "pip could not install; its message is above"
        exit 1
    }
    echo "$key" >"$stamp"
}

case $want in
demo)
    install ''
    need iptables:iptables ip:iproute2
    ;;
test)
    install dev
    # The kernel's headers are what the schema's numbers are compared with.
    need iptables:iptables ip:iproute2 ping:iputils-ping nft:nftables tshark:tshark \
        /usr/include/linux/netfilter/nfnetlink_queue.h:linux-libc-dev
    ;;
docs)
    install docs
    ;;
*)
    say "no such set-up: $want"
    exit 2
    ;;
esac
