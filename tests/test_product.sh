#!/usr/bin/env bash
# Every preset policy on every preset network and machine (each under one name), 1 to 64 GPUs: a prediction, a named memory that is too small, or a
# named reason why the combination has no meaning; never a crash. Each pair of policy and network sees every number of GPUs, on one of them a machine;
# with PRODUCT=whole on all (some minutes). Inference is asked for on one machine.
. "$(dirname "$0")/harness.sh"

names() {
	"$ESMOE" "$1" | sed '1d;/^$/,$d' | cut -d' ' -f1 | paste -sd,
}
gpus=(1 2 4 8 16 32 64) nth=0
machines=$(names machines | tr , ' ')
for machine in $machines; do
	for other in $machines; do # a machine calibrated for another network than the one whose name it bears has nothing new to say here
		[[ "$machine" != "$other"-* ]] || continue 2
	done
	counts=${gpus[(3 * nth + 4) % 7]}
	[ "${PRODUCT:-}" != whole ] || counts=1:64:x2
	expect 0 compare -m "$(names models)" -M "$machine" -p "$(names policies)" --gpus "$counts" --sequences 4 --steps 1 --format json
	mv .out "$machine.json"
	nth=$((nth + 1))
done
expect 0 compare -m "$(names models)" -M gh200 -p "$(names policies)" --gpus 8 --workload inference --batch 2 --generate 3 --format json
mv .out inference.json
check "each row is a prediction or says why not" python3 - *.json <<'PYTHON'
import collections, json, re, sys
status, wrong = collections.Counter(), []
tiers = {"oom_hbm": "HBM needs", "oom_dram": "DRAM needs", "oom_ssd": "SSD needs"}
for path in sys.argv[1:]:
    for row in json.load(open(path)):
        status[row["status"]] += 1
        name = f'{row["policy"]} {row["model"]} {row["machine"]} {row["gpus"]}'
        if row["status"] == "ok":
            if not (row["tokens_per_s"] > 0 and 0 < row["speed_of_light_ms"] <= row["step_ms"] * 1.001):
                wrong.append(f"{name}: step {row['step_ms']} ms, speed of light {row['speed_of_light_ms']} ms")
        elif row["status"] == "invalid":
            if not re.search(r"(policy|network|machine|software|ssd|gpu)\.\w+|GPUs", row.get("why", "")):
                wrong.append(f'{name}: invalid, without a name: {row.get("why")}')
        elif tiers[row["status"]] not in row.get("why", ""):
            wrong.append(f'{name}: {row["status"]}: {row.get("why")}')
print(", ".join(f"{n} {s}" for s, n in sorted(status.items())))
print("\n".join(wrong[:20]))
sys.exit(bool(wrong) or status["ok"] == 0)
PYTHON
finish
