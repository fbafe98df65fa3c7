/* A machine is read by one table of keys. A key is its field's name without the section's name in front: `h2d_gbps` of [pcie], `read_gbps` of [ssd].
 * What no single key can check - that the numbers of one machine agree with each other - is checked after reading. */
#include "machine.h"

#include "error.h"
#include "measured.h"
#include "monotone.h"

#include <string.h>

#define FIELD(field) offsetof(struct machine, field)
#define TEXT(section, key, field, fallback, help)                                                                                                    \
	{                                                                                                                                            \
		section, key, INI_STRING, FIELD(field), fallback, 0, 0, NULL, help                                                                   \
	}
#define WHOLE(section, key, field, fallback, min, max, help)                                                                                         \
	{                                                                                                                                            \
		section, key, INI_INT, FIELD(field), fallback, min, max, NULL, help                                                                  \
	}
#define NUMBER(section, key, field, fallback, min, max, help)                                                                                        \
	{                                                                                                                                            \
		section, key, INI_DOUBLE, FIELD(field), fallback, min, max, NULL, help                                                               \
	}
#define CHOICE(section, key, field, fallback, choices, help)                                                                                         \
	{                                                                                                                                            \
		section, key, INI_CHOICE, FIELD(field), fallback, 0, 0, choices, help                                                                \
	}
#define FLAG(section, key, field, fallback, help)                                                                                                    \
	{                                                                                                                                            \
		section, key, INI_BOOL, FIELD(field), fallback, 0, 0, NULL, help                                                                     \
	}
#define COLUMN(field, help)                                                                                                                          \
	{                                                                                                                                            \
		"contention", #field, INI_DOUBLE_LIST, FIELD(table.field), "", 0, 1e5, NULL, help                                                    \
	}

enum { MOST_GPUS = 16384 };

static const char *const attention_words[] = {[ATTENTION_FLASH] = "flash", [ATTENTION_MATERIALISED] = "materialised", NULL};
static const char *const all_reduce_words[] = {[REDUCE_AUTO] = "auto", [REDUCE_RING] = "ring", [REDUCE_TREE] = "tree", NULL};
static const char *const runtime_words[] = {[RUNTIME_FRAMEWORK] = "framework", [RUNTIME_ESMOE] = "esmoe", NULL};
static const char *const contention_words[] = {[CONTENTION_MAX_MIN] = "max-min", [CONTENTION_MEASURED] = "measured", NULL};
static const char *const kernels_words[] = {[KERNELS_FUSED] = "fused", [KERNELS_EAGER] = "eager", NULL};

