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
	local gpus ms share ours slow slow_share layer crowded worst note
	while read -r gpus ms share; do
		read -r layer ours < <(tutel_share "$gpus" "$ms" "$share")
		read -r slow slow_share < <(tutel_share "$gpus" "$ms" "$share" --set gpu.gemm_efficiency=0.5)
		note=$(printf 'how fast GEMMs on TF32 are: 80 %% of the data sheet assumed; with 50 %% %.1f %%. All-to-alls alone: %.0f ms for %.0f ms' "$slow_share" \
			"$(product "$layer" "$ours")" "$(product "$ms" "$share")")
		row "Tutel: all-to-all of a layer, $gpus GPUs" "$share" "$ours" "%.1f %%" "$note"
		note=$(printf 'as above: with 50 %% %.0f ms; experts take 372 to 386 ms in the paper on any number of GPUs' "$slow")
		if [ "$gpus" -gt 128 ]; then
			crowded=(--set fabric.leaf_nodes=16 --set nic.adapters=1 --set fabric.oversubscription=2)
			read -r worst _ < <(tutel_share "$gpus" "$ms" "$share" --set gpu.gemm_efficiency=0.5 "${crowded[@]}")
			read -r crowded _ < <(tutel_share "$gpus" "$ms" "$share" "${crowded[@]}")
			note+=$(printf '. Fabric: leaf switches of 16 nodes with half as many uplinks %.0f ms, both %.0f ms' "$crowded" "$worst")
		fi
		row "Tutel: the layer, $gpus GPUs" "$ms" "$layer" "%.0f ms" "$note"
	done <<-EOT
		16 560.9 33.7
		64 698.9 46.3
		256 866.4 56.7
	EOT
}
tutel_all_to_all
