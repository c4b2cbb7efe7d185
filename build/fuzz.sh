#!/bin/sh
# make fuzz: every fuzz target of the module, one after the other, for $1 each.
# FUZZFLAGS adds flags, such as -parallel=1 to leave the other processors alone.
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp)
trap 'rm -f "$out"' EXIT
trap 'exit 130' INT TERM

# ran_out: whether go test failed only because the time was up while a worker was
# busy (golang.org/issue/75804): it says so, has no failing input, and nothing
# else went wrong.
ran_out() {
	grep -q '^ *context deadline exceeded$' "$out" &&
		! grep -q -e 'Failing input written' -e 'testdata/fuzz' -e '^panic:' -e '^fatal error:' -e 'DATA RACE' \
			-e 'hung or terminated' -e 'build failed' -e '_test\.go:[0-9]*:' "$out"
}

go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' ./... | while read -r dir; do
	sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$dir"/*_test.go | while read -r target; do
		echo "fuzz $target in $dir"
		# shellcheck disable=SC2086 # the flags are words
		if go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" ${FUZZFLAGS:-} "$dir" </dev/null >"$out" 2>&1; then
			cat "$out"
		else
			cat "$out"
			ran_out || exit 1
			echo "fuzz $target: nothing found when the time was up"
		fi
	done
done
