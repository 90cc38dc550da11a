#!/bin/sh
# Make this checkout ready to run: tools/setup.sh demo|dev|test|docs
#
# Needs python3 (3.11 or newer; another one by PYTHON=...) and, for Debian packages, root. Makes
# .venv, installs the project into it, and does nothing at all where all is as pyproject.toml says.
# Leaves with 1 when something failed, with 3 when something has to be installed by an administrator
# first; a line says what.
set -eu

cd "$(dirname "$0")/.."
want=${1:?usage: tools/setup.sh demo|dev|test|docs}
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

# --- the guest ------------------------------------------------------------------------------------

guest_packages='qemu-system-x86_64:qemu-system-x86 modprobe:kmod busybox:busybox-static
    udevadm:udev mke2fs:e2fsprogs'

guest() {
    "$venv/bin/python" -m tests.guest "$@"
}

# Whether somebody has allowed what the guest takes: a variable, CI, an answer given before or now.
may_have_guest() {
    case ${TRIONFQ_GUEST:-} in
    1) return 0 ;;
    0) return 1 ;;
    esac
    [ "${CI:-}" != true ] || return 0
    consent=$(guest where)/consent
    [ ! -e "$consent" ] || return 0
    if [ -t 0 ] && [ -t 2 ]; then
        say "the kernel tests also run on Debian's kernel 6.1, in a guest. That takes qemu and some" \
            "other Debian packages (300 MB), a kernel (70 MB) in $(guest where), and its modules" \
            "in /lib/modules, where nothing is overwritten."
        printf 'set-up: install them? [y/N] ' >&2
        read -r answer || answer=
        case $answer in
        y | Y | yes)
            mkdir -p "$(guest where)" && : >"$consent"
            return 0
            ;;
        esac
    fi
    say "tests on kernel 6.1 are left out: TRIONFQ_GUEST=1 (as root) installs qemu, a kernel in" \
        "$(guest where) and its modules in /lib/modules; TRIONFQ_GUEST=0 says no for good"
    return 1
}

# What is there is used; the registry is asked for a newer build once a day, in CI each time.
need_guest() {
    [ "${TRIONFQ_GUEST:-}" != 0 ] || return 0
    [ "${CI:-}" = true ] || ! guest check --fresh || return 0
    if ! may_have_guest; then
        return 0
    fi
    # shellcheck disable=SC2086
    need $guest_packages
    if may_apt; then
        # Without a network the lists are as they are, and a kernel in the cache does.
        apt-get -q update </dev/null >/dev/null 2>&1 || :
    fi
    guest prepare >&2 || say "tests on kernel 6.1 are left out, for that reason"
}

case $want in
demo)
    install ''
    need iptables:iptables ip:iproute2
    ;;
dev) # for what looks at files only
    install dev
    ;;
test)
    install dev
    # The kernel's headers are what the schema's numbers are compared with.
    need iptables:iptables ip:iproute2 ping:iputils-ping nft:nftables tshark:tshark \
        /usr/include/linux/netfilter/nfnetlink_queue.h:linux-libc-dev
    need_guest
    ;;
docs)
    install docs
    ;;
*)
    say "no such set-up: $want"
    exit 2
    ;;
esac
