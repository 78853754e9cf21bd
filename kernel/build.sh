#!/bin/bash
# Builds the small guest kernel of ./fragment from Debian's kernel sources, keeps
# it in the cache, and makes LINK a link to it. What was built before from the
# same sources and fragment is not built again.
#
#   kernel/build.sh LINK
#
# SOURCE   package of the sources                  (linux-source-6.1)
# JOBS     how many compilers run at once          (one for each processor)
# BUILD    where to build; it is kept then         (a directory that is removed)
# UPDATE=1 writes the configuration to ./config
set -euo pipefail
link=$(realpath -ms "$1")
here=$(cd "$(dirname "$0")" && pwd)
source=${SOURCE:-linux-source-6.1}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vminit/kernel
export ARCH=x86_64 LC_ALL=C
say() { echo "kernel: $*" >&2; }

test "$(uname -m)" = x86_64 || { say "the fragment is for x86-64 only"; exit 1; }

# libelf is for objtool, which checks and patches what the compiler has made; bc
# makes a header of the kernel's, flex and bison read its configuration.
missing=
need() { test -e "$(command -v "$1" || echo "$1")" || { say "installing $2: $3"; missing+=" $2"; }; }
need "/usr/src/$source.tar.xz" "$source" "the sources"
need gcc gcc "to compile them"
need /usr/include/gelf.h libelf-dev "for objtool"
need flex flex "for the configuration"
need bison bison "for the configuration"
need bc bc "for a header"
need xz xz-utils "to unpack them"
if test -n "$missing"; then
	sudo=; test "$(id -u)" = 0 || sudo=sudo
	log=$(mktemp)
	{ $sudo apt-get update -q && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -q --no-install-recommends libc6-dev $missing; } >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
	rm -f "$log"
fi

version=$(dpkg-query -W -f '${Version}' "$source")
settings() { grep -E '^CONFIG_|^# CONFIG_.* is not set' "$here/fragment"; } # comments make no other kernel
key=$( (echo "$source $version"; settings) | sha256sum | cut -c1-24)
done=$cache/$key
publish() { mkdir -p "$(dirname "$link")"; ln -sfn "$done/bzImage" "$link"; }
if test -e "$done/bzImage" && test "${UPDATE:-}" != 1; then
	publish
	exit
fi

umask 077
mkdir -p "$cache"
if test -n "${BUILD:-}"; then
	mkdir -p "$BUILD"
else
	BUILD=$(mktemp -d "$cache/build.XXXXXX")
	trap 'rm -rf "$BUILD"' EXIT
fi
log=$BUILD/log
quietly() { "$@" >>"$log" 2>&1 || { tail -n 40 "$log" >&2; say "failed: $*"; exit 1; }; }

if ! test -e "$BUILD/source/Makefile"; then
	say "unpacking $source $version"
	rm -rf "$BUILD/unpacking" && mkdir "$BUILD/unpacking"
	quietly tar -C "$BUILD/unpacking" --strip-components=1 -xf "/usr/src/$source.tar.xz"
	mv "$BUILD/unpacking" "$BUILD/source"
fi

# Everything is off but what the fragment asks for, and that is all on.
cd "$BUILD/source"
mkdir -p "$BUILD/out"
quietly scripts/kconfig/merge_config.sh -n -O "$BUILD/out" "$here/fragment"
config=$BUILD/out/.config
if wrong=$(grep -E '^(CONFIG_|# CONFIG_)' "$here/fragment" | grep -vxFf "$config"); then
	say "these lines of the fragment did not take:"
	echo "$wrong" >&2
	exit 1
fi
if test "${UPDATE:-}" = 1; then
	cp "$config" "$here/config" && chmod 644 "$here/config"
	if test -e "$done/bzImage"; then publish; exit; fi
fi

# The same sources and compiler give the same bytes.
export KBUILD_BUILD_USER=vminit KBUILD_BUILD_HOST=vminit KBUILD_BUILD_VERSION=1
KBUILD_BUILD_TIMESTAMP=$(date -u -r "/usr/src/$source.tar.xz")
export KBUILD_BUILD_TIMESTAMP
say "building (some 13 minutes of a processor; log: $log)"
quietly nice -n 10 make -j"${JOBS:-$(nproc)}" O="$BUILD/out" bzImage
mkdir -p "$done"
cp "$config" "$done/config"
cp "$BUILD/out/arch/x86/boot/bzImage" "$done/bzImage.new"
mv "$done/bzImage.new" "$done/bzImage"
publish
say "$(du -h "$done/bzImage" | cut -f1) $(make -s O="$BUILD/out" kernelrelease): $done/bzImage"
