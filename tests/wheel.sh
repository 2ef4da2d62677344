#!/bin/sh
# Builds the wheel, installs it in a fresh environment that holds torch already, leaves the checkout and runs a small
# demo from there. Fails if the install replaced torch or if a sub-package is missing from the wheel.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}

rm -rf "$root/build"
"$python" -m build --wheel --no-isolation --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || {
    cat "$work/build.log"
    exit 1
}
"$python" -m venv "$work/fresh"
pip="$work/fresh/bin/python -m pip --disable-pip-version-check"
$pip install --quiet -c "$root/constraints.txt" torch
before=$("$work/fresh/bin/python" -c 'import torch; print(torch.__version__)')
$pip install --quiet -c "$root/constraints.txt" "$work"/dist/*.whl
after=$("$work/fresh/bin/python" -c 'import torch; print(torch.__version__)')
if [ "$before" != "$after" ]; then
    echo "installing iaunet replaced torch $before by $after"
    exit 1
fi
cd "$work"
"$work/fresh/bin/iaunet_demo" --images 16 --epochs 1 --output "$work/demo" >"$work/demo.log" 2>&1 || {
    cat "$work/demo.log"
    exit 1
}
echo "the wheel runs in a fresh environment; torch $after was left in place"
tail -n 3 "$work/demo.log"
