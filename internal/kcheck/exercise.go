package kcheck

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Site is what exercises have to know about where they are made.
type Site struct {
	// Erofs is the device of the image that is the container's root, below an
	// overlay; "" where the root is a directory.
	Erofs string
}

// Exercise is a container that uses features of the kernel, and what is to be
// seen inside if they work.
type Exercise struct {
	Name string
	// Features are those it shows, by their names in the table. It is made only
	// where the kernel has all of them.
	Features []string
	// Edit makes the config of a default container one that uses them. It
	// returns false, and changes nothing, where that cannot be done. May be nil.
	Edit func(*specs.Spec, Site) bool
	// Alone says that its config goes together with no other exercise's.
	Alone bool
	// Live names what happens to the container while it runs; the caller
	// knows how. "" if it just runs to its end.
	Live string

	// inside looks from inside the container; one sight for each feature.
	inside func() []Sight
}

// What can happen to a container while it runs.
const (
	LivePause    = "pause"    // paused and resumed
	LiveKill     = "kill"     // killed with all its processes
	LiveExec     = "exec"     // looked at from an exec beside it
	LiveTerminal = "terminal" // runs on a terminal
)

// Sight is what was seen of a feature.
type Sight struct {
	Feature string `json:"feature"`
	OK      bool   `json:"ok"`
	Saw     string `json:"saw"`
}

func saw(feature string, ok bool, format string, args ...any) Sight {
	return Sight{feature, ok, fmt.Sprintf(format, args...)}
}

// Exercises returns all of them.
func Exercises() []Exercise {
	return slices.Concat(plainExercises(), cgroupExercises(), mountExercises(), processExercises(), liveExercises())
}

// Inside looks for what the exercises of these names want to be seen. It is
// called in the container.
func Inside(names ...string) (sights []Sight, err error) {
	all := Exercises()
	for _, name := range names {
		i := slices.IndexFunc(all, func(x Exercise) bool { return x.Name == name && x.inside != nil })
		if i < 0 {
			return nil, fmt.Errorf("no look from inside is called %q", name)
		}
		sights = append(sights, all[i].inside()...)
	}
	return sights, nil
}