static const struct ini_key keys[] = {
    TEXT("machine", "name", name, "", "name in tables; empty: the file's"),
    WHOLE("machine", "gpus", gpus, NULL, 1, MOST_GPUS, "GPUs in all"),
    WHOLE("machine", "gpus_per_node", gpus_per_node, NULL, 1, 1024, "GPUs of one node; the last node may hold fewer"),
    TEXT("machine", "gpu_name", gpu_name, "GPU", "name of the GPU in traces"),
    TEXT("machine", "routing", routing, "uniform", "where tokens go when --routing is not given"),
    WHOLE("gpu", "sms", sms, NULL, 1, 4096, "streaming multiprocessors"),
    NUMBER("gpu", "hbm_gib", hbm_gib, NULL, 0.001, 1e5, "memory of one GPU, GiB"),
    NUMBER("gpu", "reserved_gib", reserved_gib, "1.5", 0, 1e5, "of it taken by context, NCCL and allocator, GiB"),
    NUMBER("gpu", "bf16_tflops", bf16_tflops, NULL, 0.001, 1e6, "dense bf16 or fp16 peak, TFLOP/s"),
    NUMBER("gpu", "hbm_gbps", hbm_gbps, NULL, 0.1, 1e6, "memory bandwidth, GB/s"),
    NUMBER("gpu", "gemm_efficiency", gemm_efficiency, "0.75", 0.001, 1, "share of bf16_tflops a large GEMM reaches"),
    NUMBER("gpu", "hbm_efficiency", hbm_efficiency, "0.85", 0.001, 1, "share of hbm_gbps a streaming kernel reaches"),
    NUMBER("gpu", "kernel_us", kernel_us, "4", 0, 1e4, "shortest time of one kernel on the device, us"),
    NUMBER("gpu", "nccl_sm_share", nccl_sm_share, "0.12", 0, 1, "share of the SMs a running collective takes"),
    NUMBER("gpu", "cool_speedup", cool_speedup, "1", 1, 2, "speed of matrix products on a GPU that mostly waits over that on a busy one"),
    NUMBER("gpu", "cool_share", cool_share, "0.5", 0, 0.99, "share of the time it may work and runs at that speed"),
    NUMBER("gpu", "cool_head_share", cool_head_share, "0", 0, 1, "what a head, whose products are the largest, gains of that"),
    NUMBER("gpu", "heat_ms", heat_ms, "200", 0.1, 1e5, "within which its speed follows that share, ms"),
    NUMBER("gpu", "copy_gemm_slowdown", copy_gemm_slowdown, "1.03", 1, 2, "time of a GEMM under copies both ways over its time alone"),
    NUMBER("gpu", "copy_up_share", copy_up_share, "0.5", 0, 1, "of it caused by uploads alone"),
    NUMBER("gpu", "copy_down_share", copy_down_share, "0", 0, 1, "and by downloads alone, at least what uploads leave"),
    NUMBER("gpu", "copy_mixer_share", copy_mixer_share, "1", 0, 4, "what copies cost a mixer over what they cost a GEMM"),
    NUMBER("gpu", "copy_exposed_us", copy_exposed_us, "0", 0, 1e6, "a GEMM loses no more time to copies than one that takes that, us; 0: no limit"),
    NUMBER("pcie", "h2d_gbps", h2d_gbps, NULL, 0.01, 1e5, "upload alone, GB/s"),
    NUMBER("pcie", "d2h_gbps", d2h_gbps, NULL, 0.01, 1e5, "download alone, GB/s"),
    NUMBER("pcie", "duplex_gbps", duplex_gbps, NULL, 0.01, 1e5, "both directions together on one GPU's link, GB/s"),
    NUMBER("pcie", "root_gbps", root_gbps, "0", 0, 1e5, "one direction of a root complex, GB/s; 0: no limit"),
    WHOLE("pcie", "gpus_per_root", gpus_per_root, "1", 1, 1024, "GPUs behind one root complex"),
    NUMBER("pcie", "latency_us", pcie_latency_us, "10", 0, 1e6, "of one copy, us"),
    FLAG("pcie", "peer", pcie_peer, "false", "without NVLink GPUs reach each other over PCIe; otherwise through host memory"),
    NUMBER("nvlink", "gbps", nvlink_gbps, "0", 0, 1e5, "one direction of one GPU, GB/s; 0: none, PCIe carries the collectives"),
    NUMBER("nvlink", "efficiency", nvlink_efficiency, "0.8", 0.001, 1, "share of it NCCL reaches"),
    NUMBER("nvlink", "one_way", nvlink_one_way, "1", 0.5, 1, "bytes sent or received alone count as so many both ways at once"),
    NUMBER("nvlink", "stream_share", nvlink_stream_share, "0", 0, 0.95, "of its speed that a collective loses to kernels which stream through HBM"),
    NUMBER("nvlink", "latency_us", nvlink_latency_us, "20", 0, 1e6, "of one collective inside a node, us"),
    NUMBER("nvlink", "hop_us", nvlink_hop_us, "0", 0, 1e6, "of each message of it that waits for another, us"),
    FLAG("nvlink", "mesh", nvlink_mesh, "false", "a link to each other GPU of the node, gbps together; otherwise a switch"),
    NUMBER("nic", "gbps", nic_gbps, "0", 0, 1e5, "one direction of one node, all adapters, GB/s; 0: none"),
    NUMBER("nic", "latency_us", nic_latency_us, "30", 0, 1e6, "of one message between nodes, us"),
    WHOLE("nic", "adapters", nic_adapters, "1", 1, 1024, "adapters of a node, each for as many GPUs; 1: all adapters serve all GPUs"),
    WHOLE("nic", "window", nic_window, "8", 1, 65536, "messages of an all-to-all one GPU has in flight between nodes"),
    WHOLE("fabric", "leaf_nodes", fabric_leaf_nodes, "0", 0, 65536, "nodes below one leaf switch; 0: one switch for all"),
    NUMBER("fabric", "oversubscription", fabric_oversubscription, "1", 1, 1000, "a leaf switch's downlinks over its uplinks"),
    FLAG("fabric", "rails", fabric_rails, "false", "a leaf switch for each adapter of its nodes (rail-optimised)"),
    WHOLE("host", "cores", cores, NULL, 1, 65536, "CPU cores of one node"),
    NUMBER("host", "dram_gib", dram_gib, NULL, 0.001, 1e6, "memory of one node, GiB"),
    NUMBER("host", "dram_reserved_gib", dram_reserved_gib, "16", 0, 1e6, "of it taken by system and framework, GiB"),
    NUMBER("host", "dram_gbps", dram_gbps, NULL, 0.01, 1e5, "memory bandwidth reached, GB/s"),
    NUMBER("host", "adam_gparams_per_s", adam_gparams_per_s, NULL, 1e-6, 1e5, "CPU Adam of one node with adam_threads, billion parameters/s"),
    WHOLE("host", "adam_threads", adam_threads, NULL, 1, 65536, "CPU threads of the optimizer of one node"),
    NUMBER("host", "adam_alone_gparams_per_s", adam_alone_gparams_per_s, "0", 0, 10000,
           "what tables say of CPU Adam holds where it is as fast as this alone; 0: not known"),
    NUMBER("host", "adam_share", adam_share, "1", LEAST_PACE, MOST_PACE,
           "speed of CPU Adam on the memory there is over that of these rates and tables"),
    NUMBER("host", "adam_pace", adam_pace, "1", LEAST_PACE, MOST_PACE, "its speed in training over what its updates are planned with"),
    NUMBER("host", "adam_slowest", adam_slowest, "1", LEAST_PACE, 1, "alone, when calibration saw it slowest, over the usual"),
    NUMBER("host", "adam_fastest", adam_fastest, "1", 1, MOST_PACE, "and when it saw it fastest"),
    NUMBER("host", "adam_bytes_per_param", adam_bytes_per_param, "30", 1, 1000, "memory traffic of one parameter's update, bytes"),
    NUMBER("host", "stream_cores", stream_cores, "0", 0, 64, "CPU cores a running stream of a virtual GPU keeps busy; 0: the GPUs are real"),
    NUMBER("ssd", "gb", ssd_gb, "0", 0, 1e9, "capacity of one node's SSDs, GB; 0: none"),
    NUMBER("ssd", "read_gbps", ssd_read_gbps, "0", 0, 1e5, "reading alone, GB/s"),
    NUMBER("ssd", "write_gbps", ssd_write_gbps, "0", 0, 1e5, "writing alone, GB/s"),
    NUMBER("ssd", "mixed_gbps", ssd_mixed_gbps, "0", 0, 1e5, "reads and writes together, GB/s"),
    NUMBER("ssd", "latency_us", ssd_latency_us, "100", 0, 1e6, "of one request, us"),
    NUMBER("ssd", "cores", ssd_cores, "0", 0, 1, "CPU cores that a running read or write keeps busy"),
    NUMBER("software", "launch_us", launch_us, "5", 0, 1e6, "host time to launch one kernel, us"),
    NUMBER("software", "sync_us", sync_us, "10", 0, 1e6, "from the end of a stage to the host that waited for it going on, us"),
    NUMBER("software", "sync_all_us", sync_all_us, "0", 0, 1e6, "the same after several GPUs exchanged counts, us; 0: sync_us"),
    NUMBER("software", "first_us", first_us, "0", 0, 1e6, "so much longer takes the first launch after a wait, us"),
    NUMBER("software", "launch_adam_us", launch_adam_us, "0", 0, 1e6, "to launch one kernel while CPU Adam works beside it, us; 0: launch_us"),
    NUMBER("software", "sync_adam_us", sync_adam_us, "0", 0, 1e6, "to go on after a stage while CPU Adam works beside it, us; 0: sync_us"),
    NUMBER("software", "first_adam_us", first_adam_us, "0", 0, 1e6, "first_us while CPU Adam works beside it, us; 0: first_us"),
    NUMBER("software", "event_us", event_us, "2", 0, 1e6, "a stream waits for another's event, us"),
    NUMBER("software", "next_us", next_us, "0", 0, 1e6, "a compute stream goes on to its next stage, us"),
    NUMBER("software", "wake_us", wake_us, "0", 0, 1e6, "a stream goes on after waking another that waited for it, us"),
    CHOICE("software", "runtime", runtime, "framework", runtime_words, "whose rules memory follows: a framework's, or of esmoe run"),
    CHOICE("software", "kernels", kernels, "fused", kernels_words, "eager: one kernel per framework operator"),
    CHOICE("software", "attention", attention, "flash", attention_words, "materialised: the scores go through HBM"),
    CHOICE("software", "all_reduce", all_reduce, "auto", all_reduce_words, "algorithm of reductions and gathers; auto: the faster"),
    WHOLE("software", "element_bytes", element_bytes, "2", 2, 4, "bytes of a parameter and an activation on the device, 2 or 4"),
    WHOLE("software", "state_bytes_gpu", state_bytes_gpu, "16", 14, 64, "bytes of state a parameter in HBM under the GPU optimizer"),
    FLAG("software", "pinned_pow2", pinned_pow2, "false", "the allocator rounds each pinned block up to a power of two"),
    FLAG("software", "pinned_master", pinned_master, "false", "fp32 master weights are pinned too"),
    WHOLE("software", "baseline_microbatch", baseline_microbatch, "0", 0, 65536, "sequences a micro-batch of padded systems at most; 0: what fits"),
    WHOLE("software", "offload_microbatch", offload_microbatch, "0", 0, 65536, "the same with experts outside HBM"),
    CHOICE("contention", "rule", contention, "max-min", contention_words, "how users of host DRAM share it"),
    {"contention", "threads", INI_DOUBLE_LIST, FIELD(table.threads), "", 0, 65536, NULL, "rows: Adam threads, ascending from 0"},
    COLUMN(adam, "Adam alone, GB/s of DRAM traffic"),
    COLUMN(adam_u, "Adam under one upload"),
    COLUMN(adam_d, "Adam under one download"),
    COLUMN(adam_ud, "Adam under both on one GPU"),
    COLUMN(adam_uu, "Adam under two GPUs' uploads"),
    COLUMN(adam_dd, "Adam under two GPUs' downloads"),
    COLUMN(adam_uudd, "Adam under both on two GPUs"),
    COLUMN(u_u, "upload alone with Adam, GB/s of each copy"),
    COLUMN(d_d, "download alone with Adam"),
    COLUMN(u_ud, "upload while the same GPU downloads"),
    COLUMN(d_ud, "download while the same GPU uploads"),
    COLUMN(u_uu, "each of two GPUs' uploads"),
    COLUMN(d_dd, "each of two GPUs' downloads"),
    COLUMN(u_uudd, "each upload, both directions on two GPUs"),
    COLUMN(d_uudd, "each download, both directions on two GPUs"),
};

