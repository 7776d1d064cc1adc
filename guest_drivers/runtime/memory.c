// SPDX-License-Identifier: MIT
/* A bump allocator, and the three functions that gcc calls on its own account. */
#include "runtime.h"

static uint64_t next_free, memory_end;

void memory_init(uint64_t start, uint64_t end)
{
	next_free = start;
	memory_end = end;
}

void *memory_alloc(size_t size, size_t align)
{
	uint64_t start = (next_free + align - 1) & ~((uint64_t)align - 1);

	if (start > memory_end || size > memory_end - start)
		tap_bail_out("out of memory: %zu bytes wanted, %llu left", size,
			     (unsigned long long)(memory_end - next_free));
	next_free = start + size;
	return (void *)start;
}

void *memory_zalloc(size_t size, size_t align)
{
	return memset(memory_alloc(size, align), 0, size);
}

uint64_t memory_mark(void)
{
	return next_free;
}

void memory_release(uint64_t mark)
{
	next_free = mark;
}

/* String instructions, eight bytes at a time: where ring 0 is interpreted, loops are slow. */
#define WORD	8

void *memcpy(void *to, const void *from, size_t size)
{
	void *destination = to;
	size_t count = size / WORD;

	__asm__ volatile("rep movsq" : "+D"(destination), "+S"(from), "+c"(count) : : "memory");
	count = size % WORD;
	__asm__ volatile("rep movsb" : "+D"(destination), "+S"(from), "+c"(count) : : "memory");
	return to;
}

void *memset(void *to, int value, size_t size)
{
	uint64_t word = (uint8_t)value * UINT64_C(0x0101010101010101);
	void *destination = to;
	size_t count = size / WORD;

	__asm__ volatile("rep stosq" : "+D"(destination), "+c"(count) : "a"(word) : "memory");
	count = size % WORD;
	__asm__ volatile("rep stosb" : "+D"(destination), "+c"(count) : "a"(word) : "memory");
	return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
	const uint8_t *left = a, *right = b;

	for (size_t i = 0; i < size; i++)
		if (left[i] != right[i])
			return left[i] - right[i];
	return 0;
}

/* A count of 0 repeats nothing and leaves the flags as the comparison before made them: equal. */
bool memory_equal(const void *a, const void *b, size_t size)
{
	size_t count = size / WORD;
	bool equal;

	__asm__ volatile("cmpq %%rax, %%rax\n\trepe cmpsq"
			 : "=@cce"(equal), "+D"(a), "+S"(b), "+c"(count) : : "memory");
	if (!equal)
		return false;
	count = size % WORD;
	__asm__ volatile("cmpq %%rax, %%rax\n\trepe cmpsb"
			 : "=@cce"(equal), "+D"(a), "+S"(b), "+c"(count) : : "memory");
	return equal;
}

bool memory_is(const void *memory, uint8_t value, size_t size)
{
	const uint64_t word = value * UINT64_C(0x0101010101010101);
	size_t count = size / WORD;
	bool equal;

	__asm__ volatile("cmpq %%rax, %%rax\n\trepe scasq"
			 : "=@cce"(equal), "+D"(memory), "+c"(count) : "a"(word) : "memory");
	if (!equal)
		return false;
	count = size % WORD;
	__asm__ volatile("cmpq %%rax, %%rax\n\trepe scasb"
			 : "=@cce"(equal), "+D"(memory), "+c"(count) : "a"(word) : "memory");
	return equal;
}
