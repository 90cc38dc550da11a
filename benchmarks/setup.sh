#!/bin/sh
# Make the benchmarks ready to run: a venv with trionfq and its peers, and the C programs, all in
# benchmarks/build. Needs python3 and a C compiler with the kernel's headers; NetfilterQueue is
# built with libnetfilter_queue. As root on Debian what is missing is installed; otherwise a line
# names it, and the exit code is 3. Without iperf3 only the TCP rows are left out.
set -eu

cd "$(dirname "$0")/.."
build=benchmarks/build
python=${PYTHON:-python3}
mkdir -p $build

say() {
    echo "benchmarks: $*" >&2
}

packages=
PATH=$PATH:/usr/sbin:/sbin
command -v cc >/dev/null || packages="$packages build-essential"
[ -e /usr/include/libnetfilter_queue/libnetfilter_queue.h ] ||
    packages="$packages libnetfilter-queue-dev"
[ -e /usr/include/libnfnetlink/libnfnetlink.h ] || packages="$packages libnfnetlink-dev"
command -v iptables >/dev/null || packages="$packages iptables"
command -v ip >/dev/null || packages="$packages iproute2"
"$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"
# NetfilterQueue is compiled for this interpreter, whose headers Debian has in a package of its own.
"$python" -c 'import pathlib, sysconfig as s, sys
sys.exit(not pathlib.Path(s.get_path("include"), "Python.h").exists())' ||
    packages="$packages python3-dev"
optional=
command -v iperf3 >/dev/null || optional=iperf3
if [ -n "$packages$optional" ]; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        say "installing Debian packages: $packages $optional"
        export DEBIAN_FRONTEND=noninteractive
        apt-get -qq update </dev/null >&2
        # shellcheck disable=SC2086
        apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install $packages $optional \
            </dev/null >&2
    elif [ -n "$packages" ]; then
        say "missing Debian packages:$packages (as root: apt-get install$packages)"
        exit 3
    else
        say "missing, and the TCP rows are left out: Debian package $optional" \
            "(as root: apt-get install $optional)"
    fi
fi

# Made anew when a pin or a dependency has changed, the interpreter, or the place of this checkout.
key=$({
    cat pyproject.toml benchmarks/requirements.txt
    "$python" -VV
    pwd
} | sha256sum)
if [ "$(cat $build/.set-up 2>/dev/null)" != "$key" ] || ! $build/venv/bin/python -c ''; then
    say "installing trionfq and its peers into $build/venv"
    rm -f $build/.set-up
    "$python" -m venv --clear $build/venv
    $build/venv/bin/python -m pip install -qq --disable-pip-version-check --no-input \
        -r benchmarks/requirements.txt --editable . </dev/null || {
        say "pip could not install; its message is above"
        exit 1
    }
    echo "$key" >$build/.set-up
fi

for program in floor traffic; do
    source=benchmarks/c/$program.c
    if [ ! -x $build/$program ] || [ -n "$(find $source -newer $build/$program)" ]; then
        cc -O2 -Wall -Wextra -o $build/$program $source
    fi
done
