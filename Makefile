# make build   static binaries into bin/
# make run     a container in a microVM, end to end
# make test    every rung of tests, the in-VM one included
# make bench   life cycles against crun, runc and a C reference
# make kernel  a small kernel for guests, everything built in; KERNEL=small uses it
# make lint    formatting, vet on both architectures, generated code
# make soak    the reliability tests at full size
# make fuzz    every fuzz target for FUZZTIME

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME ?= 30s
GOFLAGS  := -trimpath -tags=no_grpc
LDFLAGS  := -s -w -X main.version=$(VERSION)
# The daemon spends its time in the kernel and in code of our own: not inlining
# that of others makes it 2 % smaller and nothing slower (docs/services.md).
SMALL    := -gcflags=google.golang.org/...=-l -gcflags=github.com/...=-l
export CGO_ENABLED ?= 0

# KERNEL=small or a path: the guests' kernel instead of an installed one.
SMALL_KERNEL := bin/vmlinuz-small
KERNEL_IMAGE := $(abspath $(if $(filter small,$(KERNEL)),$(SMALL_KERNEL),$(KERNEL)))
KERNEL_DEPS  := $(if $(filter small,$(KERNEL)),kernel)
ifneq ($(KERNEL),)
export VMINIT_KERNEL := $(KERNEL_IMAGE)
endif

.PHONY: build kernel run test bench syscalls soak lint fuzz generate clean deps-run deps-test deps-bench

build:
	go build $(GOFLAGS) $(SMALL) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/vminitd ./cmd/vminitctl

kernel:
	@kernel/build.sh $(SMALL_KERNEL)

run: deps-run build $(KERNEL_DEPS)
	@go build $(GOFLAGS) -o bin/ ./internal/vmtest/mkroot
	@rm -rf bin/rootfs && bin/mkroot bin/rootfs
	@bin/vminitctl run --timeline --rootfs bin/rootfs -- /bin/sh -c \
	  'echo "Hello from a container in a microVM."; echo "kernel:   $$(uname -r)"; echo "pid 1 is: $$(readlink /proc/1/exe)"; echo "mounts:   $$(wc -l < /proc/self/mountinfo)"; id'

test: deps-test build $(KERNEL_DEPS)
	go run $(GOFLAGS) ./internal/rungs $(if $(RUNGS),-rungs $(RUNGS)) $(if $(RUN),-run '$(value RUN)') $(if $(V),-v) $(PKG)

bench: deps-bench build
	go build $(GOFLAGS) -o bin/ ./internal/bench
	unshare --mount --propagation private bin/bench

syscalls: # the table of docs/syscalls.md
	go build $(GOFLAGS) -o bin/ ./internal/syscalls ./cmd/vminitd
	@unshare --mount --propagation private bin/syscalls

# The reliability tests at full size (docs/reliability.md).
soak: deps-test build
	VMINIT_SOAK=1 go run $(GOFLAGS) ./internal/rungs -rungs root -run 'TestModel|TestFaults' ./tasksvc
	VMINIT_SOAK=1 go run $(GOFLAGS) ./internal/rungs -rungs vm -run 'TestModel|TestLedger|TestConnectionDrops|TestBursts|TestThroughput|TestIsolation|TestThousandStreams|TestStalledSubscriber|TestThreatSwapRace|TestOrphanFlood' ./internal/vmtest

lint:
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo "run gofmt -w on these"; exit 1; }
	go vet $(GOFLAGS) ./...
	GOARCH=arm64 go vet $(GOFLAGS) ./...
	GOARCH=arm64 go build $(GOFLAGS) -o /dev/null ./cmd/vminitd

fuzz:
	@for pkg in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -ho --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' $$pkg/*_test.go | sed 's/^func //' | sort -u); do \
	    echo "== $$pkg $$f"; go test $(GOFLAGS) -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg || exit 1; \
	  done; done

generate:
	bash api/generate.sh

clean:
	rm -rf bin

# What a machine needs beside Go, and why. Installed when missing.
NEED_RUN   := qemu-system-x86_64:qemu-system-x86:"to run microVMs" /bin/busybox:busybox-static:"as the root file system"
NEED_TEST  := $(NEED_RUN) gcc:gcc:"for race-detected tests" fsck.erofs:erofs-utils:"to check our images" mkfs.ext4:e2fsprogs:"for disks in tests" unshare:util-linux:"for private namespaces" ip:iproute2:"for interfaces in tests"
NEED_BENCH := $(NEED_RUN) gcc:gcc:"for the C reference" crun:crun:"to compare with" runc:runc:"to compare with"

define install
	@missing=""; \
	for n in $(1); do \
	  cmd=$${n%%:*}; rest=$${n#*:}; \
	  command -v "$$cmd" >/dev/null 2>&1 || { echo "installing $${rest%%:*}: $${rest#*:}"; missing="$$missing $${rest%%:*}"; }; \
	done; \
	ls /boot/vmlinuz-*-cloud-amd64 >/dev/null 2>&1 || ls /boot/vmlinuz-* >/dev/null 2>&1 || { echo "installing linux-image-cloud-amd64: a kernel for the microVM"; missing="$$missing linux-image-cloud-amd64"; }; \
	test -z "$$missing" || { sudo=; test "$$(id -u)" = 0 || sudo=sudo; \
	  { $$sudo apt-get update -q && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -q --no-install-recommends $$missing; } >/tmp/vminit-apt.$$$$.log 2>&1 \
	  || { cat /tmp/vminit-apt.$$$$.log; exit 1; }; rm -f /tmp/vminit-apt.$$$$.log; }
endef

deps-run:
	$(call install,$(NEED_RUN))
deps-test:
	$(call install,$(NEED_TEST))
deps-bench:
	$(call install,$(NEED_BENCH))
