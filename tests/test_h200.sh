#!/usr/bin/env bash
# Runs on an H200, recorded in h200/runs.tar.gz, simulated again: the model may get better, not worse. The bounds are what was reached when they were
# recorded; issue and README say what is asked.
set -euo pipefail
esmoe=${ESMOE:?the program} source=${ESMOE_SOURCE:?the source folder}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tar xzf "$source/tests/h200/runs.tar.gz" -C "$folder"
"$esmoe" validate --format csv --max-error 10 "$folder"/runs/* >"$folder/out.csv" 2>"$folder/err" || { cat "$folder/err"; exit 1; }
awk -F, '$2 == "step" { n++; sum += $7 < 0 ? -$7 : $7 } END { mean = sum / n; printf "%d runs, mean error %.1f %%\n", n, mean; exit !(n == 15 && mean <= 4.6) }' \
	"$folder/out.csv"
# what these runs took of HBM, planned by the executor's own rules, which they did not know yet: 2 % is asked, the scratch of kernels is left out
sed -i 's/^\[software\]/[software]\nruntime=esmoe/' "$folder"/runs/*/run.ini
"$esmoe" validate --format csv "$folder"/runs/* >"$folder/memory.csv" 2>"$folder/err" || { cat "$folder/err"; exit 1; }
awk -F, '$2 == "memory" && $3 == "HBM" { n++; e = $7 < 0 ? -$7 : $7; if (e > most) most = e } END { printf "%d runs, HBM off by %.2f %% at most\n", n, most
	exit !(n == 15 && most <= 0.2) }' "$folder/memory.csv"
