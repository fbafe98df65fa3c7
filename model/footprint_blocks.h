/* Sizes of blocks that the executor takes and the plan counts. */
#pragma once

#include <stdint.h>

/* What depends on the kind of device that computes in such elements: fp32 on the host's cores, bf16 on a GPU. */
enum {
	FOOTPRINT_WEIGHT_FP32 = 1,     /* elements of a row's combine weight behind its D elements */
	FOOTPRINT_WEIGHT_BF16 = 8,     /* an fp32 weight, and rows stay on 16 bytes */
	FOOTPRINT_HEAD_FP32 = 128,     /* tokens whose logits are in memory at once */
	FOOTPRINT_HEAD_BF16 = 4096,    /* a GPU is filled by that many */
	FOOTPRINT_GEMM_BF16 = 1 << 25, /* bytes that a GEMM has for itself: what cuBLAS asks for on Hopper */
	FOOTPRINT_LANES_BF16 = 4,      /* GEMMs of a grouped stage that run side by side, each with such bytes */
	FOOTPRINT_PACKS_FP32 = 0,      /* whether exchanges are packed, into one message a peer that has room of its own */
	FOOTPRINT_PACKS_BF16 = 1,      /* small messages take NCCL longer than their bytes */
	FOOTPRINT_ALIGNMENT = 256,     /* of a block in HBM */
	FOOTPRINT_STAGING = 1 << 16,   /* pinned floats through which a GPU's parameters start and are saved */
};

static inline uint64_t footprint_pages(uint64_t bytes)
{
	return (bytes + 4095) / 4096 * 4096;
}

/* Bytes from one expert's place in DRAM to the next: whole pages of 4 KiB; from 32 MiB up huge pages, which no two experts share. */
static inline uint64_t footprint_stride(uint64_t bytes)
{
	const uint64_t huge = (uint64_t)2 << 20;
	return bytes < 16 * huge ? footprint_pages(bytes) : (bytes + huge - 1) / huge * huge;
}

/* DRAM over the SSD is cut into frames, each with room for fp32 numbers of the widest expert: an expert's state takes three (master, m, v); its
 * parameters and gradient share one where they are as short together, and else take one each. */
enum { FOOTPRINT_STATE_FRAMES = 3 };
static inline uint64_t footprint_frame(uint64_t widest_params)
{
	return footprint_pages(widest_params * 4);
}
static inline int footprint_copy_frames(int element_bytes, int gradient_bytes)
{
	return element_bytes + gradient_bytes <= 4 ? 1 : 2;
}
