//go:build ignore

// Libseccomp makes testdata/libseccomp/NAME.bpf from NAME.json, a profile, with
// libseccomp on an x86_64 machine, making the calls crun and runc make:
//
//	apt-get install gcc libseccomp-dev
//	go run gen/libseccomp.go testdata/libseccomp/*.json
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func main() {
	log.SetFlags(0)
	for _, path := range os.Args[1:] {
		text, err := os.ReadFile(path)
		check(err)
		var p specs.LinuxSeccomp
		check(json.Unmarshal(text, &p))
		dir, err := os.MkdirTemp("", "")
		check(err)
		defer os.RemoveAll(dir)
		src, bin := filepath.Join(dir, "main.c"), filepath.Join(dir, "main")
		check(os.WriteFile(src, []byte(program(&p)), 0o644))
		build := exec.Command("gcc", "-O0", "-w", "-o", bin, src, "-lseccomp")
		build.Stderr = os.Stderr
		check(build.Run())
		run := exec.Command(bin)
		run.Stderr = os.Stderr
		bpf, err := run.Output()
		check(err)
		check(os.WriteFile(strings.TrimSuffix(path, ".json")+".bpf", bpf, 0o644))
		log.Printf("%s: %d instructions", path, len(bpf)/8)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// program is a C program that builds the profile's filter and writes it.
func program(p *specs.LinuxSeccomp) string {
	var b strings.Builder
	deflt := action(p.DefaultAction, p.DefaultErrnoRet)
	fmt.Fprintf(&b, `#include <seccomp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static void check(int rc, const char *what) {
	if (rc < 0 && rc != -EEXIST) { fprintf(stderr, "%%s: %%s\n", what, strerror(-rc)); exit(1); }
}
static scmp_filter_ctx ctx;
static void rule(uint32_t act, const char *name, int n, const struct scmp_arg_cmp *args) {
	int nr = seccomp_syscall_resolve_name(name);
	if (nr == __NR_SCMP_ERROR) return;
	check(seccomp_rule_add_array(ctx, act, nr, n, args), name);
}
int main(void) {
	ctx = seccomp_init(%s);
`, deflt)
	for _, a := range p.Architectures {
		fmt.Fprintf(&b, "\tcheck(seccomp_arch_add(ctx, %s), \"arch\");\n", a)
	}
	for _, s := range p.Syscalls {
		act := action(s.Action, s.ErrnoRet)
		if act == deflt {
			continue
		}
		args := make([]string, len(s.Args))
		seen, repeated := map[uint]bool{}, false
		for i, a := range s.Args {
			args[i] = fmt.Sprintf("{%d, %s, %dull, %dull}", a.Index, a.Op, a.Value, a.ValueTwo)
			repeated = repeated || seen[a.Index]
			seen[a.Index] = true
		}
		for _, name := range s.Names {
			switch {
			case len(args) == 0:
				fmt.Fprintf(&b, "\trule(%s, %q, 0, NULL);\n", act, name)
			case repeated:
				for _, a := range args {
					fmt.Fprintf(&b, "\trule(%s, %q, 1, (struct scmp_arg_cmp[]){%s});\n", act, name, a)
				}
			default:
				fmt.Fprintf(&b, "\trule(%s, %q, %d, (struct scmp_arg_cmp[]){%s});\n", act, name, len(args), strings.Join(args, ","))
			}
		}
	}
	b.WriteString("\tcheck(seccomp_export_bpf(ctx, 1), \"export\");\n\treturn 0;\n}\n")
	return b.String()
}

func action(a specs.LinuxSeccompAction, errno *uint) string {
	if a == specs.ActErrno || a == specs.ActTrace {
		n := uint(1)
		if errno != nil {
			n = *errno
		}
		return fmt.Sprintf("%s(%d)", a, n)
	}
	return string(a)
}
