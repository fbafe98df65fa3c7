/* Colours a colour-blind reader can tell apart: after Okabe and Ito (2008), with greys. Stage kinds share a colour by what they do; the pass is its
 * shade. */
#pragma once

#include "legend.h"
#include "model/stage.h"

#define PALETTE_SERIES 8
#define PALETTE_FAMILIES 11
#define PALETTE_IDLE 0xEDEDEDu
#define PALETTE_TEXT 0x000000u
#define PALETTE_FAINT 0x666666u

/* The colour of a stage: the family's own going forward, lighter in recomputation, darker going backward. Updates have the family's own. */
uint32_t palette_stage(int kind, int pass);
/* Kinds with the same family have the same colour. */
int palette_family(int kind);
uint32_t palette_family_rgb(int family, int pass);
/* Black or white, whichever is read better on it. */
uint32_t palette_ink(uint32_t rgb);
/* `share` of white, or of black when negative, mixed in. */
uint32_t palette_shade(uint32_t rgb, double share);
/* The i-th line or class of a figure, taken again from the first after PALETTE_SERIES. */
uint32_t palette_series(int i);
/* Gnuplot's point type of the i-th line; another cycle than the colours', so that more than eight lines still differ. */
int palette_marker(int i);

/* Which kinds occurred in which pass. */
struct palette_use {
	bool stage[N_STAGE_KINDS][N_STAGE_PASSES];
};
/* One entry a family that was used, named after its used kinds, with a swatch for each pass; then what the shades mean. */
void palette_legend(const struct palette_use *use, struct legend *legend);
/* "all-to-all": the kind's name as figures write it. Owned by the caller. */
char *palette_kind_label(int kind);
