#!/usr/bin/env bash
# Runs on one and two H200, recorded in h200/runs.tar.gz (h200/record.sh), simulated again: the model may get better, not worse. The bounds are what is
# reached; the README says what they hang on.
set -euo pipefail
esmoe=${ESMOE:?the program} source=${ESMOE_SOURCE:?the source folder}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tar xzf "$source/tests/h200/runs.tar.gz" -C "$folder"
"$esmoe" validate --format csv --max-error 30 "$folder"/runs/* >"$folder/out.csv" 2>"$folder/err" || { cat "$folder/err"; exit 1; }
# within NAME PATTERN OF UNIT COUNT MEAN MOST: errors of the rows OF (UNIT) of so many runs whose names match
within() {
	awk -F, -v name="$1" -v pattern="$2" -v of="$3" -v unit="$4" -v count="$5" -v mean="$6" -v most="$7" '
		$2 == of && (unit == "" || $3 ~ unit) && $1 ~ pattern { n++; e = $7 < 0 ? -$7 : $7; sum += e; if (e > worst) worst = e }
		END { printf "%s: %d rows, mean error %.2f %%, largest %.2f %%\n", name, n, n ? sum / n : 0, worst; exit !(n == count && sum / n <= mean && worst <= most) }' \
		"$folder/out.csv"
}
within "step time" . step "" 20 2.3 6.3
within "step time, experts in HBM" static step "" 9 1.3 2.9
within "step time, experts in DRAM" dram step "" 11 3.2 6.3
within "compute stream" . stream "compute$" 25 1.9 5.6
within "uploads" . stream "upload$" 13 2.5 9.6
within "downloads" . stream "download$" 13 4.5 12.7
within "optimizer" . stream "optimizer$" 11 3.5 7.7
within "collectives" . stream "collective$" 10 3.3 7.0
within "HBM" . memory "^HBM$" 20 0.06 0.12
within "pinned DRAM" . memory "pinned DRAM" 20 0 0
within "DRAM" dram memory "^DRAM$" 11 0 0
# eight of eleven lie between what calibration's slowest and fastest look at CPU Adam make of them
awk -F, '$2 == "step" && $1 ~ /dram/ { n++; inside += $4 >= $11 && $4 <= $10 } END { printf "in the range: %d of %d\n", inside, n; exit !(n == 11 && inside >= 8) }' "$folder/out.csv"

# what is left when the speed of Adam in each run is known
"$source/tests/h200/own_adam.sh" "$esmoe" "$folder"/runs/*dram* >"$folder/own"
awk '/mean error/ { printf "Adam as fast as in the run: %s\n", $0; gsub(",", ""); found = $8 <= 0.9 && $11 <= 1.5 } END { exit !found }' "$folder/own"
