#!/bin/sh
# A browser and its driver for `make browser-test`: Debian's Chromium. Install it where that is allowed.
set -eu
if command -v chromedriver >/dev/null && command -v chromium >/dev/null; then exit 0; fi
as_root=
[ "$(id -u)" = 0 ] || as_root="sudo -n"
if command -v apt-get >/dev/null && $as_root true 2>/dev/null; then
    echo "Installing chromium and chromium-driver ..."
    $as_root apt-get update -qq && $as_root apt-get install -y -qq chromium chromium-driver >/dev/null && exit 0
fi
echo "The test needs a browser that this command may not install. Type this line, then try again:" >&2
echo "    sudo apt-get install -y chromium chromium-driver" >&2
exit 1
