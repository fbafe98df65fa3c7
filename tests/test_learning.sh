#!/usr/bin/env bash
# A network of 4 layers with 8 experts each learns the text of a licence: its loss falls below half of the first within 300 steps on two cores.
. "$(dirname "$0")/harness.sh"

text=
for file in /usr/share/common-licenses/GPL-3 "$ESMOE_SOURCE/LICENSE"; do
	[ -z "$text" ] && [ -s "$file" ] && text=$file
done
# Under sanitizers everything is ten times slower: whether it learns does not depend on them.
if grep -qaE '__asan_init|__tsan_init' "$ESMOE"; then
	echo 'built with sanitizers: skipped'
	exit 77
fi
expect 0 run -m tiny-moe -M host -p es-moe --data "$text" --steps 300 --lr 0.003 --trace learned
check "below half of the first loss" awk -F, 'NR == 2 { first = $2 } END { exit !($2 < first / 2) }' learned/losses.csv
tail -1 learned/losses.csv
finish
