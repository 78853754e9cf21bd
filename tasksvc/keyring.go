package tasksvc

import (
	"encoding/hex"

	"vminit/internal/sys"
)

// keyring is the session keyring of a container's first process, "" if its host
// wants it to keep the daemon's.
func (o createOptions) keyring(id string) string {
	if o.noKeyring {
		return ""
	}
	return newKeyring(id)
}

// newKeyring names a session keyring that nobody has. To join a keyring by a
// name that exists is to share it (keyctl(2), KEYCTL_JOIN_SESSION_KEYRING): a
// container that guesses what another's will be called could make it first and
// read the other's keys.
func newKeyring(id string) string {
	var b [16]byte
	sys.Random(b[:])
	return "_ses." + id + "." + hex.EncodeToString(b[:])
}
