#!/bin/sh
# Build the source archive and from it the wheel, install the wheel into an environment of its own
# in another folder, and use it there as a stranger would.
set -eu

cd "$(dirname "$0")/.."
python=$(pwd)/.venv/bin/python
tools=$(pwd)/tools
elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT INT TERM

rm -rf dist
"$python" -m build --outdir dist . >"$elsewhere/build.log" 2>&1 || {
    cat "$elsewhere/build.log" >&2
    exit 1
}
wheel=$(ls "$(pwd)"/dist/trionfq-*-py3-none-any.whl)

cp "$tools/wheel_consumer.py" "$elsewhere/consumer.py"
cd "$elsewhere"
"$python" -m venv venv
venv/bin/python -m pip install -qq --disable-pip-version-check --no-input "$wheel" </dev/null
# -I: neither this folder nor PYTHONPATH is looked into, so what is imported is the wheel's.
venv/bin/python -I -W error consumer.py
# py.typed in the wheel makes its types count; without it mypy knows none and this fails.
"$python" -m mypy --strict --no-incremental --python-executable venv/bin/python consumer.py
echo "wheel: $(basename "$wheel") installed elsewhere and tried"
