// memlock is preloaded into crun where CAP_SYS_RESOURCE is missing: crun gives
// up when it cannot raise RLIMIT_MEMLOCK for its device filter, which kernels
// since 5.11 do not need. It costs crun nothing else.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/resource.h>

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit) {
	if (resource == RLIMIT_MEMLOCK) return 0;
	int (*next)(__rlimit_resource_t, const struct rlimit *) = dlsym(RTLD_NEXT, "setrlimit");
	return next(resource, limit);
}
