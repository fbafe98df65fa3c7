/* The door: a table of subcommands. It finds the one that was asked for, prints the error it returns as one line and turns its code into the exit
 * status. Everything else is done by the commands in their rooms. */
#include "model/command.h"
#include "model/error.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct command {
	const char *name;
	bool (*run)(int argc, char **argv, GError **error);
	const char *help;
};

static const struct command commands[] = {
    {"models", cmd_models, "list the networks that can be named with -m"},
    {"machines", cmd_machines, "list the machines that can be named with -M"},
    {"policies", cmd_policies, "list the training systems that can be named with -p"},
    {"show", cmd_show, "print a network, machine or policy as an .ini to edit"},
    {"predict", cmd_predict, "one configuration: tokens/s, what bounds it, memory"},
    {"compare", cmd_compare, "several policies side by side"},
    {"sweep", cmd_sweep, "a what-if grid over GPUs and experts, to a CSV"},
    {"run", cmd_run, "train one configuration for real on this machine's devices"},
    {"calibrate", cmd_calibrate, "measure this machine, to predict with"},
    {"validate", cmd_validate, "simulate recorded runs again and compare"},
    {"trace", cmd_trace, "info, convert, diff and critical path of trace files"},
    {"plot", cmd_plot, "timeline, throughput, breakdown, memory and learning figures"},
};

/* fprintf errors are sticky in the stream, so one look at the very end sees a full disk, also after GOption has printed a --help and called exit. */
static void close_stdout(void)
{
	bool failed = ferror(stdout);
	if ((fclose(stdout) != 0 || failed) && errno != EPIPE) {
		fprintf(stderr, "esmoe: standard output: %s\n", failed && errno == 0 ? "write failed" : g_strerror(errno));
		_exit(ESMOE_ERROR_INPUT);
	}
}

/* A closed standard stream would be handed to the next file that is opened, and results printed into it. */
static void open_standard_streams(void)
{
	for (int fd = 0; fd <= 2; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY) < 0)
			_exit(ESMOE_ERROR_INPUT);
}

static int fail(const GError *error)
{
	g_autofree char *line = g_strdelimit(g_strdup(error->message), "\n\r\t\v\f\033", ' ');
	fprintf(stderr, "esmoe: %s\n", g_strchomp(line));
	if (error->domain == ESMOE_ERROR)
		return error->code;
	return error->domain == G_OPTION_ERROR ? ESMOE_ERROR_USAGE : ESMOE_ERROR_INPUT;
}

static int help(void)
{
	printf("Predicts Mixture-of-Experts training beyond GPU memory.\n\nUsage: esmoe COMMAND [OPTION...]\n\nCommands:\n");
	for (size_t i = 0; i < G_N_ELEMENTS(commands); i++)
		printf("  %-10s%s\n", commands[i].name, commands[i].help);
	printf("\nEach has its own --help. Example:\n  esmoe compare -m gpt-moe-l -M a100-40g-x4 -p es-moe,tutel --experts 16\n");
	return EXIT_SUCCESS;
}

static int unknown(const char *name)
{
	const char *names[G_N_ELEMENTS(commands) + 1] = {0};
	for (size_t i = 0; i < G_N_ELEMENTS(commands); i++)
		names[i] = commands[i].name;
	const char *nearest = nearest_word(name, names);
	g_autoptr(GError) error = NULL;
	if (nearest)
		error = g_error_new(ESMOE_ERROR, ESMOE_ERROR_USAGE, "unknown command '%s': did you mean '%s'?", name, nearest);
	else
		error = g_error_new(ESMOE_ERROR, ESMOE_ERROR_USAGE, "unknown command '%s': esmoe --help lists them", name);
	return fail(error);
}

int main(int argc, char **argv)
{
	open_standard_streams();
	setlocale(LC_CTYPE, ""); /* file names; numbers stay as the C locale writes them */
	atexit(close_stdout);
	const char *name = argc > 1 ? argv[1] : "";
	if (g_str_equal(name, "--help") || g_str_equal(name, "-h") || g_str_equal(name, "help"))
		return help();
	if (g_str_equal(name, "--version")) {
		printf("esmoe %s\n", ESMOE_VERSION);
		return EXIT_SUCCESS;
	}
	if (argc < 2) {
		g_autoptr(GError) error = g_error_new(ESMOE_ERROR, ESMOE_ERROR_USAGE, "no command given: esmoe --help lists them");
		return fail(error);
	}
	for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
		if (!g_str_equal(name, commands[i].name))
			continue;
		g_autoptr(GError) error = NULL;
		g_autofree char *program = g_strconcat("esmoe ", name, NULL);
		g_set_prgname(program);
		return commands[i].run(argc - 1, argv + 1, &error) ? EXIT_SUCCESS : fail(error);
	}
	return unknown(name);
}
