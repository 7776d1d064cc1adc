// SPDX-License-Identifier: MIT
/* The smallest PVH guest: the runtime, a line, and out. Start-up time is measured with it. */
#include "runtime.h"

int main(void)
{
	printf("Hello, World!\n");
	return 0;
}
