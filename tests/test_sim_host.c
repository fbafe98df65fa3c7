/* What the host costs in virtual time: waits, what they take beside CPU Adam, and launches after them. */
#include "bed.h"
#include "model/measured.h"

/* Every launcher waits for the counts, and goes on a synchronisation later; a launcher that is already later stays where it is. */
Test(sim_host, launchers_go_on_after_the_gate_and_its_synchronisation)
{
	struct bed bed;
	GError *error = NULL;
	struct machine m = machine_by_hand(2, 2, 0, 200);
	m.launch_us = 5;
	m.sync_us = 10;
	bed_init(&bed, m, &(struct sim_options){.no_event = true});
	backend_free(bed.b);
	struct routing *routing = routing_new("uniform", 1, &error);
	bed.b = sim_new(&bed.m, bed.r, routing, &(struct sim_options){.no_event = true});
	stage_id counts = add(&bed, on_gpu(0, STREAM_COLLECTIVE, 2000, STAGE_NONE, STAGE_NONE));
	for (int i = 0; i < 10; i++)
		add(&bed, on_gpu(1, STREAM_COMPUTE, 1, STAGE_NONE, STAGE_NONE));
	uint32_t tokens[2][4], total = 0;
	struct gate gate = {.counts = counts, .experts = 4, .top_k = 1, .tokens_per_gpu = 1000};
	cr_assert(backend_loads(bed.b, &gate, tokens[0], &error));
	for (int e = 0; e < 4; e++)
		total += tokens[1][e];
	cr_assert_eq(total, 1000);
	stage_id zero = add(&bed, on_gpu(0, STREAM_COMPUTE, 100, STAGE_NONE, STAGE_NONE));
	stage_id one = add(&bed, on_gpu(1, STREAM_COMPUTE, 100, STAGE_NONE, STAGE_NONE));
	await(&bed, zero);
	await(&bed, one);
	spans(&bed, counts, 5000, 7000);
	spans(&bed, zero, 22000, 22100); /* 7 + 10 + 5 us */
	spans(&bed, one, 55000, 55100);  /* its own 50 + 5 us */
	bed_clear(&bed);
	routing_free(routing);
}

/* Adam of 100 us on the first node. Beside it a wait takes 40 us and a launch 7; after it, and on the other node, 10 and 5. */
Test(sim_host, beside_cpu_adam_the_host_takes_longer_to_go_on_and_to_launch)
{
	struct bed bed;
	GError *error = NULL;
	struct machine m = machine_by_hand(2, 1, 0, 200);
	m.launch_us = 5;
	m.launch_adam_us = 7;
	m.sync_us = 10;
	m.sync_adam_us = 40;
	bed_init(&bed, m, &(struct sim_options){.no_event = true});
	stage_id adam = add(&bed, adam_on(&bed.m, 0, 0, 100000, STAGE_NONE));
	stage_id asked = add(&bed, on_gpu(0, STREAM_COMPUTE, 2000, STAGE_NONE, STAGE_NONE));
	cr_assert(backend_wait(bed.b, asked, &error));
	stage_id beside = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	stage_id there = add(&bed, on_gpu(1, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	cr_assert(backend_wait(bed.b, adam, &error));
	stage_id after = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	await(&bed, after);
	spans(&bed, asked, 5000, 7000);     /* launched before Adam began */
	spans(&bed, beside, 54000, 55000);  /* 7 + 40 + 7 */
	spans(&bed, there, 22000, 23000);   /* 7 + 10 + 5 */
	spans(&bed, after, 115000, 116000); /* 100 + 10 + 5 */
	bed_clear(&bed);
}

/* It starts with its first kernel, after 5 us, or 7 beside Adam, and has its 30 us after the 60 of its tokens, or 84; behind computation nothing of
 * that shows. */
Test(sim_host, an_all_to_all_has_its_time_after_its_launch)
{
	const nsec_t expected[3][2] = {{5000, 90000}, {105000, 135000}, {13000, 120000}};
	struct machine m = machine_by_hand(1, 1, 0, 200);
	m.launch_us = 5;
	m.launch_adam_us = 7;
	g_autoptr(measured) tables = measured_new();
	double late_us[] = {50, 70};
	measured_add(&tables->table[MEASURED_LATE][PASS_FORWARD], 1000, &late_us[0], 1);
	measured_add(&tables->table[MEASURED_LATE][PASS_FORWARD], 3000, &late_us[1], 1);
	m.measured = tables;
	for (int i = 0; i < 3; i++) {
		struct bed bed;
		GError *error = NULL;
		stage_id before = STAGE_NONE;
		bed_init(&bed, m, &(struct sim_options){.no_event = true});
		if (i == 1)
			before = add(&bed, on_gpu(0, STREAM_COMPUTE, 100000, STAGE_NONE, STAGE_NONE));
		if (i == 2) {
			add(&bed, adam_on(&bed.m, 0, 0, 200000, STAGE_NONE));
			cr_assert(backend_wait(bed.b, add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE)), &error));
		}
		struct stage st = on_gpu(0, STREAM_COLLECTIVE, 30000, before, STAGE_NONE);
		st.kind = STAGE_ALL_TO_ALL;
		st.tokens = 2000;
		stage_id exchange = add(&bed, st);
		await(&bed, exchange);
		spans(&bed, exchange, expected[i][0], expected[i][1]);
		bed_clear(&bed);
	}
}

