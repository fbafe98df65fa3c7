#!/usr/bin/env bash
# Calibrates this machine and records runs that calibration did not make: record.sh OUT MACHINE ESMOE PART... MACHINE is h200-x1 or h200-x2; OUT gets a
# calibrated machine for each network and a folder for each run; a PART is one of those below, two to four minutes each. Simulate them anywhere with
#   esmoe validate OUT/runs/*
set -uo pipefail
out=${1:?a folder} machine=${2:?h200-x1 or h200-x2} esmoe=${3:?the program}
shift 3
mkdir -p "$out/runs"
calibrate() { # NAME NETWORK...
	local name=$1
	shift
	"$esmoe" calibrate -M "$machine" --device cuda -m "$@" --experts 8 -o "$out/$machine-$name.ini" || exit
}
record() { # NAME MACHINE NETWORK ARGUMENT...
	local name=$1 on=$2 network=$3 steps=24 last=12
	shift 3
	[[ "$*" != *expert_home=dram* ]] || { steps=16 && last=8; } # nothing to warm up: the GPU waits most of the time
	echo "$name"
	"$esmoe" run -m "$network" -M "$out/$machine-$on.ini" --device cuda --synthetic --steps "$steps" --trace-steps "$last" --trace "$out/runs/$name" "$@" |
		tail -n 1
}
static=(-p static) offloaded=(-p es-moe --set policy.expert_home=dram --set policy.upload_ahead=2) ahead=(--set policy.update_order=next-forward)
kept=(--set policy.pinned_share=1) # parameters stay in HBM, whose room nobody else needs; state is in DRAM all the same
gated=(--set network.activation=swiglu --set network.layers=12)

m() { # GPT-MoE M on one GPU
	calibrate m gpt-moe-m --sequences 32
	local one=(m gpt-moe-m --gpus 1)
	record m8-static "${one[@]}" "${static[@]}" --experts 8 --sequences 32 --routing uniform
	record m8-dram "${one[@]}" "${offloaded[@]}" "${ahead[@]}" --experts 8 --sequences 32 --routing uniform
	record m8-dram-kept "${one[@]}" "${offloaded[@]}" "${ahead[@]}" "${kept[@]}" --experts 8 --sequences 32 --routing uniform
	record m8-dram-arrival "${one[@]}" "${offloaded[@]}" --experts 8 --sequences 32 --routing uniform
	record m8-static-few "${one[@]}" "${static[@]}" --experts 8 --sequences 8
	record m8-static-halves "${one[@]}" "${static[@]}" --experts 8 --sequences 48 --microbatches 2 --routing zipf:0.7
	record m12-dram-40gb "${one[@]}" "${offloaded[@]}" --experts 12 --sequences 32 --set gpu.hbm_gib=37.25
	record m16-dram "${one[@]}" "${offloaded[@]}" "${ahead[@]}" --experts 16 --sequences 16 --routing zipf:0.7
}
m2() { # and on two, calibrated by m
	local two=(m gpt-moe-m --gpus 2)
	record m8-static-2 "${two[@]}" "${static[@]}" --experts 8 --sequences 32 --routing uniform
	record m8-dram-2 "${two[@]}" "${offloaded[@]}" "${ahead[@]}" --experts 8 --sequences 32 --routing uniform
	record m16-dram-2 "${two[@]}" "${offloaded[@]}" --experts 16 --sequences 32
	record m32-static-2 "${two[@]}" "${static[@]}" --experts 32 --sequences 16 --routing zipf:0.7
	record m64-static-2 "${two[@]}" "${static[@]}" --experts 64 --sequences 24 --routing uniform
}
swiglu() { # M with SwiGLU in 12 layers
	calibrate swiglu gpt-moe-m --sequences 16 "${gated[@]}"
	record swiglu8-static swiglu gpt-moe-m "${static[@]}" --experts 8 --sequences 16 "${gated[@]}"
	record swiglu8-dram swiglu gpt-moe-m "${offloaded[@]}" --experts 8 --sequences 16 "${gated[@]}" --routing zipf:0.7
}
l() { # GPT-MoE L
	calibrate l gpt-moe-l --sequences 32
	record l8-static l gpt-moe-l "${static[@]}" --experts 8 --sequences 32 --routing uniform
	record l8-dram l gpt-moe-l "${offloaded[@]}" "${ahead[@]}" --experts 8 --sequences 32 --routing uniform
	record l8-dram-kept l gpt-moe-l "${offloaded[@]}" "${ahead[@]}" "${kept[@]}" --experts 8 --sequences 32 --routing uniform
	record l8-dram-gate l gpt-moe-l "${offloaded[@]}" --experts 8 --sequences 24
	record l12-static l gpt-moe-l "${static[@]}" --experts 12 --sequences 16 --routing zipf:0.7
}
for part; do
	declare -F "$part" >/dev/null || { echo "$part: expected m, m2, swiglu or l" && exit 2; }
	"$part"
done
