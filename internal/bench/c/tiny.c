// tiny is the smallest program there is, so that what is measured is the
// runtime and not the C library's start: it exits with 0, or, built with
// -DSLEEP, waits to be killed.
#include <sys/syscall.h>

static long call(long nr, long a) {
#if defined __x86_64__
	long r;
	__asm__ volatile("xor %%r10d, %%r10d; syscall" : "=a"(r) : "a"(nr), "D"(a), "S"(0), "d"(0) : "rcx", "r10", "r11", "memory");
	return r;
#elif defined __aarch64__
	register long x8 __asm__("x8") = nr, x0 __asm__("x0") = a, x1 __asm__("x1") = 0, x2 __asm__("x2") = 0, x3 __asm__("x3") = 0;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
#endif
}

void _start(void) {
#ifdef SLEEP
	for (;;) call(SYS_ppoll, 0);
#endif
	for (;;) call(SYS_exit_group, 0);
}
