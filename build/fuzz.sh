#!/bin/sh
# make fuzz: every fuzz target of the module, one after the other, for $1 each.
# FUZZFLAGS adds flags, such as -parallel=1 to leave the other processors alone.
set -eu
cd "$(dirname "$0")/.."
go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' ./... | while read -r dir; do
	sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$dir"/*_test.go | while read -r target; do
		echo "fuzz $target in $dir"
		# shellcheck disable=SC2086 # the flags are words
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" ${FUZZFLAGS:-} "$dir" </dev/null
	done
done
