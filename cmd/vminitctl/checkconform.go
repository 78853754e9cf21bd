package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/kcheck"
)

// conformanceRow is a feature as a container showed it.
type conformanceRow struct {
	Feature  string          `json:"feature"`
	Exercise string          `json:"exercise"`
	Kernel   kcheck.Status   `json:"kernel"`
	Result   conformanceKind `json:"container"`
	Saw      string          `json:"saw,omitempty"`
}

type conformanceKind string

const (
	shows   conformanceKind = "shows"
	fails   conformanceKind = "fails"   // the kernel has it, the container does not show it
	notMade conformanceKind = "skipped" // the kernel, or the place, has not what it takes
)

// conformer makes the exercises one after the other.
type conformer struct {
	place     *checkPlace
	at        kcheck.Site
	namespace string
	features  []kcheck.Row
	progress  *progress
}

// run makes in one container what goes together, and if that fails, in one each,
// to tell what it was.
func (c *conformer) run(ctx context.Context) []conformanceRow {
	var together []kcheck.Exercise
	rows := map[string][]conformanceRow{} // by exercise
	all := kcheck.Exercises()
	for _, x := range all {
		made := c.rows(x)
		rows[x.Name] = made
		switch {
		case made[0].Result == notMade:
		case x.Live == "" && !x.Alone:
			together = append(together, x)
		default:
			c.exercise(ctx, rows, x)
		}
	}
	if !c.exercise(ctx, rows, together...) {
		for _, x := range together {
			c.exercise(ctx, rows, x)
		}
	}
	var list []conformanceRow
	for _, x := range all {
		list = append(list, rows[x.Name]...)
	}
	return list
}

// rows are those of an exercise before it is made; or all there will be, if it
// cannot be.
func (c *conformer) rows(x kcheck.Exercise) []conformanceRow {
	rows := make([]conformanceRow, len(x.Features))
	obstacle := ""
	if x.Edit != nil && !x.Edit(c.spec(), c.at) {
		obstacle = "cannot be made in this place"
	}
	for i, name := range x.Features {
		rows[i] = conformanceRow{Feature: name, Exercise: x.Name, Kernel: c.status(name)}
		if rows[i].Kernel != kcheck.Works {
			obstacle = name + " does not work here"
		}
	}
	if obstacle != "" {
		fillRows(rows, notMade, obstacle)
	}
	return rows
}

func (c *conformer) spec() *specs.Spec { return defaultSpec(c.namespace, "check") }

func fillRows(rows []conformanceRow, result conformanceKind, text string) {
	for i := range rows {
		rows[i].Result, rows[i].Saw = result, text
	}
}

// exercise makes one container, completes the rows and reports whether it ran.
func (c *conformer) exercise(ctx context.Context, rows map[string][]conformanceRow, exercises ...kcheck.Exercise) bool {
	spec := c.spec()
	var names []string
	for _, x := range exercises {
		names = append(names, x.Name)
		if x.Edit != nil {
			x.Edit(spec, c.at)
		}
	}
	if names == nil {
		return true
	}
	c.progress.say("exercise: %s", strings.Join(names, ", "))
	spec.Process.Args = []string{"/vminitctl", "check", "--inside", strings.Join(names, ",")}
	sights, err := c.make(ctx, exercises[0], spec)
	for _, name := range names {
		if err != nil {
			fillRows(rows[name], fails, err.Error())
			continue
		}
		for i := range rows[name] {
			rows[name][i].see(sights)
		}
	}
	return err == nil
}

// see completes a row by what was seen.
func (r *conformanceRow) see(sights []kcheck.Sight) {
	r.Result, r.Saw = fails, "nothing"
	for _, s := range sights {
		if s.Feature != r.Feature {
			continue
		}
		r.Saw = s.Saw
		if s.OK {
			r.Result = shows
		}
	}
}

func (c *conformer) status(feature string) kcheck.Status {
	i := slices.IndexFunc(c.features, func(r kcheck.Row) bool { return r.Name == feature })
	if i < 0 {
		return kcheck.Missing
	}
	return c.features[i].Status
}

// make runs the container, and lets happen to it what the exercise wants, and
// returns what was seen.
func (c *conformer) make(ctx context.Context, x kcheck.Exercise, spec *specs.Spec) ([]kcheck.Sight, error) {
	box := c.place.container(spec)
	switch x.Live {
	case "":
		return c.look(ctx, box)
	case kcheck.LiveTerminal:
		spec.Process.Terminal = true
		box.terminal = new(terminal)
		return c.look(ctx, box)
	}
	look := spec.Process
	ticking := *look
	ticking.Args = []string{"/vminitctl", "check", "--inside", "tick"}
	spec.Process = &ticking
	var sights []kcheck.Sight
	_, code, err := c.place.capture(ctx, box, func(output io.Reader) (err error) {
		if _, err := io.ReadFull(output, make([]byte, 1)); err != nil { // it runs
			return fmt.Errorf("first output: %w", err)
		}
		if x.Live == kcheck.LiveExec {
			go io.Copy(io.Discard, output)
			sights, err = c.exec(ctx, box, look)
		}
		if x.Live == kcheck.LivePause {
			sights, err = c.pause(ctx, box, output)
		}
		if err != nil {
			return err
		}
		_, err = box.guest.task.Kill(ctx, &taskv3.KillRequest{ID: box.id, Signal: uint32(unix.SIGKILL), All: true})
		return describe(err)
	})
	if err == nil && x.Live == kcheck.LiveKill {
		for _, f := range x.Features {
			sights = append(sights, kcheck.Sight{Feature: f, OK: code == 128+int(unix.SIGKILL), Saw: fmt.Sprintf("exit status %d", code)})
		}
	}
	return sights, err
}