/* After a wait a single kernel is launched 20 us late; of two the second is, and ends with its half; what follows is not. */
Test(sim_host, the_first_launch_after_a_wait_takes_longer)
{
	for (uint32_t kernels = 1; kernels <= 2; kernels++) {
		struct bed bed;
		GError *error = NULL;
		struct machine m = machine_by_hand(1, 1, 0, 200);
		m.launch_us = 5;
		m.sync_us = 10;
		m.first_us = 20;
		bed_init(&bed, m, &(struct sim_options){.no_event = true});
		stage_id asked = add(&bed, on_gpu(0, STREAM_COMPUTE, 2000, STAGE_NONE, STAGE_NONE));
		cr_assert(backend_wait(bed.b, asked, &error));
		struct stage st = on_gpu(0, STREAM_COMPUTE, 4000, STAGE_NONE, STAGE_NONE);
		st.n_kernels = kernels;
		stage_id first = add(&bed, st), next = add(&bed, on_gpu(0, STREAM_UPLOAD, 1000, STAGE_NONE, STAGE_NONE));
		await(&bed, first);
		await(&bed, next);
		spans(&bed, asked, 5000, 7000);
		if (kernels == 1)
			spans(&bed, first, 42000, 46000); /* 7 + 10 + 5 + 20 */
		else
			spans(&bed, first, 22000, 49000); /* 7 + 10 + 5; 7 + 10 + 2 * 5 + 20, and 2 */
		spans(&bed, next, kernels == 1 ? 47000 : 52000, kernels == 1 ? 48000 : 53000);
		bed_clear(&bed);
	}
}

Test(sim_host, an_exchange_of_counts_has_its_own_synchronisation)
{
	const double all_us[] = {0, 25};
	for (int i = 0; i < 2; i++) {
		struct bed bed;
		GError *error = NULL;
		struct machine m = machine_by_hand(1, 1, 0, 200);
		m.sync_us = 10;
		m.sync_all_us = all_us[i];
		bed_init(&bed, m, &bare);
		backend_free(bed.b);
		struct routing *routing = routing_new("uniform", 1, &error);
		bed.b = sim_new(&bed.m, bed.r, routing, &(struct sim_options){.no_event = true});
		struct stage st = on_gpu(0, STREAM_COLLECTIVE, 2000, STAGE_NONE, STAGE_NONE);
		st.kind = STAGE_COUNTS;
		struct gate gate = {.counts = add(&bed, st), .experts = 1, .top_k = 1, .tokens_per_gpu = 1000};
		uint32_t tokens;
		cr_assert(backend_loads(bed.b, &gate, &tokens, &error));
		stage_id next = add(&bed, on_gpu(0, STREAM_COMPUTE, 100, STAGE_NONE, STAGE_NONE));
		await(&bed, next);
		nsec_t start = i ? 27000 : 12000; /* 0: as after a gate */
		spans(&bed, next, start, start + 100);
		bed_clear(&bed);
		routing_free(routing);
	}
}
