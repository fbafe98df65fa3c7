# DeepSpeed-TED (arXiv 2303.06318): a 6.7B base with 16 experts, 40B, on 128 V100, taken to be Summit's; what duplicate-token dropping and communication-aware
# checkpointing gain together over neither. Groups of four are the smallest that fit 16 GB.
ted() { # ALL_TO_ALL CHECKPOINT ARGUMENT...
	predicted tokens_per_s -m ted-40b.ini -M "${machine:-summit.ini}" -p deepspeed-ted --gpus 128 --set policy.all_to_all="$1" --set policy.checkpoint="$2" "${@:3}"
}
ted_gain() { # ARGUMENT...
	ratio "$(ted dropped keep-collectives "$@")" "$(ted linear layer "$@")"
}
deepspeed_ted() {
	local four=(--set machine.gpus_per_node=4) none
	none=$(ted linear layer)
	row "DeepSpeed-TED: both over neither, 128 V100" 1.26 "$(ted_gain)" "%.2f x" \
		"$(printf 'GPUs used a node: six, so that every third group of four lies on two nodes; with four %.2f x. Kernels: fused %.2f x. Testbed: Summit, not checked; nodes of eight (v100-x16) %.2f x' \
			"$(ted_gain "${four[@]}")" "$(ted_gain --set software.kernels=fused)" "$(machine=v100-x16 ted_gain)")"
	printf '| %s | | %.2f x | | %s |\n' "of this, dropping alone" "$(ratio "$(ted dropped layer)" "$none")" "not printed" \
		"of this, checkpointing alone" "$(ratio "$(ted linear keep-collectives)" "$none")" "not printed"
}
deepspeed_ted
