//go:build system

package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// keepAsked has hatchd keep those guests booted that it is asked for.
const keepAsked = "HATCH_WARM=manual"

// survivor is a guest that hatchd is killed around: while it is kept, copied, or
// put back. It must always be as it was before, or as it was to be.
type survivor struct {
	*kept
	image   string
	counted int      // by its program, when it was last asked
	ballast string   // sum of what is in its memory
	files   []string // in its directory
	host    traces   // but for its process

	before  api.Snapshot // what restores go back to
	counter int          // then

	started bool // a VM that hatchd's end has left in error was
}

// deed is what hatchd is killed amid.
type deed struct {
	name    string
	prepare func(*testing.T) // what goes before each; nil: nothing
	do      func(context.Context) error
	became  func(*testing.T) string // checks what has become of it, and takes it back
}

// killsEach is how often hatchd is killed amid each deed, at moments spread from
// its begin to when it has ended undisturbed.
const killsEach = 5

// testKillsAmidCopies kills hatchd again and again while it keeps a guest, puts
// it back, lets it sleep and wake, and makes others of it: whoever else there is
// it takes for one of these, and so the shared guests end first.
func testKillsAmidCopies(t *testing.T, w *world) {
	w.deleteShared(t)
	w.stopDaemon(t, syscall.SIGTERM)
	w.startDaemon(t, keepAsked)
	defer func() {
		w.stopDaemon(t, syscall.SIGTERM)
		w.startDaemon(t)
	}()
	s := newSurvivor(t, w)
	for _, d := range []deed{
		{name: "a snapshot", do: s.snapshot(api.CreateSnapshot{}), became: s.becameSnapshot},
		{name: "a snapshot with a stop", do: s.snapshot(api.CreateSnapshot{Stop: true}), became: s.becameSnapshot},
		{name: "a restore", prepare: s.countTwice, do: s.putBack, became: s.becameOlder},
		{name: "a sleep", do: s.fallAsleep, became: s.becameItself},
		{name: "a wake", prepare: func(t *testing.T) { s.sleep(t, s.vm) }, do: s.wakeUp, became: s.becameItself},
		{name: "a fork", do: s.fork, became: s.becameOthers},
		{name: "a create from a guest that is kept", prepare: s.requireWarm, do: s.createWarm, became: s.becameOthers},
	} {
		t.Run(d.name, func(t *testing.T) { s.killAmid(t, d) })
	}
	w.delete(t, s.vm.ID)
	s.deleteSnapshots(t)
	if err := w.client.DeleteImage(t.Context(), s.image); err != nil {
		t.Error(err)
	}
}

const survivorMem = 2 * minimalMem // MiB

// bodyOf is a VM of the shape that is kept booted.
func bodyOf(image, name string) api.CreateVM {
	body := minimal()
	body.ImageID, body.Name, body.MemMiB = image, name, new(survivorMem)
	return body
}

func newSurvivor(t *testing.T, w *world) *survivor {
	t.Helper()
	image := w.registerAgain(t, minimalID, "img_survivor")
	w.warm(t, image.ID, "--memory", fmt.Sprint(survivorMem), "--disk", fmt.Sprint(smallDisk))
	s := &survivor{kept: newKept(t, w, bodyOf(image.ID, "survivor"), 24), image: image.ID}
	s.ballast = s.inside(t, s.vm, "md5sum /mem/ballast")
	s.counter = s.countOn(t, s.vm)
	s.before = s.take(t, api.CreateSnapshot{Name: "before"})
	s.counted = s.counter
	s.files, s.host = s.ownFiles(t), s.hostTraces(t)
	return s
}

func (s *survivor) killAmid(t *testing.T, d deed) {
	begin := func() {
		if d.prepare != nil {
			d.prepare(t)
		}
	}
	begin()
	began := time.Now()
	if err := d.do(t.Context()); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	ends := map[string]int{"undisturbed: " + s.settle(t, d): 1}
	for i := range killsEach {
		begin()
		amid(t, took*time.Duration(i)/(killsEach-1), func(ctx context.Context) { _ = d.do(ctx) }, func() { s.stopDaemon(t, syscall.SIGKILL) })
		s.startDaemon(t, keepAsked)
		ends[s.settle(t, d)]++
	}
	t.Logf("it takes %s; what became of it: %v", took.Round(time.Millisecond), ends)
}

// settle waits until hatchd has taken all over, and looks what has become of a
// deed. Nothing may be left beside that.
func (s *survivor) settle(t *testing.T, d deed) string {
	t.Helper()
	_, _ = s.client.ResumeVM(t.Context(), s.vm.ID) // which waits for it; one that sleeps refuses
	end := d.became(t)
	if got := s.inside(t, s.vm, "md5sum /mem/ballast"); got != s.ballast {
		t.Errorf("its memory has %q, and had %q", got, s.ballast)
	}
	s.requireAlone(t)
	if t.Failed() {
		t.Fatalf("after: %s", end)
	}
	return end
}

