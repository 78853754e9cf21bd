// Package vsockstream carries bytes between the host and the processes of a
// guest. It owns four things: listeners that let in nobody but the host, the
// hub that turns accepted connections into streams named by an id (with both
// halves of that handshake), dialing the same addresses, and pumps that move
// bytes between a stream and a pipe, a pseudo terminal or a file.
//
// It knows nothing of containers, and it must never read from a peer inside an
// accept loop, allocate by a length it has not bounded, block a thread for a
// slow peer, or keep more than one buffer per direction.
//
// One connection carries one of a process's standard streams. The host connects
// to the guest's stream port, sends an id, gets it echoed, and then both sides
// send raw bytes; the end of a direction is a half-close. The daemon claims the
// id that a request names. Nothing here trusts a peer to speak, read or close.
//
// Locks: Hub.mu may be held while listener.mu is taken; no other two nest.
package vsockstream
