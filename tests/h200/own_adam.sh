#!/usr/bin/env bash
# How far recorded runs are predicted if the speed of CPU Adam were known: own_adam.sh ESMOE RUN... Each run is simulated again with the speed at which
# all its updates together take as long as in its own trace (row "adam update" of esmoe validate; found in three turns, since copies beside Adam get
# slower with it). What errors are left are those of the model.
set -euo pipefail
esmoe=${1:?the program}
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for run; do
	name=$(basename "$run") share=1
	mkdir "$folder/$name"
	for file in "$run"/*; do
		[ "$(basename "$file")" = run.ini ] || ln -s "$(realpath "$file")" "$folder/$name"
	done
	for _ in 1 2 3; do
		sed "/^adam_share *=/d; s/^\[host\]$/&\nadam_share=$share/" "$run/run.ini" >"$folder/$name/run.ini"
		found=$("$esmoe" validate --format csv "$folder/$name" 2>/dev/null | awk -F, -v share="$share" '$3 == "adam update" { print share * $6 / $4 }')
		share=${found:-$share}
	done
	sed "/^adam_share *=/d; s/^\[host\]$/&\nadam_share=$share/" "$run/run.ini" >"$folder/$name/run.ini"
done
"$esmoe" validate --format csv "$folder"/* 2>"$folder/.err" |
	awk -F, '$2 == "step" { step = sprintf("%-24s %8.1f ms, predicted %8.1f: %+5.1f %%", $1, $4, $6, $7) } $3 == "adam update" || $2 == "step" && $1 !~ /dram/ { print step }'
tail -n 1 "$folder/.err" | sed 's/ (.*//'
