/* g_autoptr for structs without a typedef: after AUTOPTR(noun), a g_autoptr(noun) is a struct noun * that noun_free frees when its block ends. */
#pragma once

#include <glib.h>

/* GLib's own G_DEFINE_AUTOPTR_CLEANUP_FUNC pastes the type's name, so it must be one word; these are the two names it would define. */
#define AUTOPTR(noun)                                                                                                                                \
	typedef struct noun *_GLIB_AUTOPTR_TYPENAME(noun);                                                                                           \
	static inline G_GNUC_UNUSED void _GLIB_AUTOPTR_FUNC_NAME(noun)(struct noun * *p)                                                             \
	{                                                                                                                                            \
		noun##_free(*p);                                                                                                                     \
	}

/* `autoclear(noun) x = {0};` is a struct noun that noun_clear clears when its block ends. */
#define autoclear(noun) __attribute__((cleanup(noun##_clear))) struct noun
