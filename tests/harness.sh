# Sourced by the command-line tests: runs the door as a user would and checks exit status, what it says and what it leaves. $ESMOE is the program.
set -u
: "${ESMOE:?the path of the program}" "${ESMOE_SOURCE:?the source folder}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export LC_ALL=C.UTF-8
checks=0 failures=0

complain() {
	failures=$((failures + 1))
	printf 'FAILED: %s\n' "$1"
	[ $# -lt 2 ] || printf '  %s\n' "${@:2}"
}

# check WHAT COMMAND...: the command succeeds.
check() {
	checks=$((checks + 1))
	"${@:2}" || complain "$1"
}

# expect STATUS ARGUMENT...: esmoe ends with the status; a failure says exactly one line, "esmoe: ...". Leaves $work/.out and $work/.err.
expect() {
	local wanted=$1 status
	shift
	checks=$((checks + 1))
	"$ESMOE" "$@" >.out 2>.err
	status=$?
	last="esmoe $*"
	[ "$status" -eq "$wanted" ] || complain "$last" "status $status, expected $wanted" "$(head -c 600 .err)"
	[ "$wanted" -eq 0 ] || [ "$(grep -c '' .err)" -eq 1 ] || complain "$last" "$(grep -c '' .err) lines on stderr, expected 1" "$(head -c 600 .err)"
	[ "$wanted" -eq 0 ] || grep -q '^esmoe: ' .err || complain "$last" "no 'esmoe: ' on stderr" "$(head -c 600 .err)"
}

# says PATTERN...: the last failure's line holds each of them.
says() {
	local pattern
	for pattern in "$@"; do
		checks=$((checks + 1))
		grep -qF -- "$pattern" .err || complain "$last" "does not say '$pattern' but: $(head -c 600 .err)"
	done
}

# prints PATTERN...: the last output holds each of them.
prints() {
	local pattern
	for pattern in "$@"; do
		checks=$((checks + 1))
		grep -qE -- "$pattern" .out || complain "$last" "does not print '$pattern' but: $(head -c 600 .out)"
	done
}

# absent FILE...: nothing is left, not even under a temporary name.
absent() {
	local file
	for file in "$@"; do
		checks=$((checks + 1))
		[ -z "$(find . -name "*$(basename "$file")*")" ] || complain "$last" "leaves $(find . -name "*$(basename "$file")*" | tr '\n' ' ')"
	done
}

finish() {
	printf '%d checks, %d failed\n' "$checks" "$failures"
	[ "$failures" -eq 0 ] && [ "$checks" -gt 0 ]
	exit
}
