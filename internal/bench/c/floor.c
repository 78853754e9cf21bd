// floor issues the syscalls of one container life cycle and nothing else: the
// time nobody can go below. The list is that of `vminitctl plan` for the bench's
// config.json; it makes no decisions, parses nothing and serves nobody.
//
// usage: floor ROOTFS CGROUP   runs one cycle per byte of stdin and prints its microseconds
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <net/if.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS_SLAVE_REC ((1UL << 19) | (1UL << 14))

static void die(const char *what) {
	dprintf(2, "floor: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static long must(const char *what, long r) {
	if (r < 0) die(what);
	return r;
}

static long open_in(int root, const char *path, uint64_t flags) {
	struct open_how how = {.flags = O_PATH | O_CLOEXEC | flags, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	return syscall(SYS_openat2, root, path, &how, sizeof how);
}

static void attach(int tree, int dest) {
	must("move_mount", syscall(SYS_move_mount, tree, "", dest, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
	close(tree);
	close(dest);
}

// mount_fs mounts a new file system; options are pairs, "" for a flag.
static void mount_fs(int root, const char *type, const char *dest, unsigned attrs, const char *const *options) {
	int fs = must("fsopen", syscall(SYS_fsopen, type, FSOPEN_CLOEXEC));
	must("source", syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "source", type, 0));
	for (; options && *options; options += 2)
		must(*options, syscall(SYS_fsconfig, fs, options[1][0] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, options[0], options[1][0] ? options[1] : NULL, 0));
	must("create", syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	int tree = must("fsmount", syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, attrs));
	close(fs);
	int dir = open_in(root, dest, O_DIRECTORY);
	if (dir < 0) {
		must("mkdirat", mkdirat(root, dest, 0755));
		dir = must("openat2", open_in(root, dest, O_DIRECTORY));
	}
	char buf[256];
	must("statx", syscall(SYS_statx, dir, "", AT_EMPTY_PATH, 0x1100, buf));
	attach(tree, dir);
}

static void read_only(int root, const char *path) {
	int fd = open_in(root, path, 0);
	if (fd < 0) return;
	struct mount_attr a = {.attr_set = MOUNT_ATTR_RDONLY};
	int tree = must("open_tree", syscall(SYS_open_tree, fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE));
	must("mount_setattr", syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &a, sizeof a));
	attach(tree, fd);
}

static void mask(int root, const char *path) {
	static int first = -1;
	int tree, fd = open_in(root, path, O_DIRECTORY);
	if (fd < 0) {
		fd = open_in(root, path, 0);
		if (fd < 0) return;
		tree = must("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/dev/null", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
	} else if (first >= 0) {
		tree = must("open_tree", syscall(SYS_open_tree, first, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH));
	} else {
		int fs = must("fsopen", syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC));
		syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "ro", NULL, 0);
		syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "nr_blocks", "1", 0);
		syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "nr_inodes", "1", 0);
		must("create", syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
		tree = must("fsmount", syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY));
		close(fs);
		first = fcntl(tree, F_DUPFD_CLOEXEC, 0);
	}
	attach(tree, fd);
}

