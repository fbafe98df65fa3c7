# DeepSpeed-MoE (arXiv 2201.05596), training on 128 A100 with sequences of 2048, as in early versions of the authors' scripts (Megatron-DeepSpeed,
# examples/MoE): activation checkpointing, micro-batches of four sequences, no ZeRO; 1.3B+MoE-128 in batches of 512, not cut; the dense 6.7B of equal
# quality in batches of 1024, cut over eight GPUs.
samples() { # ARGUMENT...
	ratio "$(predicted tokens_per_s -M nd-a100-v4.ini -p deepspeed-moe --gpus 128 --set policy.microbatch=4 "$@")" 2048
}
deepspeed_moe() {
	local moe=(-m ds-1.3b-52b --sequences 4) dense=(-m gpt-6.7b.ini --sequences 8 --set policy.tensor_parallel=8)
	local fused=(--set software.kernels=fused) slow=(--set gpu.gemm_efficiency=0.6) sparse=(--set policy.dispatch=padded)
	local ours base fused_moe fused_base slow_moe slow_base sparse_moe small
	ours=$(samples "${moe[@]}")
	base=$(samples "${dense[@]}")
	fused_moe=$(samples "${moe[@]}" "${fused[@]}")
	fused_base=$(samples "${dense[@]}" "${fused[@]}")
	slow_moe=$(samples "${moe[@]}" "${slow[@]}")
	slow_base=$(samples "${dense[@]}" "${slow[@]}")
	sparse_moe=$(samples "${moe[@]}" "${sparse[@]}")
	small=$(samples "${dense[@]}" --set policy.microbatch=1)
	row "DeepSpeed-MoE: 1.3B+MoE-128, 128 A100" 372 "$ours" "%.0f samples/s" \
		"$(printf 'kernels: one an operator, PyTorch of 2021; fused %.0f. GEMMs: 80 %% of the data sheet assumed; with 60 %%, fitted for ES-MoE, %.0f. Dispatch: the mask; Tutel'"'"'s kernels, which DeepSpeed can use, %.0f' \
			"$fused_moe" "$slow_moe" "$sparse_moe")"
	row "the dense 6.7B, 128 A100" 70 "$base" "%.0f samples/s" \
		"$(printf 'as above: %.0f; %.0f. Micro-batches of one %.0f' "$fused_base" "$slow_base" "$small")"
	row "the first over the second" 5.31 "$(ratio "$ours" "$base")" "%.2f x" \
		"$(printf 'as above: fused %.2f x, 60 %% %.2f x, Tutel'"'"'s kernels %.2f x, these and micro-batches of one for the dense %.2f x; the rest is not explained' \
			"$(ratio "$fused_moe" "$fused_base")" "$(ratio "$slow_moe" "$slow_base")" "$(ratio "$sparse_moe" "$base")" "$(ratio "$sparse_moe" "$small")")"
}
deepspeed_moe
