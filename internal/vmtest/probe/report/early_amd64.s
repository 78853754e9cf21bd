#include "textflag.h"

// vminit_probe_entry is where the kernel starts the program. It only asks and
// touches neither stack nor arguments, then the Go runtime's entry takes over.
// System calls (syscall(2)): number in AX, arguments in DI, SI, DX, R10; they
// destroy AX, CX and R11.
TEXT vminit_probe_entry(SB),NOSPLIT|NOFRAME,$0
	MOVQ $14, AX // rt_sigprocmask(SIG_BLOCK, NULL, &earlyBlocked, 8)
	MOVQ $0, DI
	MOVQ $0, SI
	LEAQ ·earlyBlocked(SB), DX
	MOVQ $8, R10
	SYSCALL

	MOVQ $127, AX // rt_sigpending(&earlyPending, 8)
	LEAQ ·earlyPending(SB), DI
	MOVQ $8, SI
	SYSCALL

	MOVQ $302, AX // prlimit64(0, RLIMIT_NOFILE, NULL, &earlyNofile)
	MOVQ $0, DI
	MOVQ $7, SI
	MOVQ $0, DX
	LEAQ ·earlyNofile(SB), R10
	SYSCALL

	MOVQ $64, R12 // signals from 64 down to 1, shifted in from the right
	MOVQ $0, R13
signal:
	MOVQ $13, AX // rt_sigaction(sig, NULL, &earlyAction, 8)
	MOVQ R12, DI
	MOVQ $0, SI
	LEAQ ·earlyAction(SB), DX
	MOVQ $8, R10
	SYSCALL
	SHLQ $1, R13
	CMPQ ·earlyAction(SB), $1 // SIG_IGN
	JNE  next
	ORQ  $1, R13
next:
	DECQ R12
	JNE  signal
	MOVQ R13, ·earlyIgnored(SB)

	MOVQ $2, R12 // descriptors from 2 down to 0
	MOVQ $0, R13
descriptor:
	MOVQ $72, AX // fcntl(fd, F_GETFD)
	MOVQ R12, DI
	MOVQ $1, SI
	SYSCALL
	SHLQ $1, R13
	CMPQ AX, $0
	JGE  open
	ORQ  $1, R13
open:
	DECQ R12
	JGE  descriptor
	MOVQ R13, ·earlyClosed(SB)

	MOVQ $1, ·earlySeen(SB)
	JMP  _rt0_amd64_linux(SB)