static void devices(int root) {
	static const struct { const char *name; int major, minor; } nodes[] = {{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
	static const char *const links[][2] = {{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}};
	for (unsigned i = 0; i < 6; i++) {
		int dev = must("openat2 dev", open_in(root, "dev", O_DIRECTORY));
		must("mknodat", mknodat(dev, nodes[i].name, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)));
		close(dev);
	}
	int dev = must("openat2 dev", open_in(root, "dev", O_DIRECTORY));
	for (unsigned i = 0; i < 5; i++) must("symlinkat", symlinkat(links[i][0], dev, links[i][1]));
	close(dev);
}

static void rootfs(const char *path) {
	must("make slave", syscall(SYS_mount, NULL, "/", NULL, MS_SLAVE_REC, NULL));
	int root = must("open_tree", syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
	must("move_mount", syscall(SYS_move_mount, root, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH));
	must("fchdir", fchdir(root));
	char buf[256];
	must("statx", syscall(SYS_statx, root, "", AT_EMPTY_PATH, 0x1100, buf));
	unsigned strict = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
	mount_fs(root, "proc", "proc", strict, NULL);
	mount_fs(root, "tmpfs", "dev", MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME, (const char *const[]){"mode", "755", "size", "65536k", NULL});
	mount_fs(root, "devpts", "dev/pts", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, (const char *const[]){"newinstance", "", "ptmxmode", "0666", "mode", "0620", "gid", "5", NULL});
	mount_fs(root, "tmpfs", "dev/shm", strict, (const char *const[]){"mode", "1777", "size", "65536k", NULL});
	mount_fs(root, "mqueue", "dev/mqueue", strict, NULL);
	mount_fs(root, "sysfs", "sys", strict | MOUNT_ATTR_RDONLY, NULL);
	mount_fs(root, "cgroup2", "sys/fs/cgroup", strict | MOUNT_ATTR_RDONLY, NULL);
	devices(root);
	static const char *const ro[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
	static const char *const masked[] = {"proc/acpi", "proc/asound", "proc/kcore", "proc/keys", "proc/latency_stats", "proc/timer_list", "proc/timer_stats", "proc/sched_debug", "sys/firmware", "proc/scsi"};
	for (unsigned i = 0; i < sizeof ro / sizeof *ro; i++) read_only(root, ro[i]);
	for (unsigned i = 0; i < sizeof masked / sizeof *masked; i++) mask(root, masked[i]);
	must("fchdir", fchdir(root));
	must("pivot_root", syscall(SYS_pivot_root, ".", "."));
	must("umount2", syscall(SYS_umount2, ".", 2));
	must("chdir", chdir("/"));
	close(root);
}

static void finish(void) {
	static const int keep[] = {5, 10, 29};
	uint32_t mask = 1U << 5 | 1U << 10 | 1U << 29;
	syscall(SYS_keyctl, 1, "_ses.floor");
	struct rlimit limit = {1024, 1024};
	must("prlimit64", setrlimit(RLIMIT_NOFILE, &limit));
	for (int c = 0; c <= 40; c++)
		if (c != keep[0] && c != keep[1] && c != keep[2]) prctl(PR_CAPBSET_DROP, c);
	must("chdir", chdir("/"));
	char cwd[4096];
	if (!getcwd(cwd, sizeof cwd)) die("getcwd");
	prctl(PR_SET_KEEPCAPS, 1);
	must("setgroups", syscall(SYS_setgroups, 0, NULL));
	must("setresgid", syscall(SYS_setresgid, 0, 0, 0));
	must("setresuid", syscall(SYS_setresuid, 0, 0, 0));
	umask(022);
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{mask, mask, 0}, {0, 0, 0}};
	must("capset", syscall(SYS_capset, &header, data));
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	must("no_new_privs", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static void child(const char *path, int status) {
	setsid();
	umask(0);
	int s = must("socket", socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	must("lo up", ioctl(s, SIOCSIFFLAGS, &lo));
	close(s);
	must("sethostname", sethostname("bench", 5));
	rootfs(path);
	finish();
	char message[256] = {0}, go[8];
	must("gate", write(status, message, sizeof message));
	if (read(status, go, 8) != 1) _exit(1);
	must("close_range", syscall(SYS_close_range, 3, ~0U, 4));
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	char *argv[] = {"/bin/true", NULL}, *envp[] = {"PATH=/bin", NULL};
	execve(argv[0], argv, envp);
	die("execve");
}

// device_filter loads a filter that allows everything: of the same cost to load
// and attach as a real one, within a microsecond or two.
static int device_filter(void) {
	struct bpf_insn insns[] = {{.code = 0xb7, .dst_reg = 0, .imm = 1}, {.code = 0x95}};
	union bpf_attr a;
	memset(&a, 0, sizeof a);
	a.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
	a.insn_cnt = 2;
	a.insns = (uint64_t)(uintptr_t)insns;
	a.license = (uint64_t)(uintptr_t) "Apache-2.0";
	return syscall(SYS_bpf, BPF_PROG_LOAD, &a, sizeof a);
}

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void cycle(const char *path, const char *cgroup, int filter) {
	must("mkdir cgroup", mkdir(cgroup, 0755));
	int dir = must("open cgroup", open(cgroup, O_DIRECTORY | O_CLOEXEC));
	if (filter >= 0) {
		union bpf_attr a;
		memset(&a, 0, sizeof a);
		a.target_fd = dir;
		a.attach_bpf_fd = filter;
		a.attach_type = BPF_CGROUP_DEVICE;
		a.attach_flags = BPF_F_ALLOW_MULTI;
		must("attach", syscall(SYS_bpf, BPF_PROG_ATTACH, &a, sizeof a));
	}
	int sv[2], pidfd, i;
	must("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv));
	struct clone_args c = {.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWCGROUP | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP,
		.pidfd = (uint64_t)(uintptr_t)&pidfd, .exit_signal = SIGCHLD, .cgroup = dir};
	long pid = must("clone3", syscall(SYS_clone3, &c, sizeof c));
	if (pid == 0) child(path, sv[1]);
	close(sv[1]);
	char message[256];
	if (read(sv[0], message, sizeof message) != sizeof message) die("the child did not get ready");
	must("go", write(sv[0], "x", 1));
	while ((i = read(sv[0], message, 1)) > 0) {}
	close(sv[0]);
	siginfo_t info;
	must("waitid", waitid(P_PIDFD, pidfd, &info, WEXITED));
	if (info.si_status) die("the container failed");
	close(pidfd);
	close(dir);
	must("rmdir", rmdir(cgroup));
}

int main(int argc, char **argv) {
	if (argc != 3) {
		dprintf(2, "usage: floor ROOTFS CGROUP\n");
		return 2;
	}
	prctl(PR_SET_DUMPABLE, 0);
	int filter = device_filter();
	while (getchar() != EOF) { // one cycle per byte it is sent
		double t = now();
		cycle(argv[1], argv[2], filter);
		printf("%.1f\n", now() - t);
		fflush(stdout);
	}
}
