#!/bin/sh
# make lint: what must hold for every commit. The linter is built from source at
# a fixed version (the first time takes minutes), so that all see the same list.
set -eu
cd "$(dirname "$0")/.."
version=v2.15.0

unformatted=$(git ls-files '*.go' | xargs gofmt -l)
if [ -n "$unformatted" ]; then
	printf 'lint: not formatted (make fmt):\n%s\n' "$unformatted" >&2
	exit 1
fi
go vet ./...
exec go run "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version" run "$@"
