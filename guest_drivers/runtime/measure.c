// SPDX-License-Identifier: MIT
/* The marks of the measured part.  A host without the port ignores them, as any unused port. */
#include "cpu.h"
#include "runtime.h"

#define MEASUREMENT_END		0
#define MEASUREMENT_BEGIN	1

void measure_begin(void)
{
	outb(MEASUREMENT_PORT, MEASUREMENT_BEGIN);
}

void measure_end(void)
{
	outb(MEASUREMENT_PORT, MEASUREMENT_END);
}
