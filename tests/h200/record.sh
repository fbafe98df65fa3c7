#!/usr/bin/env bash
# Calibrates two GPUs on three networks and records runs that calibration did not make: record.sh OUT [ESMOE], where OUT gets M.ini, L.ini, W.ini and a
# folder for each run; ESMOE is the program (default: beside the working folder's bundle). About ten minutes on two H200. Simulate them anywhere with
#   esmoe validate OUT/runs/*
set -uo pipefail
out=${1:?a folder} esmoe=${2:-./esmoe}
machine=(-M h200-x2 --device cuda)
mkdir -p "$out/runs"
calibrate() { # NAME NETWORK...
	local name=$1
	shift
	"$esmoe" calibrate "${machine[@]}" -m "$@" --experts 8 -o "$out/$name.ini" || exit
}
record() { # NAME MACHINE NETWORK ARGUMENT...
	local name=$1 on=$2 network=$3
	shift 3
	echo "$name"
	"$esmoe" run -m "$network" -M "$out/$on.ini" --device cuda --synthetic --steps 20 --trace-steps 5 --trace "$out/runs/$name" "$@" | tail -n 1
}
static=(-p static) offloaded=(-p es-moe --set policy.expert_home=dram) ahead=(--set policy.update_order=next-forward)
swiglu=(--set network.activation=swiglu --set network.layers=12)

calibrate M gpt-moe-m --sequences 32
record m8-static M gpt-moe-m "${static[@]}" --gpus 1 --experts 8 --sequences 32 --routing uniform
record m8-dram M gpt-moe-m "${offloaded[@]}" "${ahead[@]}" --gpus 1 --experts 8 --sequences 32 --routing uniform
record m8-static-2 M gpt-moe-m "${static[@]}" --gpus 2 --experts 8 --sequences 32 --routing uniform
record m8-dram-arrival M gpt-moe-m "${offloaded[@]}" --gpus 1 --experts 8 --sequences 32 --routing uniform
record m8-dram-2 M gpt-moe-m "${offloaded[@]}" "${ahead[@]}" --gpus 2 --experts 8 --sequences 32 --routing uniform
record m8-static-few M gpt-moe-m "${static[@]}" --gpus 1 --experts 8 --sequences 8
record m8-static-halves M gpt-moe-m "${static[@]}" --gpus 1 --experts 8 --sequences 48 --microbatches 2 --routing zipf:0.7
record m12-dram-40gb M gpt-moe-m "${offloaded[@]}" --gpus 1 --experts 12 --sequences 32 --set gpu.hbm_gib=37.25
record m16-dram M gpt-moe-m "${offloaded[@]}" "${ahead[@]}" --gpus 1 --experts 16 --sequences 16 --routing zipf:0.7
record m16-dram-2 M gpt-moe-m "${offloaded[@]}" --gpus 2 --experts 16 --sequences 32
record m32-static-2 M gpt-moe-m "${static[@]}" --gpus 2 --experts 32 --sequences 16 --routing zipf:0.7
record m64-static-2 M gpt-moe-m "${static[@]}" --gpus 2 --experts 64 --sequences 24 --routing uniform
calibrate W gpt-moe-m --sequences 16 "${swiglu[@]}"
record swiglu8-static W gpt-moe-m "${static[@]}" --gpus 1 --experts 8 --sequences 16 "${swiglu[@]}"
record swiglu8-dram-2 W gpt-moe-m "${offloaded[@]}" --gpus 2 --experts 8 --sequences 16 "${swiglu[@]}" --routing zipf:0.7
calibrate L gpt-moe-l --sequences 32
record l8-static L gpt-moe-l "${static[@]}" --gpus 1 --experts 8 --sequences 32 --routing uniform
record l8-dram L gpt-moe-l "${offloaded[@]}" "${ahead[@]}" --gpus 1 --experts 8 --sequences 32 --routing uniform
record l8-dram-2 L gpt-moe-l "${offloaded[@]}" --gpus 2 --experts 8 --sequences 24
record l16-static-2 L gpt-moe-l "${static[@]}" --gpus 2 --experts 16 --sequences 16 --routing zipf:0.7