/* What the checks need to say where a value stands. */
struct origin {
	const char *source;
	const char *const *overrides;
};

#define REFUSE(o, section, key, error, ...) ini_refuse("machines", (o)->source, (o)->overrides, section, key, error, __VA_ARGS__)

/* Columns that one GPU cannot measure may be left out. */
static bool needs_two_gpus(const char *column)
{
	return g_str_has_suffix(column, "uu") || g_str_has_suffix(column, "dd");
}

static bool check_table(const struct machine *m, const struct origin *o, GError **error)
{
	const struct ini_doubles *rows = &m->table.threads;
	bool measured = m->contention == CONTENTION_MEASURED;

	if (measured && !rows->n)
		return REFUSE(o, "contention", "threads", error, "none; expected the rows of the table, or contention.rule = max-min");
	for (int i = 0; i < rows->n; i++)
		if (i ? rows->v[i] <= rows->v[i - 1] : rows->v[0] != 0)
			return REFUSE(o, "contention", "threads", error, "%g in place %d; expected ascending numbers from 0", rows->v[i], i + 1);
	for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
		const struct ini_doubles *column = (const struct ini_doubles *)((const char *)m + keys[i].offset);
		bool optional = !measured || needs_two_gpus(keys[i].key);

		if (keys[i].type != INI_DOUBLE_LIST || column->n == rows->n || (optional && !column->n))
			continue;
		return REFUSE(o, "contention", keys[i].key, error, "%d values; expected %d, one for each of contention.threads", column->n, rows->n);
	}
	return true;
}

