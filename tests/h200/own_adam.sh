#!/usr/bin/env bash
# How far recorded runs are predicted if the speed of CPU Adam were known: own_adam.sh ESMOE RUN... Each run is simulated a second time with the speed
# that its own trace has where nothing is copied beside an update (row "adam alone" of esmoe validate). What errors are left are those of the model.
set -euo pipefail
esmoe=${1:?the program}
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for run; do
	name=$(basename "$run")
	mkdir "$folder/$name"
	for file in "$run"/*; do
		[ "$(basename "$file")" = run.ini ] || ln -s "$(realpath "$file")" "$folder/$name"
	done
	sed '/^adam_share *=/d' "$run/run.ini" >"$folder/$name/run.ini"
	share=$("$esmoe" validate --format csv "$folder/$name" 2>/dev/null | awk -F, '$3 == "adam alone" { print $6 / $4 }')
	[ -z "$share" ] || sed -i "s/^\[host\]$/&\nadam_share=$share/" "$folder/$name/run.ini"
done
"$esmoe" validate --format csv "$folder"/* 2>"$folder/.err" | awk -F, '$2 == "step" { printf "%-24s %8.1f ms, predicted %8.1f: %+5.1f %%\n", $1, $4, $6, $7 }'
tail -n 1 "$folder/.err" | sed 's/ (.*//'
