#!/bin/sh
# make defects: puts the defects of defects.txt into a copy of the tree, one at a
# time, and runs the test that must catch each. It fails if a defect survives, or
# if the test fails without it, or if the place of a defect is not found.
# An argument restricts it to the defects whose name contains it.
# Caught means that go test tells of a test that failed. A defect with which the
# tests can only hang or crash has a line "ends timed out" or "ends panic" before
# its line "test": then that counts as well.
set -euf
cd "$(dirname "$0")/.."
root=$PWD
only=${1:-}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
mkdir "$tmp/tree" "$tmp/sound"
git ls-files -co --exclude-standard | while read -r file; do
	[ ! -f "$file" ] || echo "$file"
done | tar -cf - -T - | tar -xf - -C "$tmp/tree"
cd "$tmp/tree"

# run WORD...: go test with the words that are no assignments; those go to its
# environment. Its output goes to $tmp/out.
run() {
	vars=
	while [ "${1#[A-Z]*=}" != "$1" ]; do
		vars="$vars $1"
		shift
	done
	# shellcheck disable=SC2086 # the assignments are words
	env $vars go test -count=1 -timeout 15m "$@" >"$tmp/out" 2>&1
}

# sound TEST: whether the test passes without a defect; asked once per test.
sound() {
	mark="$tmp/sound/$(echo "$*" | cksum | tr ' ' -)"
	[ -e "$mark" ] || { run "$@" && : >"$mark"; }
}

replace() {
	old=$2 new=$3 awk '
		{
			at = index($0, ENVIRON["old"])
			if (at) {
				n++
				$0 = substr($0, 1, at - 1) ENVIRON["new"] substr($0, at + length(ENVIRON["old"]))
			}
			print
		}
		END { exit n != 1 }' "$1" >"$tmp/changed"
}

failed=0 count=0
verdict() { # WHAT SECONDS
	count=$((count + 1))
	[ "$1" = caught ] || failed=$((failed + 1))
	by=$(sed -n 's/^--- FAIL: \([^ ]*\).*/ by \1/p' "$tmp/out" | sort -u | head -n 3 | tr -d '\n')
	[ "$1" = caught ] || by=
	printf '%-9s %5ss  %s (%s): %s%s\n' "$1" "$2" "$name" "$file" "$test" "$by"
	[ "$1" = caught ] || [ ! -s "$tmp/out" ] || tail -n 20 "$tmp/out" | sed 's/^/    /'
}

# caught: whether the run's output tells that a test failed, or ended as the
# defect says that it does.
caught() {
	case $ends in
	"timed out") grep -q -e '^--- FAIL: ' -e '^panic: test timed out' "$tmp/out" ;;
	panic) grep -q -e '^--- FAIL: ' -e '^panic: ' -e '^fatal error: ' "$tmp/out" ;;
	*) grep -q '^--- FAIL: ' "$tmp/out" ;;
	esac
}

attempt() {
	case $name in *"$only"*) ;; *) return 0 ;; esac
	began=$(date +%s)
	: >"$tmp/out"
	if ! replace "$file" "$old" "$new"; then
		verdict "no place" 0
		return 0
	fi
	# shellcheck disable=SC2086 # the test is words
	if ! sound $test; then
		verdict unsound $(($(date +%s) - began))
		return 0
	fi
	began=$(date +%s)
	cp "$file" "$tmp/sound/file"
	cp "$tmp/changed" "$file"
	# shellcheck disable=SC2086
	if ! go vet "./$(dirname "$file")" >"$tmp/out" 2>&1 && grep -q '^vet: ' "$tmp/out"; then
		verdict "no build" 0
	elif run $test; then
		verdict survived $(($(date +%s) - began))
	elif caught; then
		verdict caught $(($(date +%s) - began))
	else
		verdict "no test" $(($(date +%s) - began))
	fi
	cp "$tmp/sound/file" "$file"
}

while read -r key value; do
	case $key in
	name) name=$value ends= ;;
	file) file=$value ;;
	old) old=$value ;;
	new) new=$value ;;
	ends) ends=$value ;;
	test)
		test=$value
		attempt </dev/null
		;;
	esac
done <"$root/build/defects.txt"
echo "$count defects, $((count - failed)) caught"
[ "$failed" = 0 ] && [ "$count" -gt 0 ]
