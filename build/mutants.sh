#!/bin/sh
# make mutants: changes the code of the limiter (throttle), and of the ready index
# and the scheduler (in valve), one operator at a time, and runs the tests against
# each mutant. It prints the mutants that no test notices and fails if more than
# one in ten is among them. Arguments: the package (both), and a file of it (all).
#
# The tool makes the mutants. What it calls go is a script that compiles a mutant's
# tests once and runs the quick ones first, then the simulations, then what else in
# the repository tests the package. It also tells the tool that all code is covered:
# Go's coverage knows nothing of constants and of the conditions of a switch.
set -euf
cd "$(dirname "$0")/.."
pkg=${1:-}
only=${2:-}
tool=github.com/go-gremlins/gremlins/cmd/gremlins@v0.6.0
least=90
index='index schedule choose refill reserve ahead ring lead'

if [ -z "$pkg" ]; then
	status=0
	for each in throttle valve; do
		sh "$0" "$each" "$only" || status=1
	done
	exit "$status"
fi
case $pkg in
throttle) slow='^TestSimulated' also='' ;;
valve) slow='^Test(LimitsAreExact|LateCommit|OrderBeyond|LargeMessages)' also='./internal/sim' ;;
*)
	echo "mutants: PKG is throttle or valve, not $pkg" >&2
	exit 2
	;;
esac

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
mkdir "$tmp/tree" "$tmp/bin" "$tmp/work"
git ls-files -co --exclude-standard | while read -r file; do
	[ ! -f "$file" ] || echo "$file"
done | tar -cf - -T - | tar -xf - -C "$tmp/tree"
go=$(command -v go)
GOBIN=$tmp/bin "$go" install "$tool"
mv "$tmp/bin/gremlins" "$tmp/gremlins"

cat >"$tmp/bin/go" <<END
#!/bin/sh
go='$go' pkg='$pkg' slow='$slow' also='$also' log='$tmp/log' profile=
END
cat >>"$tmp/bin/go" <<'END'
[ "$1" = test ] || exec "$go" "$@"
while [ $# -gt 0 ]; do
	[ "$1" != -coverprofile ] || profile=$2
	shift
done
[ -z "$profile" ] || cd "$pkg" || exit 1
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# shellcheck disable=SC3045 # a mutant that takes memory without end dies; every sh on Linux has it
ulimit -v 12000000
caught() {
	echo "$1" >>"$log"
	exit 1
}
try() { # STAGE COMMAND...
	stage=$1
	shift
	"$@" >"$out/text" 2>&1 && return
	if grep -q 'test timed out' "$out/text"; then
		stage=time-out
	fi
	[ -z "$profile" ] || cat "$out/text"
	caught "$stage"
}
compile() { GOGC=off "$go" test -c -vet=off -ldflags='-s -w' "$@" -o "$out/test" . >"$out/text" 2>&1 || exit 2; }
export GOGC=400
compile -gcflags='-N -l' # most mutants are caught in less time than optimising takes
try quick "$out/test" -test.failfast -test.timeout 60s -test.skip "$slow"
compile
try slow "$out/test" -test.failfast -test.timeout 300s -test.run "$slow"
[ -z "$also" ] || [ -n "$profile" ] || { cd .. && try "$also" "$go" test -failfast -timeout 300s "$also"; }
if [ -n "$profile" ]; then
	echo 'mode: set' >"$profile"
	for file in *.go; do
		echo "$("$go" list)/$file:1.1,99999.1 1 1" >>"$profile"
	done
fi
END
chmod +x "$tmp/bin/go"

# files FILE...: the options that leave out what is not asked for.
set +f
cd "$tmp/tree/$pkg"
set --
for file in *.go; do
	base=${file%.go}
	case "$pkg $index " in
	"valve "*" $base "*) ;;
	"valve "*) set -- "$@" -E "^$file\$" ;;
	esac
	[ -z "$only" ] || [ "$base" = "${only%.go}" ] || set -- "$@" -E "^$file\$"
done
set -f
cd "$tmp/tree"
: >"$tmp/log"
# The time of a test run is bounded above; the tool's own bound is far away.
TMPDIR=$tmp/work PATH=$tmp/bin:$PATH "$tmp/gremlins" unleash --workers 2 --timeout-coefficient 100 \
	-o "$tmp/report.json" "$@" "./$pkg" >"$tmp/out" 2>&1 || {
	cat "$tmp/out"
	exit 1
}
grep -E ' (LIVED|TIMED OUT|NOT COVERED|NOT VIABLE) ' "$tmp/out" || true
sort "$tmp/log" | uniq -c | sed 's/^ */caught by /; s/\(caught by\) \([0-9]*\) \(.*\)/\1 \3: \2/'
awk -v pkg="$pkg" -v least="$least" '
	/ KILLED /	{ killed++ }
	/ LIVED /	{ lived++ }
	/ TIMED OUT /	{ late++ }
	/ NOT COVERED /	{ uncovered++ }
	/ NOT VIABLE /	{ broken++ }
	END {
		all = killed + late + lived + uncovered
		share = all ? 100 * (killed + late) / all : 0
		printf "%s: %d mutants, %d killed, %d timed out, %d lived, %d not covered: %.1f %% (%d more do not compile)\n",
			pkg, all, killed, late, lived, uncovered, share, broken
		exit share < least
	}' "$tmp/out"
