# Tutel, single-layer scaling against FairSeq: 16384 tokens a GPU, d_model = d_ff = 2048, 2 experts a GPU, top-2. The paper's time of the experts on one
# GPU, 30.2 ms / 11.3, is only possible in half precision.
tutel_scaling=(-m tutel-layer.ini -M ndm-a100-v4.ini --set policy.checkpoint=none)
half=(--set software.element_bytes=2 --set gpu.bf16_tflops=312 --set gpu.gemm_efficiency=0.8)

tutel_speedup() { # GPUS, and settings
	local gpus=$1 tutel fairseq
	shift
	local common=("${tutel_scaling[@]}" --gpus "$gpus" --experts $((2 * gpus)) "$@")
	read -r tutel _ < <(moe_layer "${common[@]}" -p tutel)
	read -r fairseq _ < <(moe_layer "${common[@]}" -p fairseq)
	ratio "$fairseq" "$tutel"
}
tutel_speedups() {
	local gpus paper note
	while read -r gpus paper; do
		note=$(printf 'precision: half, by the time of the experts below; in fp32 %.2f x. A message between nodes: 20 us, see the pipelining below; 10 us %.2f x, 30 us %.2f x. Overlap: as pipelined; with none %.2f x' \
			"$(tutel_speedup "$gpus")" "$(tutel_speedup "$gpus" "${half[@]}" --set nic.latency_us=10)" \
			"$(tutel_speedup "$gpus" "${half[@]}" --set nic.latency_us=30)" "$(tutel_speedup "$gpus" "${half[@]}" --set policy.pipeline_degree=1)")
		row "Tutel over FairSeq, one layer, $gpus GPUs" "$paper" "$(tutel_speedup "$gpus" "${half[@]}")" "%.2f x" "$note"
	done <<-EOT
		16 4.96
		128 3.11
		2048 5.75
	EOT
}

# Section 2.4: the experts' rows stay apart by the GPU that sent them, 8 of each of 2048 GPUs; Tutel puts them together (figure 7, second-hand).
experts_ms() { # GPUS
	spans "${tutel_scaling[@]}" "${half[@]}" -p fairseq --gpus "$1" --experts $((2 * $1)) |
		awk -F, '$6 == "expert" && $7 == "forward" { ms += ($15 - $14) / 1e6 } END { printf "%.4f\n", ms }'
}
tutel_experts() {
	local one all
	one=$(experts_ms 1)
	all=$(experts_ms 2048)
	row "Tutel: experts by source, forward, 2048 GPUs" 30.2 "$all" "%.1f ms" "-"
	row "Tutel: the same over one GPU" 11.3 "$(ratio "$all" "$one")" "%.1f x" "$(printf 'one GPU: 2.7 ms, predicted %.1f ms' "$one")"
}
tutel_speedups
tutel_experts
