// Package api is the root of vminit's own wire services: .proto files, whose
// comments are the documentation of each call, and the Go code generated from
// them by generate.sh (`make generate`). Hosts may import the packages below
// it; they hold messages, ttrpc clients and server registration, and must
// never import anything else of this module.
//
// Packages, names and numbers are a contract with hosts that exist: fields
// are added, never renumbered or reused. The Task service is not here: it is
// containerd's (github.com/containerd/containerd/api/runtime/task).
package api

//go:generate ./generate.sh
