#!/bin/sh
# make test: all tests, with the race detector and with real servers.
# TESTFLAGS adds flags, PKG names packages. CI=true leaves nothing out.
set -eu
cd "$(dirname "$0")/.."

# The race detector is the one thing here that needs a C compiler.
race=-race
cc=$(go env CC)
if ! printf '#include <stdlib.h>\nint main(void) { return 0; }\n' | $cc -x c -o /dev/null - >/dev/null 2>&1; then
	if [ "${CI:-}" = true ]; then
		echo "test: no C compiler ($cc), and CI=true does not do without the race detector" >&2
		exit 1
	fi
	echo "test: no C compiler ($cc): running without -race"
	race=
fi

if ! go run ./internal/testserver/cmd/fetch; then
	if [ "${CI:-}" = true ]; then
		echo "test: no servers, and CI=true leaves no test out" >&2
		exit 1
	fi
	echo "test: no servers: the tests that need MariaDB or memcached are skipped"
fi

if ! go run ./internal/foreign/cmd/fetch; then
	if [ "${CI:-}" = true ]; then
		echo "test: not all STOMP clients, and CI=true leaves no test out" >&2
		exit 1
	fi
	echo "test: not all STOMP clients: the tests with those that are missing are skipped"
fi

[ -z "$race" ] || export CGO_ENABLED=1
# shellcheck disable=SC2086 # the flags are words
exec go test $race -shuffle=on -timeout 8m ${TESTFLAGS:-} ${PKG:-./...}
