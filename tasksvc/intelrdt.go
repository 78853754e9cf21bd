package tasksvc

import (
	"vminit/internal/sys"
)

// checkIntelRdt refuses linux.intelRdt.
func checkIntelRdt() error {
	return sys.Unsupportedf("linux.intelRdt is not supported")
}
