#!/bin/sh
# Make the benchmarks ready to run: a venv with trionfq and its peers, and the C programs, all in
# benchmarks/build. Needs python3 and a C compiler with the kernel's headers; NetfilterQueue is
# built with libnetfilter_queue. As root on Debian what is missing is installed; otherwise a line
# names it, and the exit code is 3.
set -eu

cd "$(dirname "$0")/.."
build=benchmarks/build
python=${PYTHON:-python3}
mkdir -p $build

say() {
    echo "benchmarks: $*" >&2
}

packages=
command -v cc >/dev/null || packages="$packages build-essential"
[ -e /usr/include/libnetfilter_queue/libnetfilter_queue.h ] ||
    packages="$packages libnetfilter-queue-dev"
[ -e /usr/include/libnfnetlink/libnfnetlink.h ] || packages="$packages libnfnetlink-dev"
PATH=$PATH:/usr/sbin:/sbin
command -v iptables >/dev/null || packages="$packages iptables"
"$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv python3-dev"
if [ -n "$packages" ]; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        say "missing Debian packages:$packages (as root: apt-get install$packages)"
        exit 3
    fi
    say "installing Debian packages:$packages"
    DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null >&2
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
        -o Dpkg::Use-Pty=0 install $packages </dev/null >&2
fi

key=$(cat pyproject.toml benchmarks/requirements.txt | sha256sum)
if [ "$(cat $build/.set-up 2>/dev/null)" != "$key" ] || ! $build/venv/bin/python -c ''; then
    say "installing trionfq and its peers into $build/venv"
    "$python" -m venv --clear $build/venv
    $build/venv/bin/python -m pip install -qq --disable-pip-version-check --no-input \
        -r benchmarks/requirements.txt --editable . </dev/null
    echo "$key" >$build/.set-up
fi

for program in floor traffic; do
    source=benchmarks/c/$program.c
    if [ ! -x $build/$program ] || [ -n "$(find $source -newer $build/$program)" ]; then
        cc -O2 -Wall -Wextra -o $build/$program $source
    fi
done
