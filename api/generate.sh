#!/bin/sh
# Generates the Go and ttrpc code of every .proto file below services/.
#
# Needs protoc 3.15 or later (Debian: apt-get install protobuf-compiler) and
# Go. The plugins are built from the modules that go.mod names; files that are
# imported come from Go packages (imports.go), so no include files are needed.
set -eu
cd "$(dirname "$0")"

command -v protoc >/dev/null || {
	echo "generate.sh: protoc not found; install it (Debian: apt-get install protobuf-compiler)" >&2
	exit 1
}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
GOBIN= GOOS= GOARCH= go build -o "$tmp/" \
	google.golang.org/protobuf/cmd/protoc-gen-go \
	github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
go run imports.go >"$tmp/imports.binpb"

# generate PREFIX FILE...: PREFIX goes before the names of the service's types.
generate() {
	prefix=$1
	shift
	PATH="$tmp:$PATH" protoc -I . --descriptor_set_in="$tmp/imports.binpb" \
		--go_out=. --go_opt=paths=source_relative \
		--go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative --go-ttrpc_opt=prefix="$prefix" \
		"$@"
}

# TTRPC is the prefix hosts know from containerd's own packages. The two
# vmevents services share a Go package, so one of them gets another.
nerdbox=services/vmevents/v1/vmevents_nerdbox.proto
generate NerdboxTTRPC "$nerdbox"
generate TTRPC $(find services -name '*.proto' ! -path "$nerdbox" | LC_ALL=C sort)
gofmt -w services
