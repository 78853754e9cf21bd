#include "textflag.h"

// vminit_probe_entry is where the kernel starts the program. It only asks and
// touches neither stack nor arguments, then the Go runtime's entry takes over.
// System calls (syscall(2)): number in R8, arguments in R0 to R3, result in R0;
// they keep all other registers.
TEXT vminit_probe_entry(SB),NOSPLIT|NOFRAME,$0
	MOVD $135, R8 // rt_sigprocmask(SIG_BLOCK, NULL, &earlyBlocked, 8)
	MOVD $0, R0
	MOVD $0, R1
	MOVD $·earlyBlocked(SB), R2
	MOVD $8, R3
	SVC

	MOVD $136, R8 // rt_sigpending(&earlyPending, 8)
	MOVD $·earlyPending(SB), R0
	MOVD $8, R1
	SVC

	MOVD $261, R8 // prlimit64(0, RLIMIT_NOFILE, NULL, &earlyNofile)
	MOVD $0, R0
	MOVD $7, R1
	MOVD $0, R2
	MOVD $·earlyNofile(SB), R3
	SVC

	MOVD $64, R9 // signals from 64 down to 1, shifted in from the right
	MOVD $0, R10
signal:
	MOVD $134, R8 // rt_sigaction(sig, NULL, &earlyAction, 8)
	MOVD R9, R0
	MOVD $0, R1
	MOVD $·earlyAction(SB), R2
	MOVD $8, R3
	SVC
	LSL  $1, R10, R10
	MOVD ·earlyAction(SB), R11
	CMP  $1, R11 // SIG_IGN
	BNE  next
	ORR  $1, R10, R10
next:
	SUBS $1, R9, R9
	BNE  signal
	MOVD R10, ·earlyIgnored(SB)

	MOVD $2, R9 // descriptors from 2 down to 0
	MOVD $0, R10
descriptor:
	MOVD $25, R8 // fcntl(fd, F_GETFD)
	MOVD R9, R0
	MOVD $1, R1
	SVC
	LSL  $1, R10, R10
	CMP  $0, R0
	BGE  open
	ORR  $1, R10, R10
open:
	SUBS $1, R9, R9
	BPL  descriptor
	MOVD R10, ·earlyClosed(SB)

	MOVD $1, R11
	MOVD R11, ·earlySeen(SB)
	B    _rt0_arm64_linux(SB)
