#!/usr/bin/env bash
# Puts Debian's docker-registry into DIR, without installing it: the package would start a service. Prints the program.
set -euo pipefail
dir=$1
program=$dir/usr/bin/docker-registry
if [ ! -x "$program" ]; then
  mkdir -p "$dir"
  cd "$dir"
  apt-get download -qq docker-registry >&2 || { apt-get update -qq >&2 && apt-get download -qq docker-registry >&2; }
  dpkg-deb -x docker-registry_*.deb .
  rm -f docker-registry_*.deb
fi
echo "$program"
