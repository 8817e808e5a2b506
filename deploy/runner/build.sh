#!/bin/sh
# Build the runner into deploy/runner/build/ARCH: ./build.sh [x86_64|aarch64]; default: this machine.
# On another architecture's build, the executorch wheel of that architecture is downloaded with pip, of the version that
# is installed here. PYTHON names the interpreter (default: python).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
arch=${1:-$(uname -m)}
case $arch in
  x86_64 | aarch64) ;;
  *) echo "error: architecture '$arch' is neither x86_64 nor aarch64" >&2; exit 2 ;;
esac
build=$here/build/$arch
set -- -S "$here" -B "$build" -DPython3_EXECUTABLE="$(command -v "$python")"
if [ "$arch" != "$(uname -m)" ]; then
  version=$("$python" -c 'from importlib.metadata import version; print(version("executorch").partition("+")[0])')
  wheel=$here/build/wheel-$arch-$version
  if [ ! -d "$wheel/executorch/lib" ]; then
    mkdir -p "$wheel.part"
    ${PIP:-"$python" -m pip} download --quiet --no-deps --only-binary=:all: --python-version 3.11 \
      --implementation cp --platform "manylinux_2_28_$arch" --dest "$wheel.part" "executorch==$version"
    "$python" -m zipfile -e "$wheel.part"/*.whl "$wheel.part"
    rm -f "$wheel.part"/*.whl
    rm -rf "$wheel"
    mv "$wheel.part" "$wheel"
  fi
  set -- "$@" -DEXECUTORCH_ROOT="$wheel/executorch" -DCMAKE_TOOLCHAIN_FILE="$here/$arch.cmake"
fi
cmake "$@"
cmake --build "$build" --parallel
echo "built $build/edge_sk_runner"
