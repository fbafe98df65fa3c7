#!/usr/bin/env bash
# Training on one H200 beside PyTorch, one after the other, with as many tokens for each expert (PyTorch's gate is untrained, and near to that):
# speed.sh PEER [ESMOE], where PEER is a PyTorch program called as PEER static|offload D LAYERS HEADS EXPERTS TOP_K SEQUENCES STEPS, and ESMOE the
# program (default: beside the working folder's bundle).
set -uo pipefail
peer=${1:?a PyTorch program to measure against} esmoe=${2:-./esmoe}
torch() { python3 "$peer" "$@" 2>&1 | tail -n 1; }
ours() {
	local name=$1 out
	shift
	out=$("$esmoe" run -M h200-x1 --synthetic --device cuda --sequences 32 --set policy.microbatch=32 --routing uniform "$@" 2>/dev/null)
	tail -n 4 <<<"$out" | awk '{ print $4 }' | sort -n |
		awk -v name="$name" '{ a[NR] = $1 } END { ms = (a[2] + a[3]) / 2; printf "esmoe %s: %.1f ms %.0f tok/s\n", name, ms, 32768 / ms * 1e3 }'
}
dram=(--set policy.expert_home=dram --set policy.upload_ahead=2 --set policy.update_order=next-forward)
torch static 1024 24 16 8 1 32 8
ours "M/8 static" -m gpt-moe-m -p static --experts 8 --steps 8
torch static 1536 24 16 8 1 32 6
ours "L/8 static" -m gpt-moe-l -p static --experts 8 --steps 7
torch static 768 12 12 64 1 32 8
ours "S/64 static" -m gpt-moe-s -p static --experts 64 --steps 9
torch static 1024 24 16 32 1 32 6
ours "M/32 static" -m gpt-moe-m -p static --experts 32 --steps 8
torch offload 1024 24 16 8 1 32 4
ours "M/8 es-moe from DRAM" -m gpt-moe-m -p es-moe --experts 8 --steps 8 "${dram[@]}"
torch offload 1536 24 16 8 1 32 3
ours "L/8 es-moe from DRAM" -m gpt-moe-l -p es-moe --experts 8 --steps 7 "${dram[@]}"
torch offload 1024 24 16 32 1 32 3
ours "M/32 es-moe from DRAM" -m gpt-moe-m -p es-moe --experts 32 --steps 6 "${dram[@]}"
