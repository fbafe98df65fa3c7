/* Two dozen kinds of stages are more than colours that differ, so kinds that do alike share one: a family. The families take Okabe and Ito's eight
 * colours, whose differences survive the common forms of colour blindness; the pass is told by lightness, which survives all of them. */
#include "palette.h"

#include <math.h>

enum family {
	FAMILY_ENDS,
	FAMILY_MIXER,
	FAMILY_ROUTING,
	FAMILY_EXPERT,
	FAMILY_FFN,
	FAMILY_COLLECTIVE,
	FAMILY_UPLOAD,
	FAMILY_DOWNLOAD,
	FAMILY_OPTIMIZER,
	FAMILY_SSD_READ,
	FAMILY_SSD_WRITE,
	N_FAMILIES
};

G_STATIC_ASSERT(N_FAMILIES == PALETTE_FAMILIES);

static const uint32_t family_rgb[N_FAMILIES] = {
    [FAMILY_ENDS] = 0xC8C8C8,      [FAMILY_MIXER] = 0x56B4E9,      [FAMILY_ROUTING] = 0xF0E442,   [FAMILY_EXPERT] = 0x0072B2,
    [FAMILY_FFN] = 0x332288,       [FAMILY_COLLECTIVE] = 0xCC79A7, [FAMILY_UPLOAD] = 0x009E73,    [FAMILY_DOWNLOAD] = 0xE69F00,
    [FAMILY_OPTIMIZER] = 0xD55E00, [FAMILY_SSD_READ] = 0x444444,   [FAMILY_SSD_WRITE] = 0x8C6D46,
};

static const uint8_t family_of_kind[N_STAGE_KINDS] = {
    [STAGE_EMBED] = FAMILY_ENDS,
    [STAGE_MIXER] = FAMILY_MIXER,
    [STAGE_GATE] = FAMILY_ROUTING,
    [STAGE_PERMUTE] = FAMILY_ROUTING,
    [STAGE_EXPERT] = FAMILY_EXPERT,
    [STAGE_COMBINE] = FAMILY_ROUTING,
    [STAGE_FFN] = FAMILY_FFN,
    [STAGE_SHARED] = FAMILY_FFN,
    [STAGE_HEAD] = FAMILY_ENDS,
    [STAGE_ADAM_GPU] = FAMILY_OPTIMIZER,
    [STAGE_ACCUMULATE_GPU] = FAMILY_OPTIMIZER,
    [STAGE_COUNTS] = FAMILY_COLLECTIVE,
    [STAGE_ALL_TO_ALL] = FAMILY_COLLECTIVE,
    [STAGE_ALL_REDUCE] = FAMILY_COLLECTIVE,
    [STAGE_REDUCE_SCATTER] = FAMILY_COLLECTIVE,
    [STAGE_ALL_GATHER] = FAMILY_COLLECTIVE,
    [STAGE_UPLOAD] = FAMILY_UPLOAD,
    [STAGE_DOWNLOAD] = FAMILY_DOWNLOAD,
    [STAGE_ADAM] = FAMILY_OPTIMIZER,
    [STAGE_ACCUMULATE] = FAMILY_OPTIMIZER,
    [STAGE_SSD_READ] = FAMILY_SSD_READ,
    [STAGE_SSD_WRITE] = FAMILY_SSD_WRITE,
};

static const double pass_shade[N_STAGE_PASSES] = {[PASS_RECOMPUTE] = 0.5, [PASS_BACKWARD] = -0.35};

int palette_family(int kind)
{
	return family_of_kind[kind];
}

uint32_t palette_shade(uint32_t rgb, double share)
{
	double target = share > 0 ? 255 : 0, amount = fabs(share);
	uint32_t out = 0;

	for (int shift = 16; shift >= 0; shift -= 8) {
		double channel = rgb >> shift & 255;

		out |= (uint32_t)lround(channel + (target - channel) * amount) << shift;
	}
	return out;
}

uint32_t palette_family_rgb(int family, int pass)
{
	return palette_shade(family_rgb[family], pass_shade[pass]);
}

uint32_t palette_stage(int kind, int pass)
{
	return palette_family_rgb(family_of_kind[kind], pass);
}

uint32_t palette_ink(uint32_t rgb)
{
	double luma = 0.299 * (rgb >> 16 & 255) + 0.587 * (rgb >> 8 & 255) + 0.114 * (rgb & 255);

	return luma > 130 ? 0x000000 : 0xFFFFFF;
}

uint32_t palette_series(int i)
{
	static const uint32_t series[PALETTE_SERIES] = {0x0072B2, 0xD55E00, 0x009E73, 0xCC79A7, 0xE69F00, 0x56B4E9, 0x000000, 0xBBBBBB};

	return series[i % PALETTE_SERIES];
}

int palette_marker(int i)
{
	static const int markers[] = {7, 5, 9, 11, 13, 15, 6, 4, 8, 10, 12}; /* filled shapes, then open ones */

	return markers[i % (int)G_N_ELEMENTS(markers)];
}

char *palette_kind_label(int kind)
{
	return g_strdelimit(g_strdup(stage_kind_name(kind)), "_", '-');
}

static void family_entry(const struct palette_use *use, int family, struct legend *legend)
{
	g_autoptr(GString) name = g_string_new(NULL);
	uint32_t rgb[LEGEND_SWATCHES];
	bool pass_used[N_STAGE_PASSES] = {false};
	int n = 0;

	for (int kind = 0; kind < N_STAGE_KINDS; kind++) {
		bool used = false;

		if (family_of_kind[kind] != family)
			continue;
		for (int pass = 0; pass < N_STAGE_PASSES; pass++) {
			used |= use->stage[kind][pass];
			/* an update looks like a forward pass: one swatch */
			pass_used[pass == PASS_UPDATE ? PASS_FORWARD : pass] |= use->stage[kind][pass];
		}
		if (used) {
			g_autofree char *label = palette_kind_label(kind);

			g_string_append_printf(name, "%s%s", name->len ? ", " : "", label);
		}
	}
	for (int pass = 0; pass < N_STAGE_PASSES; pass++)
		if (pass_used[pass])
			rgb[n++] = palette_family_rgb(family, pass);
	if (n)
		legend_add(legend, name->str, rgb, n);
}

/* One entry for all colours: which shade is which pass. */
static void shade_entry(const struct palette_use *use, struct legend *legend)
{
	g_autoptr(GString) name = g_string_new("any colour: ");
	uint32_t rgb[LEGEND_SWATCHES];
	int n = 0;

	for (int pass = 0; pass < PASS_UPDATE; pass++) {
		bool used = false;

		for (int kind = 0; kind < N_STAGE_KINDS; kind++)
			used |= use->stage[kind][pass];
		if (!used)
			continue;
		g_string_append_printf(name, "%s%s", n ? ", " : "", stage_pass_name(pass));
		rgb[n++] = palette_shade(0x999999, pass_shade[pass]);
	}
	if (n > 1)
		legend_add(legend, name->str, rgb, n);
}

void palette_legend(const struct palette_use *use, struct legend *legend)
{
	for (int family = 0; family < N_FAMILIES; family++)
		family_entry(use, family, legend);
	shade_entry(use, legend);
}