// look runs a container that says what it sees.
func (c *conformer) look(ctx context.Context, box *container) ([]kcheck.Sight, error) {
	out, code, err := c.place.capture(ctx, box, nil)
	if err != nil {
		return nil, err
	}
	return parseSights(out, code)
}

func parseSights(out string, code int) (sights []kcheck.Sight, err error) {
	if code != 0 {
		return nil, fmt.Errorf("exit status %d: %s", code, strings.TrimSpace(out))
	}
	if err := json.Unmarshal([]byte(out), &sights); err != nil {
		return nil, fmt.Errorf("what the container says: %w", err)
	}
	return sights, nil
}

// exec looks from a second process.
func (c *conformer) exec(ctx context.Context, box *container, look *specs.Process) ([]kcheck.Sight, error) {
	data, err := json.Marshal(look)
	if err != nil {
		return nil, err
	}
	s, err := openStdio(ctx, box.guest, false, false)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	_, err = box.guest.task.Exec(ctx, &taskv3.ExecProcessRequest{ID: box.id, ExecID: "look", Stdout: s.stdout, Stderr: s.stderr,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: data}})
	if err != nil {
		return nil, fmt.Errorf("exec: %w", describe(err))
	}
	var out strings.Builder
	s.start(&out, io.Discard)
	if _, err := box.guest.task.Start(ctx, &taskv3.StartRequest{ID: box.id, ExecID: "look"}); err != nil {
		return nil, fmt.Errorf("exec: %w", describe(err))
	}
	exit, err := box.guest.task.Wait(ctx, &taskv3.WaitRequest{ID: box.id, ExecID: "look"})
	if err != nil {
		return nil, fmt.Errorf("wait for the exec: %w", describe(err))
	}
	if err := s.drain(ctx); err != nil {
		return nil, fmt.Errorf("the exec: %w", err)
	}
	if _, err := box.guest.task.Delete(ctx, &taskv3.DeleteRequest{ID: box.id, ExecID: "look"}); err != nil {
		return nil, fmt.Errorf("delete the exec: %w", describe(err))
	}
	return parseSights(out.String(), int(exit.ExitStatus))
}

// pauseTime is how long a paused container is watched: it would write some
// twenty dots.
const pauseTime = 200 * time.Millisecond

// pause pauses the container, sees it silent, and hears it again afterwards.
func (c *conformer) pause(ctx context.Context, box *container, output io.Reader) ([]kcheck.Sight, error) {
	heard := make(chan struct{}, 1<<16)
	go func() {
		for b := make([]byte, 512); ; {
			n, err := output.Read(b)
			for range n {
				select {
				case heard <- struct{}{}:
				default:
				}
			}
			if err != nil {
				return
			}
		}
	}()
	if _, err := box.guest.task.Pause(ctx, &taskv3.PauseRequest{ID: box.id}); err != nil {
		return nil, fmt.Errorf("pause: %w", describe(err))
	}
	state, err := box.guest.task.State(ctx, &taskv3.StateRequest{ID: box.id})
	if err != nil {
		return nil, fmt.Errorf("state: %w", describe(err))
	}
	time.Sleep(pauseTime / 2) // for what was under way
	before := len(heard)
	time.Sleep(pauseTime)
	during := len(heard) - before
	if _, err := box.guest.task.Resume(ctx, &taskv3.ResumeRequest{ID: box.id}); err != nil {
		return nil, fmt.Errorf("resume: %w", describe(err))
	}
	after := false
	for range 100 {
		if after = len(heard) > before+during; after {
			break
		}
		time.Sleep(pauseTime / 4)
	}
	return []kcheck.Sight{{Feature: "cgroup.freeze", OK: state.Status == tasktypes.Status_PAUSED && during == 0 && after,
		Saw: fmt.Sprintf("state %s, %d dots while paused, more afterwards: %t", state.Status, during, after)}}, nil
}

// conformanceVerdict is an error that names what did not show.
func conformanceVerdict(rows []conformanceRow) error {
	var names []string
	for _, r := range rows {
		if r.Result == fails {
			names = append(names, r.Feature)
		}
	}
	if names == nil {
		return nil
	}
	return fmt.Errorf("check: the kernel has, but containers do not show: %q", names)
}

func conformanceText(rows []conformanceRow) string {
	var b strings.Builder
	table := [][]string{{"FEATURE", "KERNEL", "CONTAINER", "SAW"}}
	counts := map[conformanceKind]int{}
	for _, r := range rows {
		counts[r.Result]++
		table = append(table, []string{r.Feature, string(r.Kernel), string(r.Result), r.Saw})
	}
	b.WriteString("\n")
	writeColumns(&b, table)
	fmt.Fprintf(&b, "\n%d exercised: %d show, %d fail, %d skipped\n", len(rows), counts[shows], counts[fails], counts[notMade])
	return b.String()
}
