#!/bin/sh
# make sim: the simulation of internal/sim on SEEDS seeds, beginning with SEED.
# JOBS processes share them (default: one per core). From 1,000 seeds on the small scopes
# follow.
#
# So that a seed always gives the same run, the test binary is built with three
# small changes to Go's runtime, as an overlay that touches no installed file: in
# a testing/synctest bubble random choices (select, maps, math/rand/v2) come from
# a generator that starts afresh with each bubble, and no goroutine is
# interrupted. Where the runtime does not look as expected, the binary is built
# without them; then most seeds replay, but not all.
set -eu
cd "$(dirname "$0")/.."

seeds=${SEEDS:-2000}
first=${SEED:-0}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT INT TERM

runtime=$(go env GOROOT)/src/runtime
patch() { # FILE PATTERN: what awk reads on standard input changes FILE, once
	awk "$2" "$runtime/$1" >"$dir/$1" && ! cmp -s "$runtime/$1" "$dir/$1"
}
# shellcheck disable=SC2016 # $0 is awk's
if patch synctest.go '{ print } /^type synctestBubble struct \{/ { print "\tsimRand uint64" }' &&
	patch select.go '{ sub(/cheaprandn\(uint32\(norder \+ 1\)\)/, "simRandn(uint32(norder + 1))"); print }' &&
	patch time.go '{ sub(/t.rand = cheaprand\(\)/, "t.rand = simRandn(1<<31)"); print }' &&
	patch rand.go '{ print }
		/^func rand\(\) uint64 \{/ { print "\tif b := getg().bubble; b != nil {\n\t\treturn b.simNext()\n\t}" }
		/^\tglobalRand.state.Init\(\*seed\)/ { print "\t*seed = [32]byte{1}\n\tglobalRand.state.Init(*seed)" }
		END {
			print "\n//go:nosplit\nfunc (b *synctestBubble) simNext() uint64 {\n\tb.simRand += 0x9e3779b97f4a7c15\n\tz := b.simRand\n\tz = (z ^ z>>30) * 0xbf58476d1ce4e5b9\n\tz = (z ^ z>>27) * 0x94d049bb133111eb\n\treturn z ^ z>>31\n}"
			print "\n//go:nosplit\nfunc simRandn(n uint32) uint32 {\n\tif b := getg().bubble; b != nil {\n\t\treturn uint32(b.simNext() >> 32 * uint64(n) >> 32)\n\t}\n\treturn cheaprandn(n)\n}"
		}' &&
	patch proc.go '{ print } /^func preemptone\(pp \*p\) bool \{/ { inside = 1 }
		inside && /^\tif gp == nil \|\| gp == mp.g0 \{/ { getline; print; getline; print; print "\tif gp.bubble != nil {\n\t\treturn false\n\t}"; inside = 0 }'; then
	for file in synctest select time rand proc; do
		printf '"%s":"%s"\n' "$runtime/$file.go" "$dir/$file.go"
	done | paste -sd, | sed 's/.*/{"Replace":{&}}/' >"$dir/overlay.json"
	GOEXPERIMENT=norandomizedheapbase64 go test -c -overlay "$dir/overlay.json" -o "$dir/sim.test" ./internal/sim ||
		rm -f "$dir/sim.test"
fi
if [ ! -x "$dir/sim.test" ]; then
	echo "sim: this Go runtime is not as expected: seeds may not replay exactly" >&2
	go test -c -o "$dir/sim.test" ./internal/sim
fi
[ -z "${SIM_BINARY:-}" ] || cp "$dir/sim.test" "$SIM_BINARY"
cd internal/sim
export MVALVE_SIM_SEEDS="$seeds" MVALVE_SEED="$first" MVALVE_SIM_JOBS="$jobs" MVALVE_SIM_DETAIL="${DETAIL:-}"
verbose= tests='^TestSim$'
[ "$seeds" -lt 1000 ] || tests='^(TestSim|TestExhaust.*)$'
if [ "$seeds" = 1 ]; then
	unset MVALVE_SIM_SEEDS # then its history is shown
	verbose=-test.v
fi
"$dir/sim.test" -test.run "$tests" $verbose -test.timeout 24h
