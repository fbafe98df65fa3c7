#!/usr/bin/env bash
# How far recorded runs are predicted if the speed of CPU Adam were known: own_adam.sh ESMOE RUN... Each run is simulated again with the speed at which
# all its updates together take as long as in its own trace (row "adam update" of esmoe validate; found in three turns, since copies beside Adam get
# slower with it). What errors are left are those of the model.
set -euo pipefail
esmoe=${1:?the program}
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
with_pace() { # RUN PACE: its description with that pace of Adam beside what its updates were planned with
	sed "/^adam_pace *=/d; s/^\[host\]$/&\nadam_pace=$2/" "$1/run.ini" >"$folder/$(basename "$1")/run.ini"
}
for run; do
	name=$(basename "$run") pace=1
	mkdir "$folder/$name"
	for file in "$run"/*; do
		[ "$(basename "$file")" = run.ini ] || ln -s "$(realpath "$file")" "$folder/$name"
	done
	with_pace "$run" 1
	for _ in 1 2 3; do
		found=$("$esmoe" validate --format csv "$folder/$name" 2>/dev/null | awk -F, '$3 == "adam update" { print $6 / $4 }')
		pace=$(awk -v pace="$pace" -v by="${found:-1}" 'BEGIN { print pace * by }')
		with_pace "$run" "$pace"
	done
done
"$esmoe" validate --format csv "$folder"/* 2>"$folder/.err" | awk -F, '$2 == "step" { printf "%-24s %8.1f ms, predicted %8.1f: %+5.1f %%\n", $1, $4, $6, $7 }'
tail -n 1 "$folder/.err" | sed 's/ (.*//'
