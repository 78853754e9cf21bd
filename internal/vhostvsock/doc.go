// Package vhostvsock is the host half of AF_VSOCK for machines without
// /dev/vhost-vsock: a virtio-vsock device (virtio 1.2, section 5.10) that serves
// QEMU over the vhost-user protocol and hands the guest's connections out as
// net.Conns. It needs no privileges and no kernel module.
//
// It owns the vhost-user socket, the mappings of guest memory, the two data
// rings (QEMU keeps the event ring) and, per connection, one end of a unix socket
// pair whose other end is the Conn. One goroutine, the session's loop, touches all
// of these and nothing else does, so rings and connections need no locks; everyone
// else talks to the loop through its mailbox. The loop moves bytes straight between
// socket pair and guest memory and never blocks: a reader that stops reading stops
// its own connection only.
//
// The guest is the adversary. It controls descriptors, ring indexes and packet
// headers, and changes them while they are read: everything is copied once and then
// checked, no length is believed before it is bounded, and a ring with nonsense in
// it is stopped until the guest resets the device. The package must never panic,
// never block and never grow without bound for anything that a guest does. QEMU's
// messages are checked too, but a QEMU that means harm can always stop its own guest.
//
// QEMU can be restarted under a Device, but a Device cannot be restarted under
// QEMU (vhost does not reconnect): it must live in the process that owns the VM.
package vhostvsock
