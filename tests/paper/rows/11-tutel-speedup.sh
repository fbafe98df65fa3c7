# Tutel, single-layer scaling against FairSeq: 16384 tokens a GPU, d_model = d_ff = 2048, 2 experts a GPU, top-2.
tutel_speedup() { # GPUS, and settings
	local gpus=$1 tutel fairseq
	shift
	local common=(-m tutel-layer.ini -M ndm-a100-v4.ini --gpus "$gpus" --experts $((2 * gpus)) --set policy.checkpoint=none "$@")
	read -r tutel _ < <(moe_layer "${common[@]}" -p tutel)
	read -r fairseq _ < <(moe_layer "${common[@]}" -p fairseq)
	ratio "$fairseq" "$tutel"
}
tutel_speedups() {
	local gpus paper note
	while read -r gpus paper; do
		note=$(printf 'time of a small message among %d GPUs, 30 us assumed: with 120 us %.2f x; precision: in half precision %.2f x' "$gpus" \
			"$(tutel_speedup "$gpus" --set nic.latency_us=120)" \
			"$(tutel_speedup "$gpus" --set software.element_bytes=2 --set gpu.bf16_tflops=312)")
		row "Tutel over FairSeq, one layer, $gpus GPUs" "$paper" "$(tutel_speedup "$gpus")" "%.2f x" "$note"
	done <<-EOT
		16 4.96
		128 3.11
		2048 5.75
	EOT
}
tutel_speedups
