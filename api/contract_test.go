package api_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	bundle "vminit/api/services/bundle/v1"
	guest "vminit/api/services/guest/v1"
	mount "vminit/api/services/mount/v1"
	runtime "vminit/api/services/runtime/v1"
	socketforward "vminit/api/services/socketforward/v1"
	stdio "vminit/api/services/stdio/v1"
	system "vminit/api/services/system/v1"
	vmevents "vminit/api/services/vmevents/v1"
)

// TestContract compares names, types and numbers with testdata/contract.txt.
// Hosts rely on every line of it: lines may be added, none may change.
// UPDATE_GOLDEN=1 rewrites the file.
func TestContract(t *testing.T) {
	var b strings.Builder
	for _, f := range []protoreflect.FileDescriptor{
		bundle.File_services_bundle_v1_bundle_proto,
		system.File_services_system_v1_system_proto,
		vmevents.File_services_vmevents_v1_vmevents_spinbox_proto,
		vmevents.File_services_vmevents_v1_vmevents_nerdbox_proto,
		mount.File_services_mount_v1_mount_proto,
		socketforward.File_services_socketforward_v1_socketforward_proto,
		stdio.File_services_stdio_v1_stdio_proto,
		guest.File_services_guest_v1_guest_proto,
		runtime.File_services_runtime_v1_runtime_proto,
	} {
		describe(&b, f)
	}
	const golden = "testdata/contract.txt"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the wire contract changed; got:\n%s", b.String())
	}
}

func describe(b *strings.Builder, f protoreflect.FileDescriptor) {
	for i := range f.Services().Len() {
		s := f.Services().Get(i)
		fmt.Fprintf(b, "%s\n", s.FullName())
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			fmt.Fprintf(b, "  %s(%s%s) -> %s%s\n", m.Name(),
				stream(m.IsStreamingClient()), m.Input().FullName(),
				stream(m.IsStreamingServer()), m.Output().FullName())
		}
	}
	for i := range f.Messages().Len() {
		m := f.Messages().Get(i)
		fmt.Fprintf(b, "  %s{", m.Name())
		for j := range m.Fields().Len() {
			fd := m.Fields().Get(j)
			fmt.Fprintf(b, " %s=%d", typeOf(fd)+" "+string(fd.Name()), fd.Number())
		}
		fmt.Fprint(b, " }\n")
	}
}

func stream(yes bool) string {
	if yes {
		return "stream "
	}
	return ""
}

func typeOf(fd protoreflect.FieldDescriptor) string {
	switch {
	case fd.IsMap():
		return "map<" + fd.MapKey().Kind().String() + "," + fd.MapValue().Kind().String() + ">"
	case fd.Message() != nil && fd.IsList():
		return "repeated " + string(fd.Message().Name())
	case fd.Message() != nil:
		return string(fd.Message().Name())
	case fd.IsList():
		return "repeated " + fd.Kind().String()
	}
	return fd.Kind().String()
}

// TestNoGRPC: with the tag no_grpc, a binary that links every service carries
// gRPC's status codes, which ttrpc itself speaks, and not gRPC.
func TestNoGRPC(t *testing.T) {
	cmd := exec.Command("go", "list", "-tags", "no_grpc", "-deps", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		if _, missing := exec.LookPath("go"); missing != nil {
			t.Skip("no go command here")
		}
		t.Fatalf("go list: %v", err)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		switch pkg {
		case "google.golang.org/grpc", "google.golang.org/grpc/internal/transport",
			"net/http", "github.com/gogo/protobuf/proto":
			t.Errorf("depends on %s", pkg)
		}
	}
}
