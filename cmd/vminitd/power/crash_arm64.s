#include "textflag.h"

#define SYS_write        64
#define SYS_ppoll        73
#define SYS_sync         81
#define SYS_rt_sigreturn 139
#define SYS_reboot       142
#define MAGIC1           0xfee1dead
#define MAGIC2           672274793

// crashed is the handler of SIGABRT; see crash.go. It uses no stack.
TEXT ·crashed(SB), NOSPLIT|NOFRAME, $0
	MOVW	8(R1), R3 // siginfo_t.si_code
	CMPW	$-6, R3   // SI_TKILL
	BNE	ignore
	MOVW	16(R1), R3 // si_pid
	CMPW	$1, R3
	BNE	ignore

	MOVD	$2, R0
	MOVD	·crashText+0(SB), R1
	MOVD	·crashText+8(SB), R2
	MOVD	$SYS_write, R8
	SVC
	MOVD	$SYS_sync, R8
	SVC
	MOVD	$MAGIC1, R0
	MOVD	$MAGIC2, R1
	MOVWU	·crashCommands+0(SB), R2
	MOVD	$SYS_reboot, R8
	SVC
	MOVD	$MAGIC1, R0
	MOVWU	·crashCommands+4(SB), R2
	MOVD	$SYS_reboot, R8
	SVC

pause:
	MOVD	$0, R0 // nothing to wait for, and no timeout
	MOVD	$0, R1
	MOVD	$0, R2
	MOVD	$0, R3
	MOVD	$SYS_ppoll, R8
	SVC
	B	pause

ignore:
	RET

// sigreturn is where a handler returns to (SA_RESTORER).
TEXT ·sigreturn(SB), NOSPLIT|NOFRAME, $0
	MOVD	$SYS_rt_sigreturn, R8
	SVC
	BRK

// func crashHandler() (handler, restorer uintptr)
TEXT ·crashHandler(SB), NOSPLIT, $0-16
	MOVD	$·crashed(SB), R0
	MOVD	R0, handler+0(FP)
	MOVD	$·sigreturn(SB), R0
	MOVD	R0, restorer+8(FP)
	RET
