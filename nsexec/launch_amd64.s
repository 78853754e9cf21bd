#include "textflag.h"

// Offsets into the frame (launch_unsafe.go) and its neighbours.
#define FRAME_PC      88
#define FRAME_END     96
#define FRAME_REGS    104
#define FRAME_PIDNS   112
#define FRAME_SELFNS  120
#define FRAME_OLDMASK 128
#define FRAME_ALLMASK 136

#define SYS_write          1
#define SYS_rt_sigprocmask 14
#define SYS_exit_group     231
#define SYS_setns          308
#define SYS_clone3         435
#define CLONE_NEWPID       0x20000000
#define RETRIES            1000

// func cloneAndRun(f *frame) int64
//
// The child never touches a stack and never returns: its state is in
// R12 (pc), R13 (end), R15 (registers).
TEXT ·cloneAndRun(SB), NOSPLIT, $0-16
	MOVQ	f+0(FP), R12
	MOVL	$SYS_rt_sigprocmask, AX
	MOVL	$2, DI // SIG_SETMASK
	LEAQ	FRAME_ALLMASK(R12), SI
	LEAQ	FRAME_OLDMASK(R12), DX
	MOVL	$8, R10
	SYSCALL

	MOVQ	FRAME_PIDNS(R12), DI
	TESTQ	DI, DI
	JLT	clone
	MOVL	$CLONE_NEWPID, SI
	MOVL	$SYS_setns, AX
	SYSCALL
	MOVQ	AX, BX
	TESTQ	AX, AX
	JLT	unblock

clone:
	MOVQ	R12, DI
	MOVL	$88, SI // sizeof(struct clone_args), CLONE_ARGS_SIZE_VER2
	MOVL	$SYS_clone3, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, BX

	MOVQ	FRAME_PIDNS(R12), DI
	TESTQ	DI, DI
	JLT	unblock
	MOVL	$RETRIES, R13 // the kernel may be out of memory for a moment
goback:
	MOVQ	FRAME_SELFNS(R12), DI
	MOVL	$CLONE_NEWPID, SI
	MOVL	$SYS_setns, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	unblock
	DECQ	R13
	JNE	goback
	INT	$3 // this thread would bear its next children in the container

unblock:
	MOVL	$SYS_rt_sigprocmask, AX
	MOVL	$2, DI
	LEAQ	FRAME_OLDMASK(R12), SI
	XORL	DX, DX
	MOVL	$8, R10
	SYSCALL
	MOVQ	BX, ret+8(FP)
	RET

child:
	MOVQ	FRAME_END(R12), R13
	MOVQ	FRAME_REGS(R12), R15
	MOVQ	FRAME_PC(R12), R12

loop:
	CMPQ	R12, R13
	JCC	finish
	MOVL	0(R12), AX
	MOVL	4(R12), BX
	MOVQ	8(R12), DI
	MOVQ	16(R12), SI
	MOVQ	24(R12), DX
	MOVQ	32(R12), R10
	MOVQ	40(R12), R8
	MOVQ	48(R12), R9
	TESTL	$63, BX
	JEQ	dispatch
	TESTL	$1, BX
	JEQ	arg1
	MOVQ	(R15)(DI*8), DI
arg1:
	TESTL	$2, BX
	JEQ	arg2
	MOVQ	(R15)(SI*8), SI
arg2:
	TESTL	$4, BX
	JEQ	arg3
	MOVQ	(R15)(DX*8), DX
arg3:
	TESTL	$8, BX
	JEQ	arg4
	MOVQ	(R15)(R10*8), R10
arg4:
	TESTL	$16, BX
	JEQ	arg5
	MOVQ	(R15)(R8*8), R8
arg5:
	TESTL	$32, BX
	JEQ	dispatch
	MOVQ	(R15)(R9*8), R9
dispatch:
	TESTL	$0x80000000, AX
	JNE	pseudo
	SYSCALL
	CMPQ	AX, $0xfffffffffffff001
	JCC	failed
store:
	TESTL	$64, BX
	JEQ	ok
	MOVBQZX	56(R12), CX
	MOVQ	AX, (R15)(CX*8)
ok:
	MOVWQZX	60(R12), CX
next:
	INCQ	CX
	SHLQ	$6, CX
	ADDQ	CX, R12
	JMP	loop

failed:
	NEGQ	AX
	MOVWQZX	62(R12), CX
	TESTL	$128, BX
	JNE	next
	MOVBQZX	57(R12), DX
	CMPQ	AX, DX
	JEQ	next
	MOVBQZX	58(R12), DX
	CMPQ	AX, DX
	JEQ	next
	MOVBQZX	59(R12), DX
	CMPQ	AX, DX
	JEQ	next

report: // errno in AX: write(status, registers, 256)
	MOVQ	AX, 248(R15)
	MOVQ	R12, 240(R15) // an address; the parent makes an index of it
	MOVQ	0(R15), DI
	MOVQ	R15, SI
	MOVL	$256, DX
	MOVL	$SYS_write, AX
	SYSCALL
finish:
	MOVL	$127, DI
	MOVL	$SYS_exit_group, AX
	SYSCALL
	JMP	finish

pseudo:
	ANDL	$0xff, AX
	CMPL	AX, $0
	JEQ	opfail
	CMPL	AX, $1
	JEQ	opskipnz
	CMPL	AX, $2
	JEQ	opskipnoteq
	CMPL	AX, $3
	JEQ	opskipeq
	CMPL	AX, $5
	JEQ	opload
	MOVQ	SI, (DI) // opPoke
	JMP	plain
opload:
	MOVQ	(DI), AX
	JMP	store
opskipeq:
	MOVQ	(DI), DI
	CMPQ	DI, (SI)
	JEQ	ok
	JMP	plain
opskipnoteq:
	MOVQ	(DI), DI
	CMPQ	DI, (SI)
	JNE	ok
	JMP	plain
opskipnz:
	TESTQ	DI, DI
	JNE	ok
plain:
	XORL	CX, CX
	JMP	next
opfail:
	MOVQ	DI, AX
	JMP	report
