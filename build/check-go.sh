#!/bin/sh
# Says what to install when there is no Go, or one older than go.mod asks for.
set -eu
cd "$(dirname "$0")/.."
want=$(sed -n 's/^go \([0-9.]*\).*/\1/p' go.mod)
if ! command -v go >/dev/null 2>&1; then
	echo "mvalve needs Go $want or newer, and there is no go on PATH: install it from https://go.dev/dl/" >&2
	exit 1
fi
# Go 1.21 and newer fetch the version of go.mod by themselves where they may.
have=$(go env GOVERSION 2>/dev/null | sed 's/^go//') || have=
oldest=$(printf '%s\n%s\n' "$want" "${have:-0}" | sort -t. -k1,1n -k2,2n -k3,3n | head -n 1)
if [ -z "$have" ] || [ "$oldest" != "$want" ]; then
	echo "mvalve needs Go $want or newer, this is $(GOTOOLCHAIN=local go version 2>&1): install a newer one from https://go.dev/dl/" >&2
	exit 1
fi
