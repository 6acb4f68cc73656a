#!/usr/bin/env bash
# Runs the Action's program on the runner itself: for runners without Docker, kubeconfigs that log in by a
# program, and tests that are scripts. SLUICE_ACTION_DIR names a directory that has the programs already.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
fail() {
  printf '::error title=Sluice::%s\n' "$1"
  exit 1
}

dir=${SLUICE_ACTION_DIR:-}
if [ -z "$dir" ]; then
  [ "$(uname -s)" = Linux ] || fail "Sluice's Action runs on Linux, not on $(uname -s): set runs-on to a Linux runner"
  case $(uname -m) in
    x86_64) arch=amd64 ;;
    aarch64) arch=arm64 ;;
    *) fail "Sluice has no programs for $(uname -m): use a runner of x86_64 or arm64" ;;
  esac
  # Both files are part of each release; the branch has neither.
  [ -s "$here/version" ] && [ -s "$here/checksums.txt" ] || fail "this is no release of Sluice: use sluice-dev/sluice/action/composite@v1"
  version=$(cat "$here/version")
  name=sluice-action_linux_$arch.tar.gz
  dir=${RUNNER_TOOL_CACHE:-${RUNNER_TEMP:-/tmp}}/sluice-action/$version/$arch
  if [ ! -x "$dir/action" ]; then
    work=$(mktemp -d "${RUNNER_TEMP:-/tmp}/sluice-action.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    url=${SLUICE_ACTION_DOWNLOADS:-https://github.com/sluice-dev/sluice/releases/download}/$version/$name
    curl --proto '=https,http' --fail --silent --show-error --location --retry 5 --retry-all-errors --max-time 300 --output "$work/$name" "$url" ||
      fail "Sluice's programs cannot be fetched from $url"
    (cd "$work" && grep -F "  $name" "$here/checksums.txt" | sha256sum --check --strict --status) ||
      fail "$url is not the file that this release was made with"
    mkdir "$work/programs"
    tar -xzf "$work/$name" -C "$work/programs" action runner
    mkdir -p "$(dirname "$dir")"
    # Another job on the same machine may be first.
    mv -T "$work/programs" "$dir" 2>/dev/null || [ -x "$dir/action" ] || fail "Sluice's programs cannot be kept in $dir"
  fi
fi
exec "$dir/action"
