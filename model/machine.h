/* A machine: GPUs in nodes, their links, host DRAM, SSD, CPU optimizer, and the software stack that drives them.
 * Units in the names: gbps is 1e9 bytes/s, gib 2^30 bytes, gb 1e9 bytes, us microseconds. Values as an .ini has them; sources stand in the presets.
 */
#pragma once

#include "autoptr.h"
#include "ini.h"
#include "units.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

enum attention { ATTENTION_FLASH, ATTENTION_MATERIALISED }; /* materialised: the T x T scores go through HBM */
enum contention { CONTENTION_MAX_MIN, CONTENTION_MEASURED };

/* Measured rates of DRAM users running together on one host. Rows are Adam threads, columns the copies in flight. */
struct contention_table {
	struct ini_doubles threads;                                                    /* rows: 0, 1, 2, ... */
	struct ini_doubles adam, adam_u, adam_d, adam_ud, adam_uu, adam_dd, adam_uudd; /* GB/s of DRAM traffic of all Adam threads together */
	struct ini_doubles u_u, d_d, u_ud, d_ud, u_uu, d_dd, u_uudd, d_uudd;           /* GB/s of each copy: direction, then the mix it runs in */
};

/* One of the mixes in it: copies of each direction, and the columns of who runs in it: Adam, each upload, each download; NULL: nobody does. */
struct contention_mix {
	int up, down;
	const struct ini_doubles *rates[3];
};
enum { CONTENTION_MIXES = 7 };
void contention_mixes(const struct contention_table *t, struct contention_mix mixes[CONTENTION_MIXES]);

struct measured;

/* Of CPU Adam's speed over another one. */
#define LEAST_PACE 0.01
#define MOST_PACE 100.0

struct machine {
	char *name;
	/* [machine] */
	int gpus, gpus_per_node;
	char *gpu_name;
	char *routing; /* of what is trained here, when none is asked for; as in routing.h */
	/* [gpu] */
	int sms;
	double hbm_gib, reserved_gib; /* reserved: context, NCCL, allocator */
	double bf16_tflops, hbm_gbps;
	double gemm_efficiency;    /* of bf16_tflops, reached by a large GEMM */
	double hbm_efficiency;     /* of hbm_gbps, reached by a streaming kernel */
	double kernel_us;          /* shortest time of one kernel on the device */
	double nccl_sm_share;      /* share of the SMs a running collective takes */
	double cool_speedup;       /* matrix products on a GPU that mostly waits over a busy one, whose clock its power limit lowers; 1: none */
	double cool_share;         /* share of its time that a GPU may work and is still that cool */
	double cool_head_share;    /* of what a cool GPU gains, what a head gains */
	double heat_ms;            /* time constant with which it follows that share */
	double copy_gemm_slowdown; /* a GEMM's time under copies in both directions over its time alone; 1: none */
	double copy_up_share;      /* what uploads alone cost of that */
	double copy_down_share;    /* and downloads alone; at least what uploads leave */
	double copy_mixer_share;   /* what copies cost a mixer over what they cost a GEMM */
	double copy_exposed_us; /* a product of matrices that takes longer loses no more time to copies than one that takes that; 0: the longer, the
	                           more */
	/* [pcie] */
	double h2d_gbps, d2h_gbps; /* one direction alone */
	double duplex_gbps;        /* both directions together on one GPU's link */
	double root_gbps;          /* one direction of a root complex; 0: no limit */
	int gpus_per_root;
	double pcie_latency_us;
	/* [nvlink] */
	double nvlink_gbps;         /* one direction of one GPU; 0: none, PCIe carries the collectives */
	double nvlink_efficiency;   /* reached by NCCL */
	double nvlink_stream_share; /* what a collective loses of its speed while its GPU streams rows through HBM */
	double nvlink_one_way;      /* bytes only sent, or only received, count as so many both ways at once; 1: links are full duplex */
	double nvlink_latency_us;   /* of one collective inside a node */
	double nvlink_hop_us;       /* and of each message of it that waits for another */
	bool nvlink_mesh;           /* a link to each other GPU of the node, nvlink_gbps all together; otherwise a switch */
	bool pcie_peer;             /* without NVLink GPUs reach each other over PCIe; otherwise through host memory */
	/* [nic] */
	double nic_gbps;       /* one direction of one node, all its adapters */
	double nic_latency_us; /* of a message between nodes */
	int nic_adapters;      /* each serves as many GPUs; 1: all adapters serve all GPUs */
	int nic_window;        /* messages of an all-to-all that one GPU has in flight */
	/* [fabric] */
	int fabric_leaf_nodes;          /* nodes below one leaf switch; 0: one switch for all */
	double fabric_oversubscription; /* a leaf switch's downlinks over its uplinks */
	bool fabric_rails;              /* a leaf switch for each adapter of its nodes */
	/* [host] */
	int cores;
	double dram_gib, dram_reserved_gib, dram_gbps;
	double adam_gparams_per_s; /* CPU Adam with adam_threads threads, billion parameters/s, one node */
	int adam_threads;
	double adam_bytes_per_param;       /* DRAM traffic of one update */
	double adam_alone_gparams_per_s;   /* what tables say of CPU Adam holds where it is as fast as this alone; 0: not known */
	double adam_share;                 /* its speed on the memory there is over that of rates and tables */
	double adam_pace;                  /* of that while it trains; its updates are planned without it */
	double adam_slowest, adam_fastest; /* alone, of what calibration saw over the usual; 1: not known */
	double stream_cores;               /* CPU cores that a running stream of a virtual GPU keeps busy; 0: the GPUs are real */
	/* [ssd] one node */
	double ssd_gb, ssd_read_gbps, ssd_write_gbps;
	double ssd_mixed_gbps; /* reads and writes together */
	double ssd_latency_us;
	double ssd_cores; /* that a running read or write keeps busy */
	/* [software] */
	double launch_us;                                   /* host time to launch one kernel */
	double sync_us;                                     /* host waits for a stream: from the end of the stage to the host going on */
	double first_us;                                    /* the first launch after a wait takes so much longer than its like */
	double launch_adam_us, sync_adam_us, first_adam_us; /* the three while CPU Adam works on the node; 0: as otherwise */
	double event_us;                                    /* a stream waits for another's event */
	double sync_all_us;                                 /* the same after GPUs exchanged counts; 0: sync_us */
	double next_us;                                     /* a compute stream goes on to its next stage so much later */
	double wake_us;                                     /* a stream whose stage another waits for goes on so much later, for each that it wakes */
	int kernels;                                        /* enum kernels: eager or fused */
	int attention;                                      /* enum attention */
	int runtime;                                        /* enum runtime: who allocates memory */
	int all_reduce;                                     /* enum all_reduce: algorithm of reductions and gathers */
	int element_bytes;                                  /* of parameters and activations on the device: 2, or 4 for fp32 */
	int state_bytes_gpu; /* bytes of state a parameter in HBM under the GPU optimizer: 16, or 20 with fp32 gradients kept */
	bool pinned_pow2;    /* the allocator rounds each pinned block up to a power of two */
	bool pinned_master;  /* fp32 master weights in pinned memory too */
	/* sequences a micro-batch at most that the padded systems were run with on this testbed: experts in HBM, and outside it; 0: what fits */
	int baseline_microbatch, offload_microbatch;
	/* [contention] */
	int contention; /* enum contention */
	struct contention_table table;
	/* [measured...] */
	struct measured *measured; /* NULL: never calibrated */
};

