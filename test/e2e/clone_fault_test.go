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

// survivor is a guest that must survive when hatchd is killed during an operation
// on it: afterwards it is as before the operation, or as after it.
type survivor struct {
	*countingGuest
	image   string
	counter int      // of its program, as of the last increment
	ballast string   // checksum of a file in its memory
	files   []string // in its VM's directory
	host    traces   // without its process

	before        api.Snapshot // restores go back to it
	counterBefore int          // in before

	startedFailed bool // a VM that a killed create had left in error was started
}

// operation is what hatchd does when it is killed.
type operation struct {
	name    string
	prepare func(*testing.T) // before each run; may be nil
	run     func(context.Context) error
	check   func(*testing.T) (outcome string) // undoes the operation, too
}

// killsEach is how often hatchd is killed during each operation, at moments from
// the beginning to the end of an undisturbed run.
const killsEach = 5

// testKilledOperations kills hatchd during snapshots, restores, sleeps, wakes and
// clones.
func testKilledOperations(t *testing.T, w *world) {
	s := newSurvivor(t, w)
	for _, op := range []operation{
		{name: "a snapshot", run: s.createSnapshot(api.CreateSnapshot{}), check: s.checkSnapshot},
		{name: "a snapshot with a stop", run: s.createSnapshot(api.CreateSnapshot{Stop: true}), check: s.checkSnapshot},
		{name: "a restore", prepare: s.incrementTwice, check: s.checkRestored, run: func(ctx context.Context) error {
			_, err := s.client.RestoreVM(ctx, s.vm.ID, s.before.ID)
			return err
		}},
		{name: "a sleep", check: s.checkUnharmed, run: func(ctx context.Context) error {
			_, err := s.client.SleepVM(ctx, s.vm.ID)
			return err
		}},
		{name: "a wake", prepare: func(t *testing.T) { s.sleep(t, s.vm) }, check: s.checkUnharmed, run: func(ctx context.Context) error {
			_, err := s.client.WakeVM(ctx, s.vm.ID)
			return err
		}},
		{name: "a fork", check: s.checkClones, run: func(ctx context.Context) error {
			_, err := s.client.ForkVM(ctx, s.vm.ID, api.ForkVM{Count: new(2), Name: "child"})
			return err
		}},
		{name: "a create from a warm snapshot", prepare: s.requireWarm, check: s.checkClones, run: func(ctx context.Context) error {
			_, err := s.client.CreateVM(ctx, survivorBody(s.image, "clone"), client.CreateOptions{})
			return err
		}},
	} {
		t.Run(op.name, func(t *testing.T) { s.killDuring(t, op) })
	}
	w.delete(t, s.vm.ID)
	s.deleteSnapshots(t)
	if err := w.client.DeleteImage(t.Context(), s.image); err != nil {
		t.Error(err)
	}
}

const survivorMem = 2 * minimalMem // MiB

// survivorBody is a VM of the shape of which there is a warm snapshot.
func survivorBody(image, name string) api.CreateVM {
	body := minimal()
	body.ImageID, body.Name, body.MemMiB = image, name, new(survivorMem)
	return body
}

func newSurvivor(t *testing.T, w *world) *survivor {
	t.Helper()
	image := w.registerCopy(t, minimalID, "img_survivor")
	w.warm(t, image.ID, "--memory", fmt.Sprint(survivorMem), "--disk", fmt.Sprint(smallDisk))
	s := &survivor{countingGuest: newCountingGuest(t, w, survivorBody(image.ID, "survivor"), 24), image: image.ID}
	s.ballast = s.inside(t, s.vm, "md5sum /mem/ballast")
	s.counterBefore = s.increment(t, s.vm)
	s.before = s.snapshot(t, api.CreateSnapshot{Name: "before"})
	s.counter = s.counterBefore
	s.files, s.host = s.ownFiles(t), s.hostTraces(t)
	return s
}

func (s *survivor) killDuring(t *testing.T, op operation) {
	prepare := func() {
		if op.prepare != nil {
			op.prepare(t)
		}
	}
	prepare()
	began := time.Now()
	if err := op.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	undisturbed := time.Since(began)
	outcomes := map[string]int{"undisturbed: " + s.outcome(t, op): 1}
	for i := range killsEach {
		prepare()
		during(t, undisturbed*time.Duration(i)/(killsEach-1), func(ctx context.Context) { _ = op.run(ctx) }, func() { s.stopDaemon(t, syscall.SIGKILL) })
		s.startDaemon(t)
		outcomes[s.outcome(t, op)]++
	}
	t.Logf("undisturbed it takes %s; outcomes: %v", undisturbed.Round(time.Millisecond), outcomes)
}

// outcome waits for hatchd's startup recovery and returns what came of an
// operation, which must leave nothing else.
func (s *survivor) outcome(t *testing.T, op operation) string {
	t.Helper()
	_, _ = s.client.ResumeVM(t.Context(), s.vm.ID) // answers after the recovery; refused for a VM that sleeps
	outcome := op.check(t)
	if got := s.inside(t, s.vm, "md5sum /mem/ballast"); got != s.ballast {
		t.Errorf("its memory has %q, and had %q", got, s.ballast)
	}
	s.requireAlone(t)
	if t.Failed() {
		t.Fatalf("after: %s", outcome)
	}
	return outcome
}

