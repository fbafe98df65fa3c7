# SE-MoE against DeepSpeed: GPT-MoE of 104.1 billion parameters, 64 experts on 64 A100 of 80 GB. The batch is not printed: one sequence a GPU here, which
# needs no activation checkpointing. Nodes of eight adapters; one kernel an operator, as in DeepSpeed's rows.
se_moe_figure() { # COLUMN POLICY ARGUMENT...
	local column=$1 policy=$2
	shift 2
	predicted "$column" -m se-moe-104b.ini -M a100-80g-x8 --gpus 64 -p "$policy" --set nic.adapters=8 --sequences 1 --set policy.checkpoint=none "$@"
}
se_moe_gb() { # POLICY ARGUMENT...: with what the driver and NCCL take, 1.5 GiB in the machine's file
	se_moe_figure hbm_gib "$@" | awk '{ printf "%.4f\n", ($1 + 1.5) * 1.073741824 }'
}
se_moe_training() {
	local eager=(--set software.kernels=eager --set software.attention=materialised) whole=(--set policy.zero_stage=0 --set policy.embedding=copied)
	local again=(--set policy.checkpoint=full) layer=(--set policy.checkpoint=layer)
	local ours theirs fused their_fused many their_many slow their_slow kept their_kept
	ours=$(se_moe_figure tokens_per_s se-moe "${eager[@]}")
	theirs=$(se_moe_figure tokens_per_s deepspeed-moe "${eager[@]}")
	fused=$(se_moe_figure tokens_per_s se-moe)
	their_fused=$(se_moe_figure tokens_per_s deepspeed-moe)
	slow=$(se_moe_figure tokens_per_s se-moe "${eager[@]}" --set gpu.gemm_efficiency=0.6)
	their_slow=$(se_moe_figure tokens_per_s deepspeed-moe "${eager[@]}" --set gpu.gemm_efficiency=0.6)
	kept=$(se_moe_figure tokens_per_s se-moe "${eager[@]}" "${again[@]}")
	their_kept=$(se_moe_figure tokens_per_s deepspeed-moe "${eager[@]}" "${layer[@]}")
	many=$(se_moe_figure tokens_per_s se-moe "${eager[@]}" --sequences 8 "${again[@]}")
	their_many=$(se_moe_figure tokens_per_s deepspeed-moe "${eager[@]}" --sequences 8 "${layer[@]}")
	row "SE-MoE: 104.1B, 64 A100" 209970 "$ours" "%.0f tokens/s" \
		"$(printf 'checkpointing: with it %.0f. Kernels: fused %.0f. GEMMs: 80 %% of the data sheet assumed; with 60 %% %.0f. Batch: 8 sequences a GPU, checkpointed, %.0f' \
			"$kept" "$fused" "$slow" "$many")"
	row "DeepSpeed, the same" 157728 "$theirs" "%.0f tokens/s" "$(printf 'as above: %.0f; %.0f; %.0f; %.0f' "$their_kept" "$their_fused" "$their_slow" "$their_many")"
	row "the first over the second" 1.331 "$(ratio "$ours" "$theirs")" "%.2f x" "$(printf 'as above: %.2f x; %.2f x; %.2f x; %.2f x' \
		"$(ratio "$kept" "$their_kept")" "$(ratio "$fused" "$their_fused")" "$(ratio "$slow" "$their_slow")" "$(ratio "$many" "$their_many")")"
	row "SE-MoE: its memory" 54.4 "$(se_moe_gb se-moe "${eager[@]}")" "%.1f GB" \
		"$(printf 'checkpointing: none, chosen with both rows of memory in view; with it %.1f GB. Dense state: cut over all GPUs; whole on each %.1f GB' \
			"$(se_moe_gb se-moe "${eager[@]}" "${again[@]}")" "$(se_moe_gb se-moe "${eager[@]}" "${whole[@]}")")"
	row "DeepSpeed, the same" 66.3 "$(se_moe_gb deepspeed-moe "${eager[@]}")" "%.1f GB" \
		"$(printf 'checkpointing: with it %.1f GB; what allocator and framework hold beside' "$(se_moe_gb deepspeed-moe "${eager[@]}" "${layer[@]}")")"
}
se_moe_training