static bool check_links(const struct machine *m, const struct origin *o, GError **error)
{
	double one = MAX(m->h2d_gbps, m->d2h_gbps), both = m->h2d_gbps + m->d2h_gbps;

	if (m->duplex_gbps < one || m->duplex_gbps > both)
		return REFUSE(o, "pcie", "duplex_gbps", error, "%g; expected from %g, the faster direction alone, to %g, their sum", m->duplex_gbps,
		              one, both);
	if (m->gpus_per_node % m->gpus_per_root)
		return REFUSE(o, "pcie", "gpus_per_root", error, "%d; expected a divisor of machine.gpus_per_node = %d", m->gpus_per_root,
		              m->gpus_per_node);
	if (m->gpus_per_node % m->nic_adapters)
		return REFUSE(o, "nic", "adapters", error, "%d; expected a divisor of machine.gpus_per_node = %d", m->nic_adapters, m->gpus_per_node);
	if (m->fabric_rails && (m->nic_adapters == 1 || !m->fabric_leaf_nodes))
		return REFUSE(o, "fabric", "rails", error, "true; expected nic.adapters > 1 and fabric.leaf_nodes > 0 with it");
	if (m->ssd_gb > 0 && (m->ssd_read_gbps == 0 || m->ssd_write_gbps == 0))
		return REFUSE(o, "ssd", m->ssd_read_gbps == 0 ? "read_gbps" : "write_gbps", error, "0; expected more than 0 with ssd.gb = %g",
		              m->ssd_gb);
	one = (m->ssd_read_gbps + m->ssd_write_gbps) / 2;
	both = m->ssd_read_gbps + m->ssd_write_gbps;
	if (m->ssd_gb > 0 && (m->ssd_mixed_gbps < one || m->ssd_mixed_gbps > both))
		return REFUSE(o, "ssd", "mixed_gbps", error, "%g; expected from %g, their mean, to %g, their sum", m->ssd_mixed_gbps, one, both);
	return true;
}

