#!/bin/sh
# make lint: what must hold for every commit. The linter is built from source at
# a fixed version (the first time takes minutes) unless that
# version is on PATH, so that all see the same list.
# Arguments go to the linter. Everything is looked at before it fails.
set -u
cd "$(dirname "$0")/.." || exit 1
version=v2.15.0
failed=0

unformatted=$(git ls-files '*.go' | xargs gofmt -l)
if [ -n "$unformatted" ]; then
	printf 'lint: not formatted (make fmt):\n%s\n' "$unformatted" >&2
	failed=1
fi
go vet ./... || failed=1
if golangci-lint version 2>/dev/null | grep -q "version ${version#v} "; then
	golangci-lint run "$@" || failed=1
else
	go run "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version" run "$@" || failed=1
fi
exit $failed
