/* SPDX-License-Identifier: MIT */
/* The interrupt vectors, for C and assembly. */
#ifndef VECTORS_H
#define VECTORS_H

#define VECTOR_IRQ_BASE		32	/* below: exceptions */
#define VECTOR_SPURIOUS		63	/* the local APIC wants the low four bits set */
#define VECTOR_COUNT		64

#define STUB_SIZE		16	/* bytes of code a vector, in start.S */

#endif
