package tasksvc

import (
	"syscall"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// stopSignalAnnotation is the image's STOPSIGNAL, as tools that make a config of
// an image write it down: OCI image-spec conversion.md, "Annotation Fields".
const stopSignalAnnotation = "org.opencontainers.image.stopSignal"

// stopSignal is what asks a container to end: its image's signal, or SIGTERM.
func stopSignal(annotations map[string]string) syscall.Signal {
	sig, err := sys.ParseSignal(annotations[stopSignalAnnotation])
	if err != nil { // it is none, or there is none
		return unix.SIGTERM
	}
	return sig
}
