//go:build ignore

// Imports writes to standard output, as a FileDescriptorSet, the definitions
// that our .proto files import. They are taken from the Go packages that
// generated code will link with, so protoc needs no include files and sees
// exactly the versions go.mod asks for.
package main

import (
	"log"
	"os"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func main() {
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() { // imports come before their users
			add(file.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
	}
	add(durationpb.File_google_protobuf_duration_proto)
	add(emptypb.File_google_protobuf_empty_proto)
	add(timestamppb.File_google_protobuf_timestamp_proto)
	add(types.File_types_event_proto)
	add(taskv3.File_runtime_task_v3_shim_proto)

	out, err := proto.Marshal(set)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := os.Stdout.Write(out); err != nil {
		log.Fatal(err)
	}
}
