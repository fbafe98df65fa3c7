#!/usr/bin/env bash
# The predictions beside the ES-MoE paper: the committed tables are what the program prints, and they keep the bounds that README.md states.
set -u
here=$ESMOE_SOURCE/tests/paper
failed=0

fail() {
	echo "FAIL: $*"
	failed=1
}

made=$("$here/table" "$ESMOE") || fail "the table could not be made"
diff <(echo "$made") "$here/table.md" || fail "tests/paper/table.md is not what tests/paper/table prints"
sed -n '/^| E | model/,/^$/p' "$here/table.md" | while IFS= read -r line; do
	grep -qxF -- "$line" "$ESMOE_SOURCE/README.md" || echo "$line"
done | grep . && fail "README.md lacks these lines of the table"

bound() { # NAME MEAN MOST
	awk -v name="- $1:" -v mean="$2" -v most="$3" 'index($0, name) == 1 {
		match($0, /mean error [0-9.]+/); m = substr($0, RSTART + 11, RLENGTH - 11)
		match($0, /largest [0-9]+/); l = substr($0, RSTART + 8, RLENGTH - 8)
		found = 1; bad = m + 0 > mean || l + 0 > most
	} END { exit !found || bad }' <<<"$made" || fail "$1: mean error past $2 % or one past $3 %"
}
bound ES-MoE 10 20
bound FairSeq 20 100
bound Tutel 20 100
bound ZeRO-Offload^E 20 100

grep missed <<<"$made" && fail "out of memory where the paper has a figure, or the other way round"

# ZeRO-Offload^E < FairSeq < Tutel < ES-MoE in every row, as in the paper
awk -F'|' '/^\| [0-9]/ && NF > 12 {
	last = 0
	for (i = 5; i <= 14; i += 3) if ($i !~ /OOM/) { if ($i + 0 <= last) { print; bad = 1 }; last = $i + 0 }
} END { exit bad }' <<<"$made" || fail "the order of the systems"

awk -F'|' '/^\| gpt-moe/ { n++; e = $5; gsub(/[^0-9]/, "", e); if (e + 0 > 10) { print; bad = 1 } } END { exit bad || n != 5 }' <<<"$made" ||
	fail "the most experts that fit, past 10 %"

# the first row is ES-MoE itself; no mechanism's absence makes it faster (copies and Adam share the DRAM: which overlap moves a step by a few tenths of a per cent)
awk -F'|' '/words\/s/ { on = 1; next } on && NF == 5 && $3 ~ /[0-9]/ {
	if (!a) { a = $3; b = $4 } else { n++; if ($3 > 1.005 * a || $4 > 1.005 * b) { print; bad = 1 } }
} END { exit bad || n < 4 }' <<<"$made" || fail "an ablation that makes ES-MoE faster"

exit $failed