// requireAlone checks that only the survivor is left on the host.
func (s *survivor) requireAlone(t *testing.T) {
	t.Helper()
	var more, gone []string
	err := sandbox.Poll(normalReply, func() (bool, error) {
		now := s.hostTraces(t)
		more, gone = minus(now, s.host), lost(s.host, now)
		if files := s.ownFiles(t); !slices.Equal(files, s.files) {
			more = append(more, fmt.Sprintf("the files %v of the VM, before %v", files, s.files))
		}
		processes := vmms(t)
		return len(more)+len(gone) == 0 && len(processes) == 1 && processes[0].runs(s.vm), nil
	})
	if err != nil {
		t.Errorf("the host is not as it was before:\nleft behind: %v\ngone: %v\nprocesses: %+v", more, gone, vmms(t))
	}
	s.requireSnapshots(t, []string{s.before.ID})
}

// hostTraces are all traces but the processes.
func (s *survivor) hostTraces(t *testing.T) traces {
	t.Helper()
	return slices.DeleteFunc(s.traces(t), func(line string) bool { return strings.HasPrefix(line, "process ") })
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

// awake wakes the guest if it sleeps, waits until it answers, and returns the
// state that it was found in.
func (s *survivor) awake(t *testing.T) (state string) {
	t.Helper()
	state = s.stable(t, s.vm.ID).State
	if state == api.StateSnapshotted {
		s.wake(t, s.vm)
	}
	s.await(t, s.vm.ID, "agent", normalReply)
	return state
}

// checkUnharmed checks that the guest continues where it was.
func (s *survivor) checkUnharmed(t *testing.T) string {
	t.Helper()
	state := s.awake(t)
	s.requireUnharmed(t, s.counter)
	s.counter++
	return state
}

func (s *survivor) createSnapshot(body api.CreateSnapshot) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := s.client.CreateSnapshot(ctx, s.vm.ID, body)
		return err
	}
}

// checkSnapshot also restores the new snapshot, if there is one, and deletes it.
func (s *survivor) checkSnapshot(t *testing.T) string {
	t.Helper()
	outcome := s.checkUnharmed(t)
	list, err := s.client.ListSnapshots(t.Context(), s.vm.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, snap := range list {
		if snap.ID == s.before.ID {
			continue
		}
		outcome += ", snapshot taken"
		if !snap.Durable {
			t.Errorf("there is %+v", snap)
		}
		s.restore(t, snap.ID)
		s.requireUnharmed(t, s.counter-1)
		if err := s.client.DeleteSnapshot(t.Context(), snap.ID); err != nil {
			t.Error(err)
		}
	}
	return outcome
}

// incrementTwice makes the guest's memory differ from the snapshot's.
func (s *survivor) incrementTwice(t *testing.T) {
	t.Helper()
	s.increment(t, s.vm)
	s.counter = s.increment(t, s.vm)
}

func (s *survivor) checkRestored(t *testing.T) string {
	t.Helper()
	state := s.awake(t)
	if got := s.bootID(t); got != s.boot {
		t.Errorf("the guest has rebooted: boot %s, was %s", got, s.boot)
	}
	was := s.counter
	switch s.counter = s.increment(t, s.vm); s.counter {
	case was + 1:
		return state + ", not restored"
	case s.counterBefore + 1:
		return state + ", restored"
	default:
		t.Errorf("the counter is %d; it was %d before the restore and %d in the snapshot", s.counter, was, s.counterBefore)
		return state
	}
}

// requireWarm checks that the next VM will be a clone.
func (s *survivor) requireWarm(t *testing.T) {
	t.Helper()
	if warm := s.warmGuests(t, s.image); len(warm) != 1 || warm[0].State != api.WarmReady {
		t.Fatalf("the warm snapshots are %+v", warm)
	}
}

// checkClones checks that every VM but the survivor is whole and has its own
// identity, or is in error and can be started, and deletes it.
func (s *survivor) checkClones(t *testing.T) string {
	t.Helper()
	s.checkUnharmed(t)
	var states []string
	for _, id := range s.ids(t) {
		if id == s.vm.ID {
			continue
		}
		v := s.stable(t, id)
		states = append(states, v.State)
		switch {
		case v.State == api.StateRunning:
			s.requireIdentity(t, s.await(t, id, "ready", readyLimit))
		case v.State != api.StateError || v.GuestIP != "":
			t.Errorf("there is %+v", v)
		case !s.startedFailed:
			s.startedFailed = true
			s.requireStarts(t, id)
		}
		s.delete(t, id)
	}
	return fmt.Sprint(states)
}

// requireStarts boots a VM that a killed create has left in error.
func (s *survivor) requireStarts(t *testing.T, id string) {
	t.Helper()
	if _, err := s.client.StartVM(t.Context(), id); err != nil {
		t.Fatalf("a VM in error cannot be started: %v", err)
	}
	s.requireIdentity(t, s.await(t, id, "ready", readyLimit))
}
