#!/bin/sh
# Install VP3D with its service into a Python environment; this is all that the image's build runs.
#
#     docker/install.sh cpu|cuda [VENV]
#
# VENV is the environment to create (/opt/vp3d). Run in a checkout or in the build context of
# docker/Dockerfile. PIP_INDEX_URL and the other variables of pip are respected.
set -eu

target=${1:-}
venv=${2:-/opt/vp3d}
source=$(cd "$(dirname "$0")/.." && pwd)

case "$target" in
  cpu) # the usual index has the CUDA build, gigabytes larger
    export PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL-https://download.pytorch.org/whl/cpu}"
    kind="is None"
    ;;
  cuda) kind="is not None" ;;
  *)
    echo "install.sh: say which torch to install: docker/install.sh cpu|cuda [VENV]" >&2
    exit 2
    ;;
esac

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
"${PYTHON:-python3}" -m venv "$venv"
pip="$venv/bin/python -m pip"
$pip install --quiet -r "$source/requirements-serve.txt"
"$venv/bin/python" -c "import sys, torch; sys.exit(not (torch.version.cuda $kind))" || {
  echo "install.sh: the torch that was installed is not that of $target; set PIP_EXTRA_INDEX_URL" >&2
  exit 1
}

# The wheel has the embedded models and the configs. It is built from a copy, because the source may
# be read-only and setuptools writes into it.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
for name in vp3d assets configs setup.py pyproject.toml README.md LICENSE MANIFEST.in; do
  cp -R "$source/$name" "$copy/"
done
$pip install --quiet --no-deps "$copy" # needs setuptools, which pip fetches for the build

# The environment alone has to be enough: this fails if a package or a model is missing.
cd /
"$venv/bin/vp3d" --version
"$venv/bin/vp3d" models list >/dev/null
"$venv/bin/python" -c 'import fastapi, uvicorn, python_multipart, torch, vp3d.serve.server'
size=$(du -sm "$venv" | cut -f1)
echo "installed into $venv: $size MB"