static bool check_room(const struct machine *m, const struct origin *o, GError **error)
{
	if (m->reserved_gib >= m->hbm_gib)
		return REFUSE(o, "gpu", "reserved_gib", error, "%g; expected less than gpu.hbm_gib = %g", m->reserved_gib, m->hbm_gib);
	if (m->dram_reserved_gib >= m->dram_gib)
		return REFUSE(o, "host", "dram_reserved_gib", error, "%g; expected less than host.dram_gib = %g", m->dram_reserved_gib, m->dram_gib);
	if (m->adam_threads > m->cores)
		return REFUSE(o, "host", "adam_threads", error, "%d; expected at most host.cores = %d", m->adam_threads, m->cores);
	if (machine_nodes(m) > 1 && m->nic_gbps == 0)
		return REFUSE(o, "nic", "gbps", error, "0; expected more than 0 with machine.gpus = %d on %d nodes", m->gpus, machine_nodes(m));
	return true;
}

struct machine *machine_load(const char *source, const char *const *overrides, GError **error)
{
	g_autofree struct machine *read = g_new0(struct machine, 1);
	g_autofree char *name = NULL;
	g_autoptr(machine) m = NULL;
	struct origin o = {source, overrides};

	if (!ini_read("machines", source, keys, G_N_ELEMENTS(keys), overrides, read, &name, error))
		return NULL;
	m = g_steal_pointer(&read);
	if (!*m->name) {
		g_free(m->name);
		m->name = g_steal_pointer(&name);
	}
	if (!check_links(m, &o, error) || !check_room(m, &o, error) || !check_table(m, &o, error) ||
	    !measured_read(source, overrides, &m->measured, error))
		return NULL;
	return g_steal_pointer(&m);
}

void machine_free(struct machine *machine)
{
	if (!machine)
		return;
	ini_clear(keys, G_N_ELEMENTS(keys), machine);
	measured_free(machine->measured);
	g_free(machine);
}

char *machine_ini(const struct machine *machine)
{
	g_autofree char *text = ini_write(keys, G_N_ELEMENTS(keys), machine);
	g_autofree char *measured = machine->measured ? measured_ini(machine->measured) : NULL;
	return measured ? g_strjoin("\n", text, measured, NULL) : g_steal_pointer(&text);
}

int machine_nodes(const struct machine *m)
{
	return (m->gpus + m->gpus_per_node - 1) / m->gpus_per_node;
}

int machine_node_gpus(const struct machine *m, int node)
{
	g_assert(node >= 0 && node < machine_nodes(m));
	return MIN(m->gpus - node * m->gpus_per_node, m->gpus_per_node);
}

int machine_adapter(const struct machine *m, int gpu)
{
	return gpu / m->gpus_per_node * m->nic_adapters + gpu % m->gpus_per_node / (m->gpus_per_node / m->nic_adapters);
}

