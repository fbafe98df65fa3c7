# SE-MoE, inference in a ring of expert slots: "30 % or more of GPU memory saved". On the network and testbed of its training table: 12 layers of H 4096,
# 64 experts on 64 A100; a ring of two layers of twelve, prompts of 1024 tokens read once.
ring_figure() { # COLUMN POLICY SEQUENCES ARGUMENT...
	local column=$1 policy=$2 sequences=$3
	shift 3
	predicted "$column" -m se-moe-104b.ini -M a100-80g-x8 -p "$policy" --gpus 64 --workload inference --batch "$sequences" --context 1024 --generate 1 "$@"
}
ring_saved() { # SEQUENCES ARGUMENT...
	local resident ring
	resident=$(ring_figure hbm_gib static "$1")
	ring=$(ring_figure hbm_gib se-moe-ring "$@")
	awk -v a="$resident" -v b="$ring" 'BEGIN { printf "%.4f\n", 100 * (1 - b / a) }'
}
ring_kept() { # SEQUENCES ARGUMENT...
	local resident ring
	resident=$(ring_figure tokens_per_s static "$1")
	ring=$(ring_figure tokens_per_s se-moe-ring "$@")
	percent "$ring" "$resident"
}
se_moe_ring() {
	local note
	note=$(printf 'network, batch and ring are not known: 8 prompts a GPU keep %.0f %% of the throughput; 32 prompts save %.0f %% and keep %.0f %%, 2 save %.0f %% and keep %.0f %%; six layers in the ring save %.0f %%' \
		"$(ring_kept 8)" "$(ring_saved 32)" "$(ring_kept 32)" "$(ring_saved 2)" "$(ring_kept 2)" "$(ring_saved 8 --set policy.upload_ahead_layers=5)")
	change "SE-MoE: GPU memory with the ring (30 % less, or better)" -30 "-$(ring_saved 8)" "%+.0f %%" "$note"
}
se_moe_ring
