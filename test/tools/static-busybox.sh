#!/usr/bin/env bash
# Makes sure of a static /bin/busybox, from which tests make images: as root on Debian or Ubuntu it installs that.
set -euo pipefail
# ldd fails on what is no dynamic program.
static() { [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1; }
static && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "there is no static /bin/busybox: install it, or run this as root on Debian or Ubuntu" >&2
  exit 1
fi
echo "installing Debian packages: busybox-static"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends busybox-static >/dev/null
static || { echo "busybox-static is installed, and /bin/busybox is not static" >&2; exit 1; }
