// Package kcheck asks the running kernel, feature by feature, what it has of
// what a container runtime in a microVM can use: the table behind
// "vminitctl check". Every probe tries the thing itself, not a version number;
// none changes anything that lasts, loads a module or waits for ever. What
// needs a process of its own runs as a program of nsexec in a child.
//
// Exercises go the other way: each is a container config that uses features and
// a look from inside whether they are there (vminitctl check --conformance).
//
// The package belongs to the client: the daemon must not import it.
package kcheck