// requireAlone checks that nothing is left on the host but the survivor.
func (s *survivor) requireAlone(t *testing.T) {
	t.Helper()
	var more, gone []string
	err := sandbox.Poll(normalReply, func() (bool, error) {
		now := s.hostTraces(t)
		more, gone = minus(now, s.host), lost(s.host, now)
		if files := s.ownFiles(t); !slices.Equal(files, s.files) {
			more = append(more, fmt.Sprintf("the files %v of the VM, which were %v", files, s.files))
		}
		processes := vmms(t)
		return len(more)+len(gone) == 0 && len(processes) == 1 && processes[0].runs(s.vm), nil
	})
	if err != nil {
		t.Errorf("the host is not as it was before:\nleft behind: %v\ngone: %v\nprocesses: %+v", more, gone, vmms(t))
	}
	s.requireSnapshots(t, []string{s.before.ID})
}

// hostTraces are all but the processes.
func (s *survivor) hostTraces(t *testing.T) traces {
	t.Helper()
	return slices.DeleteFunc(s.look(t), func(line string) bool { return strings.HasPrefix(line, "process ") })
}

func (s *survivor) ownFiles(t *testing.T) []string {
	t.Helper()
	return names(t, s.data("vms", s.vm.ID))
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// roused has the guest answer, whether it sleeps now or not, and returns the state
// that it was found in.
func (s *survivor) roused(t *testing.T) (state string) {
	t.Helper()
	state = s.settled(t, s.vm.ID).State
	if state == api.StateSnapshotted {
		s.wake(t, s.vm)
	}
	s.await(t, s.vm.ID, "agent", normalReply)
	return state
}

// becameItself checks that the guest goes on where it was, whether it sleeps now
// or not.
func (s *survivor) becameItself(t *testing.T) string {
	t.Helper()
	state := s.roused(t)
	s.requireUnharmed(t, s.counted)
	s.counted++
	return state
}

func (s *survivor) snapshot(body api.CreateSnapshot) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := s.client.CreateSnapshot(ctx, s.vm.ID, body)
		return err
	}
}

// becameSnapshot also goes back to the snapshot, if there is one, and deletes it.
func (s *survivor) becameSnapshot(t *testing.T) string {
	t.Helper()
	end := s.becameItself(t)
	list, err := s.client.ListSnapshots(t.Context(), s.vm.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list {
		if one.ID == s.before.ID {
			continue
		}
		end += ", kept"
		if !one.Durable {
			t.Errorf("there is %+v", one)
		}
		s.restore(t, one.ID)
		s.requireUnharmed(t, s.counted-1)
		if err := s.client.DeleteSnapshot(t.Context(), one.ID); err != nil {
			t.Error(err)
		}
	}
	return end
}

// countTwice lets the guest be another than it was before.
func (s *survivor) countTwice(t *testing.T) {
	t.Helper()
	s.countOn(t, s.vm)
	s.counted = s.countOn(t, s.vm)
}

func (s *survivor) putBack(ctx context.Context) error {
	_, err := s.client.RestoreVM(ctx, s.vm.ID, s.before.ID)
	return err
}

func (s *survivor) becameOlder(t *testing.T) string {
	t.Helper()
	state := s.roused(t)
	if got := s.bootID(t); got != s.boot {
		t.Errorf("the guest has booted anew: %s, was %s", got, s.boot)
	}
	was := s.counted
	switch s.counted = s.countOn(t, s.vm); s.counted {
	case was + 1:
		return state + ", as it was"
	case s.counter + 1:
		return state + ", put back"
	default:
		t.Errorf("it has counted to %d, after %d before the restore and %d before the snapshot", s.counted, was, s.counter)
		return state
	}
}

func (s *survivor) fallAsleep(ctx context.Context) error {
	_, err := s.client.SleepVM(ctx, s.vm.ID)
	return err
}

func (s *survivor) wakeUp(ctx context.Context) error {
	_, err := s.client.WakeVM(ctx, s.vm.ID)
	return err
}

func (s *survivor) fork(ctx context.Context) error {
	_, err := s.client.ForkVM(ctx, s.vm.ID, api.ForkVM{Count: new(2), Name: "child"})
	return err
}

// requireWarm checks that a VM would not boot.
func (s *survivor) requireWarm(t *testing.T) {
	t.Helper()
	if warm := s.world.kept(t, s.image); len(warm) != 1 || warm[0].State != api.WarmReady {
		t.Fatalf("kept are %+v", warm)
	}
}

func (s *survivor) createWarm(ctx context.Context) error {
	_, err := s.client.CreateVM(ctx, bodyOf(s.image, "copy"), client.CreateOptions{})
	return err
}

// becameOthers checks that each VM that there is beside the survivor is whole and
// itself, or in error and can be started, and deletes it.
func (s *survivor) becameOthers(t *testing.T) string {
	t.Helper()
	s.becameItself(t)
	var states []string
	for _, id := range s.ids(t) {
		if id == s.vm.ID {
			continue
		}
		v := s.settled(t, id)
		states = append(states, v.State)
		switch {
		case v.State == api.StateRunning:
			s.requireItself(t, s.await(t, id, "ready", readyLimit))
		case v.State != api.StateError || v.GuestIP != "":
			t.Errorf("there is %+v", v)
		case !s.started:
			s.started = true
			s.requireStarts(t, id)
		}
		s.delete(t, id)
	}
	return fmt.Sprint(states)
}

// requireStarts boots a VM that hatchd's end has left in error.
func (s *survivor) requireStarts(t *testing.T, id string) {
	t.Helper()
	if _, err := s.client.StartVM(t.Context(), id); err != nil {
		t.Fatalf("a VM in error cannot be started: %v", err)
	}
	s.requireItself(t, s.await(t, id, "ready", readyLimit))
}
