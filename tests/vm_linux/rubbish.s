/*
 * A kernel, in protected mode without paging, that writes ones to every register of the local APIC, the
 * IOAPIC, the serial port, the clock and the power management, and reads each. It ends with status 7
 * after a line on the serial port.
 */
	.code32
	.globl	_start
	.type	_start, @function
_start:
	movl	$0xfee00000, %edi
local_apic:
	movl	$-1, (%edi)
	movl	(%edi), %eax
	addl	$0x10, %edi
	cmpl	$0xfee01000, %edi
	jne	local_apic

	movl	$0xfec00000, %edi
	xorl	%ecx, %ecx
io_apic:
	movl	%ecx, (%edi)
	movl	$-1, 0x10(%edi)
	movl	0x10(%edi), %eax
	incl	%ecx
	cmpl	$0x100, %ecx
	jne	io_apic

	movl	$ranges, %esi
range:
	movzwl	(%esi), %edx
	movzwl	2(%esi), %ecx
	addl	$4, %esi
	testl	%ecx, %ecx
	je	speak
port:
	movl	$-1, %eax
	outb	%al, %dx
	inb	%dx, %al
	movl	$-1, %eax
	outl	%eax, %dx
	inl	%dx, %eax
	incl	%edx
	loop	port
	jmp	range

speak:
	/* Out of the loop of the port, and of its divisor. */
	movw	$0x3fc, %dx
	xorl	%eax, %eax
	outb	%al, %dx
	movw	$0x3fb, %dx
	movb	$3, %al
	outb	%al, %dx
	movw	$0x3f8, %dx
	movb	$10, %al
	outb	%al, %dx
	movb	$'h', %al
	outb	%al, %dx
	movb	$10, %al
	outb	%al, %dx
	movb	$7, %al
	outb	%al, $0xf4
	jmp	.
	.size	_start, . - _start

/* Port and count: serial port, clock, power registers. */
ranges:
	.word	0x3f8, 8, 0x70, 2, 0x600, 5, 0, 0
