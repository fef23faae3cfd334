#!/bin/sh
# Off-screen rendering needs one system library. Install it where that is allowed, otherwise name the line to type.
set -eu
if [ -e /dev/nvidia0 ]; then library=libEGL.so.1 package=libegl1; else library=libOSMesa.so package=libosmesa6; fi
case ${MUJOCO_GL:-} in osmesa) library=libOSMesa.so package=libosmesa6 ;; egl) library=libEGL.so.1 package=libegl1 ;; esac
# ldconfig lives in /sbin, which is not on every user's PATH
if PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -q "$library"; then exit 0; fi

as_root=
[ "$(id -u)" = 0 ] || as_root="sudo -n"
if command -v apt-get >/dev/null && $as_root true 2>/dev/null; then
    echo "Installing $package, which off-screen rendering needs ..."
    if $as_root apt-get install -y -qq "$package" >/dev/null 2>&1; then exit 0; fi
    $as_root apt-get update -qq && $as_root apt-get install -y -qq "$package" >/dev/null && exit 0
fi
echo "Off-screen rendering needs a system library that this command may not install. Type this line, then try again:" >&2
echo "    sudo apt-get install -y $package        (Fedora: sudo dnf install -y mesa-libOSMesa)" >&2
exit 1
