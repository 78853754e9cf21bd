#include "textflag.h"

// Offsets into the frame (launch_unsafe.go) and its neighbours.
#define FRAME_PC      88
#define FRAME_END     96
#define FRAME_REGS    104
#define FRAME_PIDNS   112
#define FRAME_SELFNS  120
#define FRAME_OLDMASK 128
#define FRAME_ALLMASK 136

#define SYS_write          64
#define SYS_exit_group     94
#define SYS_rt_sigprocmask 135
#define SYS_setns          268
#define SYS_clone3         435
#define CLONE_NEWPID       0x20000000
#define RETRIES            1000

// func cloneAndRun(f *frame) int64
//
// The child never touches a stack and never returns: its state is in
// R19 (pc), R20 (end), R21 (registers).
TEXT ·cloneAndRun(SB), NOSPLIT, $0-16
	MOVD	f+0(FP), R19
	MOVD	$2, R0 // SIG_SETMASK
	ADD	$FRAME_ALLMASK, R19, R1
	ADD	$FRAME_OLDMASK, R19, R2
	MOVD	$8, R3
	MOVD	$SYS_rt_sigprocmask, R8
	SVC

	MOVD	FRAME_PIDNS(R19), R0
	CMP	$0, R0
	BLT	clone
	MOVD	$CLONE_NEWPID, R1
	MOVD	$SYS_setns, R8
	SVC
	MOVD	R0, R22
	CMP	$0, R0
	BLT	unblock

clone:
	MOVD	R19, R0
	MOVD	$88, R1 // sizeof(struct clone_args), CLONE_ARGS_SIZE_VER2
	MOVD	$SYS_clone3, R8
	SVC
	CBZ	R0, child
	MOVD	R0, R22

	MOVD	FRAME_PIDNS(R19), R0
	CMP	$0, R0
	BLT	unblock
	MOVD	$RETRIES, R20 // the kernel may be out of memory for a moment
goback:
	MOVD	FRAME_SELFNS(R19), R0
	MOVD	$CLONE_NEWPID, R1
	MOVD	$SYS_setns, R8
	SVC
	CBZ	R0, unblock
	SUB	$1, R20
	CBNZ	R20, goback
	BRK	$1 // this thread would bear its next children in the container

unblock:
	MOVD	$2, R0
	ADD	$FRAME_OLDMASK, R19, R1
	MOVD	ZR, R2
	MOVD	$8, R3
	MOVD	$SYS_rt_sigprocmask, R8
	SVC
	MOVD	R22, ret+8(FP)
	RET

child:
	MOVD	FRAME_END(R19), R20
	MOVD	FRAME_REGS(R19), R21
	MOVD	FRAME_PC(R19), R19

loop:
	CMP	R20, R19
	BHS	finish
	MOVWU	0(R19), R8
	MOVWU	4(R19), R9
	MOVD	8(R19), R0
	MOVD	16(R19), R1
	MOVD	24(R19), R2
	MOVD	32(R19), R3
	MOVD	40(R19), R4
	MOVD	48(R19), R5
	TBZ	$0, R9, arg1
	MOVD	(R21)(R0<<3), R0
arg1:
	TBZ	$1, R9, arg2
	MOVD	(R21)(R1<<3), R1
arg2:
	TBZ	$2, R9, arg3
	MOVD	(R21)(R2<<3), R2
arg3:
	TBZ	$3, R9, arg4
	MOVD	(R21)(R3<<3), R3
arg4:
	TBZ	$4, R9, arg5
	MOVD	(R21)(R4<<3), R4
arg5:
	TBZ	$5, R9, dispatch
	MOVD	(R21)(R5<<3), R5
dispatch:
	TBNZ	$31, R8, pseudo
	SVC
	CMN	$4095, R0
	BHS	failed
store:
	TBZ	$6, R9, ok
	MOVBU	56(R19), R10
	MOVD	R0, (R21)(R10<<3)
ok:
	MOVHU	60(R19), R10
next:
	ADD	$1, R10, R10
	ADD	R10<<6, R19, R19
	B	loop

failed:
	NEG	R0, R0
	MOVHU	62(R19), R10
	TBNZ	$7, R9, next
	MOVBU	57(R19), R11
	CMP	R11, R0
	BEQ	next
	MOVBU	58(R19), R11
	CMP	R11, R0
	BEQ	next
	MOVBU	59(R19), R11
	CMP	R11, R0
	BEQ	next

report: // errno in R0: write(status, registers, 256)
	MOVD	R0, 248(R21)
	MOVD	R19, 240(R21) // an address; the parent makes an index of it
	MOVD	0(R21), R0
	MOVD	R21, R1
	MOVD	$256, R2
	MOVD	$SYS_write, R8
	SVC
finish:
	MOVD	$127, R0
	MOVD	$SYS_exit_group, R8
	SVC
	B	finish

pseudo:
	AND	$0xff, R8, R8
	CBZ	R8, report // opFail: errno is the first argument
	CMP	$1, R8
	BEQ	opskipnz
	CMP	$2, R8
	BEQ	opskipnoteq
	CMP	$3, R8
	BEQ	opskipeq
	CMP	$5, R8
	BEQ	opload
	MOVD	R1, (R0) // opPoke
	B	plain
opload:
	MOVD	(R0), R0
	B	store
opskipeq:
	MOVD	(R0), R0
	MOVD	(R1), R1
	CMP	R1, R0
	BEQ	ok
	B	plain
opskipnoteq:
	MOVD	(R0), R0
	MOVD	(R1), R1
	CMP	R1, R0
	BNE	ok
	B	plain
opskipnz:
	CBNZ	R0, ok
plain:
	MOVD	ZR, R10
	B	next
