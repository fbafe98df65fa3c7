# DeepSpeed-MoE (arXiv 2201.05596), training on 128 A100 with sequences of 2048: 1.3B+MoE-128 in batches of 512, the dense 6.7B of equal quality in
# batches of 1024, both as in the authors' scripts, with activation checkpointing. Nodes as Azure's ND A100 v4: 40 GB, eight adapters.
samples() { # ARGUMENT...
	ratio "$(predicted tokens_per_s -M a100-80g-x8 --gpus 128 --set gpu.hbm_gib=39.4 --set nic.adapters=8 --set software.attention=materialised "$@")" 2048
}
deepspeed_moe() {
	local moe=(-m ds-1.3b-52b -p deepspeed-moe --sequences 4) dense=(-m gpt-6.7b.ini -p deepspeed-moe --sequences 8)
	local eager=(--set software.kernels=eager) cut=(--set policy.tensor_parallel=8) ours base fused_moe fused_base zero
	ours=$(samples "${moe[@]}" "${eager[@]}")
	fused_moe=$(samples "${moe[@]}")
	base=$(samples "${dense[@]}" "${cut[@]}" "${eager[@]}")
	fused_base=$(samples "${dense[@]}" "${cut[@]}")
	zero=$(samples "${dense[@]}" "${eager[@]}" --set policy.zero_stage=1)
	row "DeepSpeed-MoE: 1.3B+MoE-128, 128 A100" 372 "$ours" "%.0f samples/s" \
		"$(printf 'kernels: one an operator, PyTorch of 2021; fused %.0f' "$fused_moe")"
	row "the dense 6.7B, 128 A100" 70 "$base" "%.0f samples/s" \
		"$(printf 'kernels: as above; fused %.0f. Parallelism: tensors cut over a node; with ZeRO-1 instead %.0f' "$fused_base" "$zero")"
	row "the first over the second" 5.31 "$(ratio "$ours" "$base")" "%.2f x" \
		"$(printf 'as above; fused %.2f x; dense with ZeRO-1 %.2f x' "$(ratio "$fused_moe" "$fused_base")" "$(ratio "$ours" "$zero")")"
}
deepspeed_moe