/* Leaf switches side by side below which the same nodes lie. */
static int rails(const struct machine *m)
{
	return m->fabric_rails ? m->nic_adapters : 1;
}

int machine_leaf(const struct machine *m, int gpu)
{
	if (!m->fabric_leaf_nodes)
		return 0;
	return gpu / m->gpus_per_node / m->fabric_leaf_nodes * rails(m) + (m->fabric_rails ? machine_adapter(m, gpu) % m->nic_adapters : 0);
}

int machine_leaves(const struct machine *m)
{
	return m->fabric_leaf_nodes ? (machine_nodes(m) + m->fabric_leaf_nodes - 1) / m->fabric_leaf_nodes * rails(m) : 0;
}

double machine_pcie_both_gbps(const struct machine *m)
{
	return MIN(MIN(m->h2d_gbps, m->d2h_gbps), m->duplex_gbps / 2);
}

double machine_collective_gbps(const struct machine *m)
{
	return m->nvlink_gbps > 0 ? m->nvlink_gbps * m->nvlink_efficiency : machine_pcie_both_gbps(m);
}

double machine_move_ns(const struct machine *m)
{
	return m->runtime == RUNTIME_ESMOE && m->stream_cores == 0 ? 2 / (m->hbm_gbps * m->hbm_efficiency) : 0;
}

int machine_spare_adam_threads(const struct machine *m)
{
	int others = m->stream_cores > 0 ? 0 : m->gpus_per_node + (m->gpus_per_node > 1 ? 3 : 1);
	return MAX(1, MIN(m->adam_threads, m->cores - others));
}

void contention_mixes(const struct contention_table *t, struct contention_mix mixes[CONTENTION_MIXES])
{
	const struct contention_mix all[] = {
	    {0, 0, {&t->adam, NULL, NULL}},
	    {1, 0, {&t->adam_u, &t->u_u, NULL}},
	    {0, 1, {&t->adam_d, NULL, &t->d_d}},
	    {1, 1, {&t->adam_ud, &t->u_ud, &t->d_ud}},
	    {2, 0, {&t->adam_uu, &t->u_uu, NULL}},
	    {0, 2, {&t->adam_dd, NULL, &t->d_dd}},
	    {2, 2, {&t->adam_uudd, &t->u_uudd, &t->d_uudd}},
	};
	G_STATIC_ASSERT(G_N_ELEMENTS(all) == CONTENTION_MIXES);
	memcpy(mixes, all, sizeof all);
}

/* What threads have alone in a row of the table, where what they have beside copies does not contradict it. */
static double adam_alone_gbps(const struct contention_table *t, int row)
{
	struct contention_mix mixes[CONTENTION_MIXES];
	struct monotone_point points[CONTENTION_MIXES];
	double rate[CONTENTION_MIXES];
	int n = 0;
	contention_mixes(t, mixes);
	for (int i = 0; i < CONTENTION_MIXES; i++)
		if (mixes[i].rates[0]->n >= t->threads.n) {
			rate[n] = mixes[i].rates[0]->v[row];
			points[n] = (struct monotone_point){{t->threads.v[row], mixes[i].up, mixes[i].down}, &rate[n]};
			n++;
		}
	monotone_pool(points, n);
	return rate[0];
}

double machine_adam_gparams_per_s(const struct machine *m, int threads)
{
	const struct ini_doubles *rows = &m->table.threads, *adam = &m->table.adam;
	double t = threads > 0 && threads < m->adam_threads ? threads : m->adam_threads;
	int i = 1;

	/* 5 t / (4 t + T) of the rate on all T threads: within 5 % of the curve measured on 1 to 32 threads of two Xeons */
	if (m->contention != CONTENTION_MEASURED || rows->n < 2 || adam->n != rows->n)
		return m->adam_share * m->adam_pace * m->adam_gparams_per_s * 5 * t / (4 * t + m->adam_threads);
	while (i < rows->n - 1 && rows->v[i] < t)
		i++;
	t = MIN(t, rows->v[rows->n - 1]);
	const double fewer = rows->v[i - 1] > 0 ? adam_alone_gbps(&m->table, i - 1) : 0, more = adam_alone_gbps(&m->table, i);
	const double gbps = fewer + (more - fewer) * (t - rows->v[i - 1]) / (rows->v[i] - rows->v[i - 1]);
	return m->adam_share * m->adam_pace * gbps / m->adam_bytes_per_param;
}
