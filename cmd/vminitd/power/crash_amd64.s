#include "textflag.h"

#define SYS_write        1
#define SYS_rt_sigreturn 15
#define SYS_pause        34
#define SYS_sync         162
#define SYS_reboot       169
#define MAGIC1           0xfee1dead
#define MAGIC2           672274793
#define SI_TKILL         -6

// crashed is the handler of SIGABRT; see crash.go. It uses no stack.
TEXT ·crashed(SB), NOSPLIT|NOFRAME, $0
	CMPL	8(SI), $SI_TKILL // siginfo_t.si_code
	JNE	ignore
	CMPL	16(SI), $1 // si_pid
	JNE	ignore

	MOVL	$2, DI
	MOVQ	·crashText+0(SB), SI
	MOVQ	·crashText+8(SB), DX
	MOVL	$SYS_write, AX
	SYSCALL
	MOVL	$SYS_sync, AX
	SYSCALL
	MOVL	$MAGIC1, DI
	MOVL	$MAGIC2, SI
	MOVL	·crashCommands+0(SB), DX
	MOVL	$SYS_reboot, AX
	SYSCALL
	MOVL	·crashCommands+4(SB), DX
	MOVL	$SYS_reboot, AX
	SYSCALL

pause:
	MOVL	$SYS_pause, AX
	SYSCALL
	JMP	pause

ignore:
	RET

// sigreturn is where a handler returns to (SA_RESTORER).
TEXT ·sigreturn(SB), NOSPLIT|NOFRAME, $0
	MOVL	$SYS_rt_sigreturn, AX
	SYSCALL
	INT	$3

// func crashHandler() (handler, restorer uintptr)
TEXT ·crashHandler(SB), NOSPLIT, $0-16
	LEAQ	·crashed(SB), AX
	MOVQ	AX, handler+0(FP)
	LEAQ	·sigreturn(SB), AX
	MOVQ	AX, restorer+8(FP)
	RET
