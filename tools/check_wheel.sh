#!/usr/bin/env bash
# Builds the source archive, a wheel from it in a clean folder, installs that into an empty environment with no compiler on
# the PATH, analyses the embedded portrait and runs the given tests there.   tools/check_wheel.sh [PYTEST ARGUMENTS]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python3}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

"$python" -m venv builder
builder/bin/python -m pip install --quiet build
builder/bin/python -m build --sdist --outdir dist "$root" > sdist.log 2>&1 || { cat sdist.log; exit 1; }
builder/bin/python -m pip wheel -v --no-deps --wheel-dir wheels dist/ifan-*.tar.gz > wheel.log 2>&1 || { cat wheel.log; exit 1; }
if grep -E "would be ignored|Deprecat|no directories found|no files found" ./*.log; then
  echo "check_wheel: the build warns, see above" && exit 1
fi
wheel=$(ls wheels/ifan-*.whl)
contents=$("$python" -m zipfile --list "$wheel")
case $wheel in
  *-none-any.whl) ! grep -q '_cpu.*\.so' <<<"$contents" ;;
  *) grep -q '_cpu.*\.so' <<<"$contents" ;;
esac || { echo "check_wheel: the tag of $wheel does not say what is inside" && exit 1; }

"$python" -m venv env
bare() { env -i HOME="$work" PATH="$work/env/bin" OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" "$@"; }
start=$SECONDS
env PATH="$work/env/bin" env/bin/python -m pip install --quiet "$wheel"
echo "installed $(basename "$wheel") in $((SECONDS - start)) s, $(du -sm env | cut -f1) MB with pip"
bare ifan predict "$root/ifan/assets/astronaut.png" --out out
test -s out/astronaut.json || ls -R out
if [ $# -gt 0 ]; then
  mkdir suite && cp -r "$root/tests" "$root/benchmarks" "$root/pyproject.toml" suite/ && cd suite
  env PATH="$work/env/bin" ../env/bin/python -m pip install --quiet "$(ls "$work"/wheels/*.whl)[test-analysis]"
  bare python -m pytest -p no:cacheprovider "$@"
fi
