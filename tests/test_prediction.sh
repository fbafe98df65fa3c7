#!/usr/bin/env bash
# The machine that runs the tests, calibrated just before: step time of configurations that calibration did not run - two policies, two numbers of
# experts, one and two virtual GPUs - against their prediction, each within 15 %. A moment in which others work tells nothing: a run is made again
# until it had the cores to itself, and a machine that is never quiet has its figures printed and the test skipped. So has one whose own speed changes
# meanwhile, as that of a virtual machine does without anybody to be seen: one and the same run, before calibration and after each other run, must not
# differ by an eighth. Where the system allows, what is timed goes before others.
set -u
dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT

fail() {
	echo "FAIL: $*"
	exit 1
}

first="nice -n -19"
[ "$($first nice 2>/dev/null)" = -19 ] || first=

# Seconds of all cores, and of this script's children.
all_s() {
	awk '/^cpu / { print ($2 + $3 + $4 + $7 + $8 + $9) / 100 }' /proc/stat
}

own_s() {
	awk '{ print ($16 + $17) / 100 }' /proc/$$/stat
}

# quietly TRIES COMMAND...: again until others had less than 5 % of the cores meanwhile. Leaves what they had in $others, the most of all in $worst.
quietly() {
	local tries=$1 all own wall
	shift
	for _ in $(seq "$tries"); do
		all=$(all_s) own=$(own_s) wall=$(date +%s.%N)
		$first "$@" >"$dir/out" 2>&1 || fail "$* says: $(tail -1 "$dir/out")"
		others=$(echo "$all $(all_s) $own $(own_s) $wall $(date +%s.%N) $(nproc)" | awk '{ printf "%.0f", 100 * ($2 - $1 - $4 + $3) / ($6 - $5) / $7 }')
		[ "$others" -ge 5 ] || break
		sleep 0.2
	done
	[ "$others" -le "$worst" ] || worst=$others
}

train() { # POLICY HOME GPUS EXPERTS
	quietly 5 "$ESMOE" run -m tiny-moe -M "$dir/here.ini" -p "$1" --set policy.expert_home="$2" --gpus "$3" --experts "$4" --sequences 12 \
		--synthetic --steps 18 --trace-steps 16 --trace "$dir/$1-$3-gpus-$4-experts"
}

# The middle step of the same five, ms: appended to $dir/speeds.
speed() {
	$first "$ESMOE" run -m tiny-moe -M host -p static --experts 6 --sequences 12 --synthetic --steps 8 2>/dev/null | tail -n 5 | awk '{ print $4 }' |
		sort -n | sed -n 3p >>"$dir/speeds"
}

attempt() {
	rm -rf "${dir:?}"/*
	worst=0
	speed
	quietly 1 "$ESMOE" calibrate -m tiny-moe -M host -o "$dir/here.ini"
	for gpus in 1 2; do
		for experts in 6 12; do
			train static hbm $gpus $experts
			speed
			train es-moe dram $gpus $experts
			speed
		done
	done
	"$ESMOE" validate --format csv "$dir"/*-experts >"$dir/all.csv" 2>"$dir/notes" || fail "validate: $(cat "$dir/notes")"
	steady=$(sort -n "$dir/speeds" | awk 'NR == 1 { least = $1 } { most = $1 } END { printf "%.2f", most / least }')
	awk -F, -v others="$worst" -v steady="$steady" '$2 == "step" {
		printf "%-24s measured %9.3f ms +- %5.1f %%, predicted %9.3f ms, error %6.1f %%\n", $1, $4, $5, $6, $7
		error = $7 < 0 ? -$7 : $7
		n++; spread += $5; sum += error
		if (error > most) most = error
	} END {
		printf "mean error %.1f %%, largest %.1f %% over %d runs; their steps vary by %.1f %%; others had up to %.0f %% of the cores, one and the same run took up to %s x\n",
			sum / n, most, n, spread / n, others, steady
		exit n != 8 ? 1 : most <= 15 ? 0 : others >= 5 || steady > 1.125 ? 77 : 1
	}' "$dir/all.csv"
}

"$ESMOE" predict -m tiny-moe -M host -p es-moe | grep -q 'roofline' || fail "an uncalibrated machine does not say that its costs are the roofline's"
for _ in 1 2 3; do
	cat /proc/loadavg
	attempt
	status=$?
	[ $status -eq 0 ] || [ $SECONDS -gt 100 ] && break
done
"$ESMOE" predict -m tiny-moe -M "$dir/here.ini" -p es-moe >"$dir/predicted" || fail "predict with the calibrated machine"
grep -q '^costs *measured' "$dir/predicted" || fail "a calibrated machine does not say that its costs are measured"
"$ESMOE" predict -m tiny-moe -M "$dir/here.ini" -p static --sequences 4096 --set gpu.hbm_gib=64 | grep -q 'above range .*mixer forward' ||
	fail "sizes past the tables are not flagged"
"$ESMOE" predict -m gpt-moe-s -M "$dir/here.ini" -p es-moe --set gpu.hbm_gib=64 --set host.dram_gib=64 | grep -q 'by roofline .*mixer forward' ||
	fail "another network's computation is not said to be the roofline's"
[ "$status" -eq 77 ] && echo "skipped: this machine is too busy to time"
exit "$status"
