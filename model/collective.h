/* Collectives among a group of GPUs by their algorithms: the bytes that one member puts on each link, the messages that follow one another, and from
 * these the time alone (alpha-beta) and the demands on links that others share.
 *
 *     time = latency of a collective + messages one after another x their latency + the slowest link's bytes / its rate
 *
 * `bytes` is the full vector of reductions and gathers, and what one member sends in all, its own part included, of an all-to-all. */
#pragma once

#include "machine.h"

/* The GPUs first, first + stride, ...: `size` of them. */
struct ranks {
	int first, stride, size;
};

enum collective_op { OP_ALL_REDUCE, OP_REDUCE_SCATTER, OP_ALL_GATHER, OP_ALL_TO_ALL, N_COLLECTIVE_OPS };

/* Where a group lies: members in its fullest node, nodes that it touches, nodes of it below one leaf switch; for what one node, or one leaf, sends or
 * receives, the GB/s that it reaches. */
struct group_shape {
	int size, local, nodes, leaf_nodes;
	int adapters;     /* of a node that its members use */
	double near_gbps; /* of one member inside its node; 0 with one member a node */
	double far_gbps;  /* of the members of one node over its adapters; 0 with one node */
	double leaf_gbps; /* of the members below one leaf switch over its uplinks; 0: unlimited */
};
void group_shape(const struct machine *m, const struct ranks *ranks, struct group_shape *out);

/* One member's part: bytes in one direction, and latencies that follow one another. */
struct crossing {
	double near_bytes, far_bytes, leaf_bytes; /* inside the node; through the adapters; of those through the leaf's uplinks */
	double root_bytes;                        /* of the near ones, through the root complex: where there is no NVLink */
	double copy_bytes;                        /* through HBM before anything is sent: strided copies */
	double near_steps, far_steps;
};

/* Ring: neighbour to neighbour, one ring an adapter (Patarasuk and Yuan 2009). Tree: two binary trees over the nodes, each with half of the bytes and
 * pipelined (Sanders, Speck and Traeff 2009), for reductions; recursive doubling for gathers (Thakur, Rabenseifner and Gropp 2005); rings inside
 * nodes. Pairwise: a message to every other member. Gather and rail: the two halves of the hierarchical all-to-all (Tutel, arXiv 2206.03382, section
 * 4.3), first inside the nodes, then between members of equal place; each copies with a stride first. */
enum algorithm { ALGORITHM_RING, ALGORITHM_TREE, ALGORITHM_PAIRWISE, ALGORITHM_GATHER, ALGORITHM_RAIL, N_ALGORITHMS };
void collective_crossing(const struct machine *m, int op, int algorithm, const struct ranks *ranks, double bytes, struct crossing *out);
/* Latencies one after another of that many messages of an all-to-all between nodes. */
double messages_in_turn(const struct machine *m, double messages);
double crossing_ns(const struct machine *m, const struct group_shape *shape, const struct crossing *x);

/* The time alone with the machine's choice of algorithm for reductions and gathers (software.all_reduce), and pairwise for an all-to-all. */
double collective_ns(const struct machine *m, int op, const struct ranks *ranks, double bytes);

/* Bytes of one message of an all-to-all in which a member sends `bytes` in all: S / n, and S m / n between nodes when it is hierarchical. */
double all_to_all_message_bytes(const struct machine *m, const struct ranks *ranks, double bytes, bool hierarchical);

/* GB/s that one member asks of each link while a large collective runs alone. */
struct link_rates {
	double near, far, leaf, root;
};
void collective_rates(const struct machine *m, int op, int algorithm, const struct ranks *ranks, struct link_rates *out);
