#!/usr/bin/env bash
# Makes what a release consists of. The same source and version of Go give the same bytes.
#
#   build/release.sh programs VERSION DIR   programs for Linux as archives in DIR, and their checksums
#   build/release.sh pin VERSION IMAGE DIR  has action.yml run IMAGE (NAME@sha256:…), and the composite variant fetch
#                                           this version's programs, checked against DIR/checksums.txt
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "release: $1" >&2
  exit 1
}

version_of() {
  [[ $1 =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]] || fail "$1 is no version: write it as v1.2.3"
}

archive() { # archive FILE DIR NAME...
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --mode=0755 -C "$2" -cf - "${@:3}" | gzip -9n >"$1"
}

programs() {
  version_of "$1"
  local out=$2 arch work
  mkdir -p "$out"
  out=$(cd "$out" && pwd)
  work=$(mktemp -d)
  trap 'rm -rf "$work"' RETURN
  for arch in ${ARCHITECTURES:-amd64 arm64}; do
    mkdir "$work/$arch"
    for program in sluice action runner router webhook; do
      flags="-s -w"
      # What the log of a step names.
      [ $program != action ] || flags="$flags -X github.com/sluice-dev/sluice/cmd/action/internal/action.revision=$(git rev-parse HEAD)"
      CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -tags grpcnotrace -trimpath -ldflags "$flags" -o "$work/$arch/$program" "./cmd/$program"
    done
    archive "$out/sluice_linux_$arch.tar.gz" "$work/$arch" sluice runner router webhook
    archive "$out/sluice-action_linux_$arch.tar.gz" "$work/$arch" action runner
  done
  (cd "$out" && sha256sum -- *.tar.gz >checksums.txt)
}

pin() {
  version_of "$1"
  [[ $2 =~ ^[a-z0-9][a-z0-9./:-]*@sha256:[0-9a-f]{64}$ ]] || fail "$2 is no image by digest"
  [ -s "$3/checksums.txt" ] || fail "$3 has no checksums.txt: run build/release.sh programs first"
  [ "$(grep -c '^  image: Dockerfile$' action.yml)" = 1 ] || fail "action.yml has no line \"  image: Dockerfile\" to replace"
  sed -i "s|^  image: Dockerfile\$|  image: docker://$2|" action.yml
  echo "$1" >action/composite/version
  cp "$3/checksums.txt" action/composite/checksums.txt
}

case ${1:-} in
  programs) [ $# = 3 ] || fail "programs VERSION DIR"; programs "$2" "$3" ;;
  pin) [ $# = 4 ] || fail "pin VERSION IMAGE DIR"; pin "$2" "$3" "$4" ;;
  *) fail "say programs or pin" ;;
esac
