# Tutel, table of the all-to-all's share of an MoE layer: d_model = d_ff = 4096, 2 experts a GPU, 64K tokens a GPU, before overlap and hierarchy.
tutel_share() { # GPUS PAPER_MS PAPER_SHARE PRECISION...
	local gpus=$1 ms=$2 share=$3 layer exchanged
	shift 3
	read -r layer exchanged < <(moe_layer -m tutel-layer.ini -M ndm-a100-v4.ini -p tutel --gpus "$gpus" --experts $((2 * gpus)) --sequences 64 \
		--set network.d_model=4096 --set network.d_ff=4096 --set policy.checkpoint=none --set policy.pipeline_degree=1 \
		--set policy.all_to_all=linear "$@")
	echo "$layer $(percent "$exchanged" "$layer")"
}
tutel_all_to_all() {
	local gpus ms share ours note half half_share layer crowded
	while read -r gpus ms share; do
		read -r layer ours < <(tutel_share "$gpus" "$ms" "$share")
		read -r half half_share < <(tutel_share "$gpus" "$ms" "$share" --set software.element_bytes=2 --set gpu.bf16_tflops=312)
		note=$(printf 'precision: fp32 on TF32, the default of Tutel'"'"'s benchmark; in half precision %.1f %%' "$half_share")
		row "Tutel: all-to-all of a layer, $gpus GPUs" "$share" "$ours" "%.1f %%" "$note"
		read -r crowded _ < <(tutel_share "$gpus" "$ms" "$share" --set nic.adapters=1 --set fabric.leaf_nodes=16 --set fabric.oversubscription=4)
		note=$(printf 'as above; in half precision %.0f ms; with leaf switches of 16 nodes and a quarter as many uplinks %.0f ms' "$half" "$crowded")
		row "Tutel: the layer, $gpus GPUs" "$ms" "$layer" "%.0f ms" "$note"
	done <<-EOT
		16 560.9 33.7
		64 698.9 46.3
		256 866.4 56.7
	EOT
}
tutel_all_to_all