enum runtime { RUNTIME_FRAMEWORK, RUNTIME_ESMOE };         /* as PyTorch and its allocators do (memory.c); as our executor (footprint.c) */
enum all_reduce { REDUCE_AUTO, REDUCE_RING, REDUCE_TREE }; /* auto: the faster, as NCCL chooses */
enum kernels { KERNELS_FUSED, KERNELS_EAGER };             /* eager: one kernel per framework operator */

/* Reads a preset or a file; `overrides` as in ini_read. NULL on error. Owned by the caller. */
struct machine *machine_load(const char *source, const char *const *overrides, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void machine_free(struct machine *machine);
AUTOPTR(machine)

/* The machine as an .ini that machine_load takes back. Owned by the caller. */
char *machine_ini(const struct machine *machine);

/* The number of nodes, the last one possibly not full; and the GPUs of one node. */
int machine_nodes(const struct machine *m);
int machine_node_gpus(const struct machine *m, int node);

/* The adapter that carries a GPU's bytes, counted over all nodes; the leaf switch above it (0 where the fabric has none), and how many there are. */
int machine_adapter(const struct machine *m, int gpu);
int machine_leaf(const struct machine *m, int gpu);
int machine_leaves(const struct machine *m);

/* Rates of one GPU that several modules need, GB/s: both PCIe directions at once, each; and a collective inside the node (over PCIe without NVLink).
 */
double machine_pcie_both_gbps(const struct machine *m);
double machine_collective_gbps(const struct machine *m);

/* Of adam_threads as many as leave a core to each GPU's launcher and one to the thread that builds the schedule, at least one; virtual GPUs, which
 * compute on the cores themselves, leave none. A core that a launcher shares with Adam is taken from that for a scheduler's slice, some milliseconds,
 * each time a gate answers, and an update ends with the last of its threads. With several GPUs the two threads that begin and end updates have a core
 * each, too: all GPUs wait in an exchange for the one whose launcher came late. M/8 from DRAM on two H200 with 32 cores, 384 exchanges of a forward:
 * 51 took more than 200 us to launch with 29 threads and 22 with 27, and an update took as long (two runs of 2026-11-30 that are not in tests/h200).
 */
int machine_spare_adam_threads(const struct machine *m);
/* What a GPU takes for each byte of rows that it copies within its memory for an exchange; 0 where none does: other software than ours says what its
 * exchanges take, and virtual GPUs copy row by row. */
double machine_move_ns(const struct machine *m);
/* CPU Adam of one node on `threads` threads with nothing beside it, billion parameters/s; 0 or more than adam_threads: all of them. Read off the
 * contention table's column `adam` when there is one, otherwise from a saturating law through adam_gparams_per_s. */
double machine_adam_gparams_per_s(const struct machine *m, int threads);
