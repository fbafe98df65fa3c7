#!/usr/bin/env bash
# Calibrates this machine and records runs that calibration did not make: record.sh OUT MACHINE [ESMOE]. MACHINE is h200-x2 (GPT-MoE M on one and two
# GPUs) or h200-x1 (L, and M with SwiGLU in 12 layers); OUT gets a calibrated machine for each network and a folder for each run; ESMOE is the program
# (default: beside the working folder's bundle). About four minutes each. Simulate them anywhere with
#   esmoe validate OUT/runs/*
set -uo pipefail
out=${1:?a folder} machine=${2:?h200-x1 or h200-x2} esmoe=${3:-./esmoe}
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
static=(-p static) offloaded=(-p es-moe --set policy.expert_home=dram) ahead=(--set policy.update_order=next-forward)
kept=(--set policy.pinned_share=1) # parameters stay in HBM, whose room nobody else needs; state is in DRAM all the same
swiglu=(--set network.activation=swiglu --set network.layers=12)

if [ "$machine" = h200-x2 ]; then
	calibrate m gpt-moe-m --sequences 32
	record m8-static m gpt-moe-m "${static[@]}" --gpus 1 --experts 8 --sequences 32 --routing uniform
	record m8-dram m gpt-moe-m "${offloaded[@]}" "${ahead[@]}" --gpus 1 --experts 8 --sequences 32 --routing uniform
	record m8-dram-kept m gpt-moe-m "${offloaded[@]}" "${ahead[@]}" "${kept[@]}" --gpus 1 --experts 8 --sequences 32 --routing uniform
	record m8-static-2 m gpt-moe-m "${static[@]}" --gpus 2 --experts 8 --sequences 32 --routing uniform
	record m8-dram-2 m gpt-moe-m "${offloaded[@]}" "${ahead[@]}" --gpus 2 --experts 8 --sequences 32 --routing uniform
	record m8-dram-arrival m gpt-moe-m "${offloaded[@]}" --gpus 1 --experts 8 --sequences 32 --routing uniform
	record m8-static-few m gpt-moe-m "${static[@]}" --gpus 1 --experts 8 --sequences 8
	record m8-static-halves m gpt-moe-m "${static[@]}" --gpus 1 --experts 8 --sequences 48 --microbatches 2 --routing zipf:0.7
	record m12-dram-40gb m gpt-moe-m "${offloaded[@]}" --gpus 1 --experts 12 --sequences 32 --set gpu.hbm_gib=37.25
	record m16-dram m gpt-moe-m "${offloaded[@]}" "${ahead[@]}" --gpus 1 --experts 16 --sequences 16 --routing zipf:0.7
	record m16-dram-2 m gpt-moe-m "${offloaded[@]}" --gpus 2 --experts 16 --sequences 32
	record m32-static-2 m gpt-moe-m "${static[@]}" --gpus 2 --experts 32 --sequences 16 --routing zipf:0.7
	record m64-static-2 m gpt-moe-m "${static[@]}" --gpus 2 --experts 64 --sequences 24 --routing uniform
else
	calibrate swiglu gpt-moe-m --sequences 16 "${swiglu[@]}"
	record swiglu8-static swiglu gpt-moe-m "${static[@]}" --experts 8 --sequences 16 "${swiglu[@]}"
	record swiglu8-dram swiglu gpt-moe-m "${offloaded[@]}" --experts 8 --sequences 16 "${swiglu[@]}" --routing zipf:0.7
	calibrate l gpt-moe-l --sequences 32
	record l8-static l gpt-moe-l "${static[@]}" --experts 8 --sequences 32 --routing uniform
	record l8-dram l gpt-moe-l "${offloaded[@]}" "${ahead[@]}" --experts 8 --sequences 32 --routing uniform
	record l8-dram-kept l gpt-moe-l "${offloaded[@]}" "${ahead[@]}" "${kept[@]}" --experts 8 --sequences 32 --routing uniform
	record l8-dram-gate l gpt-moe-l "${offloaded[@]}" --experts 8 --sequences 24
	record l12-static l gpt-moe-l "${static[@]}" --experts 12 --sequences 16 --routing zipf:0.7
fi
