#!/usr/bin/env bash
# The tests that need a GPU, from a bundle (./bootstrap bundle) or a build folder: one line each; a machine without a GPU skips them.
#   gpu.sh [FOLDER]    where esmoe and the cuda_* programs are (default: this script's)
set -uo pipefail
folder=${1:-$(dirname "$0")}
failed=0
for program in "$folder"/cuda_* "$(dirname "$0")"/gpu_{ranks,failures}.sh; do
	[ -f "$program" ] && [ -x "$program" ] || continue
	arguments=()
	[[ $program != *.sh ]] || arguments=("$folder")
	out=$("$program" "${arguments[@]}" 2>&1)
	case $? in
	0) echo "ok $(basename "$program"): $(tail -n 1 <<<"$out")" ;;
	77) echo "skip $(basename "$program"): $(tail -n 1 <<<"$out")" ;;
	*)
		grep -v '^ok' <<<"$out" | head -n 60
		echo "FAILED $(basename "$program")"
		failed=1
		;;
	esac
done
exit $failed
