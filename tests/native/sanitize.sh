#!/usr/bin/env bash
# make sanitize: the native module built with AddressSanitizer and UndefinedBehaviorSanitizer, beside the one in use, and
# the tests of the operations and of the engine run on it. Arguments go to pytest. Leaks are not looked for: Python's own
# allocations would drown them.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${BIN:-$PWD/.venv/bin}
cxx=${CXX:-c++}
if [ "$("$cxx" -print-file-name=libasan.so)" = libasan.so ]; then
  echo "sanitize: skipped, $cxx has no libasan.so; install the compiler's sanitizer libraries"
  exit 0
fi
sanitizers=-fsanitize=address,undefined
mkdir -p build
export IFAN_NATIVE=require IFAN_CUDA=off CXXFLAGS="-O1 -g -DIFAN_POISON $sanitizers -fno-sanitize-recover=all -fno-omit-frame-pointer" LDFLAGS=$sanitizers
"$bin/python" setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib > build/sanitize.log 2>&1 ||
  { cat build/sanitize.log; exit 1; }
unset IFAN_NATIVE IFAN_CUDA CXXFLAGS LDFLAGS

# The sanitizers' libraries come first in a process that was not built with them; libstdc++ lets them see exceptions.
preload=""
for library in libasan.so libubsan.so libstdc++.so; do preload+="$("$cxx" -print-file-name=$library) "; done
export LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$PWD/build/sanitize/lib
(cd build && "$bin/python" -c 'import ifan._cpu as m; assert "build/sanitize" in m.__file__; print("sanitized:", m.__file__)')
# A report goes past pytest's capture, which would swallow it when the process dies.
exec "$bin/pytest" --capture=sys -p no:cacheprovider -o pythonpath="build/sanitize/lib ." "${@:-tests/ops}"
