// Package house holds the tests that keep the house in order: who may import
// whom, and what must not get into the daemon.
package house
