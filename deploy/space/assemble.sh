#!/bin/sh
# Make the folder of a Space: deploy/space/assemble.sh FOLDER. Then push FOLDER to the Space's repository.
set -eu
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
target=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
# What git knows and the package needs; weights go through Git LFS, as the Hub wants.
git ls-files -z -- captioner export frontend model_repository pyproject.toml setup.py MANIFEST.in LICENSE constraints.txt |
    xargs -0 cp --parents --target-directory="$target"
cp deploy/space/README.md deploy/space/Dockerfile deploy/space/start.py "$target"
echo '*.safetensors filter=lfs diff=lfs merge=lfs -text' > "$target/.gitattributes"
