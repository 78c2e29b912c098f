package lifecycle_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/vm"
)

// sleepers is a capacity.Evictor that puts VMs to sleep in a given order.
type sleepers struct {
	w *world

	mu      sync.Mutex
	order   []string // ids
	evicted []string
	err     error // of the next eviction
}

func (s *sleepers) Evict(ctx context.Context, _ access.Scope) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.err; err != nil {
		s.err = nil
		return false, err
	}
	if len(s.order) == 0 {
		return false, nil
	}
	id := s.order[0]
	s.order = s.order[1:]
	done, err := s.w.TakeDown(ctx, id, vm.TakeDown{
		Action: machine.ActionSleep, Rule: vm.RuleMemory, NoWait: true,
		Still:  func(v vm.VM) bool { return v.State == vm.Running },
		Reason: func(vm.Activity) string { return "asleep because another VM needs memory" },
	})
	if done {
		s.evicted = append(s.evicted, id)
	}
	return done, err
}

// asleep returns the VMs that were put to sleep, and forgets them.
func (s *sleepers) asleep() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.evicted = nil }()
	return s.evicted
}

// newIdleWorld is a world that has memory for n VMs of 256 MiB, as many of them, and
// idle that puts them to sleep in the order of their creation.
func newIdleWorld(t *testing.T, n int) (*world, *sleepers) {
	t.Helper()
	w := newWorld(t)
	s := &sleepers{w: w}
	w.shut(t)
	w.idle = s
	w.serve(t)
	for range n {
		s.order = append(s.order, mustCreate(t, w, quarter).ID)
	}
	w.memMiB = int64(n) * 256
	return w, s
}

// quarter is the request for a VM of 256 MiB.
var quarter = vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(256)}}

func TestIdleVMsSleepForAnother(t *testing.T) {
	w, s := newIdleWorld(t, 3)
	first, second, third := s.order[0], s.order[1], s.order[2]
	all := access.Owner(owner)

	created := mustCreate(t, w, quarter)
	if got := s.asleep(); !slices.Equal(got, []string{first}) {
		t.Errorf("for a new VM %v slept", got)
	}
	if _, err := w.Wake(t.Context(), all, first); err != nil {
		t.Errorf("wake: %v", err)
	}
	if got := s.asleep(); !slices.Equal(got, []string{second}) {
		t.Errorf("for a VM that wakes %v slept", got)
	}
	s.order = []string{third, created.ID}
	if _, err := w.Start(t.Context(), all, second); err != nil {
		t.Errorf("start: %v", err)
	}
	if got := s.asleep(); !slices.Equal(got, []string{third}) {
		t.Errorf("for a VM that starts %v slept", got)
	}
	if _, err := w.Fork(t.Context(), owner, second, vm.CloneRequest{Count: 1}); err != nil {
		t.Errorf("fork: %v", err)
	}
	if got := s.asleep(); !slices.Equal(got, []string{created.ID}) {
		t.Errorf("for a fork %v slept", got)
	}
	if v, err := w.Create(t.Context(), owner, quarter); !errs.HasCode(err, "memory_exhausted") {
		t.Errorf("when all sleep that may, %s is made: %v", v.ID, err)
	}
}

func TestSeveralVMsSleepForALargeOne(t *testing.T) {
	w, s := newIdleWorld(t, 4)
	order := slices.Clone(s.order)
	mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(3 * 256)}})
	if got := s.asleep(); !slices.Equal(got, order[:3]) {
		t.Errorf("%v slept, want the first three of %v", got, order)
	}
}

// At the quota of running VMs, idle ones of the same owner sleep; without one, a VM stays
// asleep, and says why however often a connection arrives.
func TestIdleVMsSleepForTheirOwnersQuota(t *testing.T) {
	w, s := newIdleWorld(t, 2)
	first := s.order[0]
	w.memMiB = 1 << 20
	w.store.LimitUsers(quota.Limits{quota.Memory: 512})
	s.order = s.order[:1]
	mustCreate(t, w, quarter)
	if got := s.asleep(); !slices.Equal(got, []string{first}) {
		t.Errorf("for a new VM %v slept", got)
	}
	for range 5 {
		if err := w.WakeOnDemand(t.Context(), first); !errs.HasCode(err, quota.Code) {
			t.Errorf("a connection: %v", err)
		}
	}
	events, _, err := w.store.Events(t.Context(), event.Filter{Scope: access.Everyone, VMID: first, Types: []event.Pattern{event.Pattern(event.VMOperation)}, Limit: 10})
	if err != nil || len(events) == 0 || !strings.Contains(string(events[len(events)-1].Data), "memory_mib: the quota is exceeded: 512 used, 256 asked for, 512 allowed") {
		t.Errorf("events %+v, %v", events, err)
	}
	w.store.LimitUsers(nil)
	if _, err := w.Wake(t.Context(), access.Owner(owner), first); err != nil {
		t.Errorf("once there is room: %v", err)
	}
}

// Nothing sleeps for what finds no room in any case, for hatchd's own, or for a disk.
func TestNoVMSleepsInVain(t *testing.T) {
	w, s := newIdleWorld(t, 2)
	parent := s.order[0]
	s.order = s.order[1:]
	if _, err := w.Fork(t.Context(), owner, parent, vm.CloneRequest{Count: 3}); !errs.HasCode(err, "memory_exhausted") {
		t.Errorf("more than there is: %v", err)
	}
	shape, err := w.ShapeFor(t.Context(), owner, quarter)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.CreateOfShape(t.Context(), shape); !errs.HasCode(err, "memory_exhausted") {
		t.Errorf("hatchd's own: %v", err)
	}
	w.memMiB, w.diskMiB = 1<<20, func() (int64, error) { return 2048, nil }
	if _, err := w.Create(t.Context(), owner, quarter); !errs.HasCode(err, "disk_exhausted") {
		t.Errorf("no disk: %v", err)
	}
	if got := s.asleep(); got != nil {
		t.Errorf("%v slept", got)
	}
}

func TestVMThatCannotSleepLeavesTheRefusal(t *testing.T) {
	w, s := newIdleWorld(t, 1)
	s.err = errors.New("its disk is full")
	if _, err := w.Create(t.Context(), owner, quarter); !errs.HasCode(err, "memory_exhausted") {
		t.Errorf("got %v", err)
	}
	mustCreate(t, w, quarter) // the next attempt succeeds
}

// hatchd's own goes first, even where an idle VM has to sleep as well.
func TestWarmMemoryGoesBeforeIdleVMs(t *testing.T) {
	w, s := newWarmWorld(t)
	idle := &sleepers{w: w}
	w.shut(t)
	w.idle = idle
	w.serve(t)
	idle.order = []string{mustCreate(t, w, quarter).ID}
	s.idle = w.snapshotFiles.PinMemory("snap_idle", 10<<20)
	w.memMiB = 2 * 256
	mustCreate(t, w, quarter)
	if got := idle.asleep(); got != nil || s.idle != nil {
		t.Errorf("%v slept; idle memory was dropped: %v", got, s.idle == nil)
	}
	s.idle = w.snapshotFiles.PinMemory("snap_idle", 10<<20)
	mustCreate(t, w, quarter)
	if got := idle.asleep(); len(got) != 1 || s.idle != nil {
		t.Errorf("%v slept; idle memory was dropped: %v", got, s.idle == nil)
	}
}

// Many requests at a time put no more VMs to sleep than they need, and each is served.
func TestRequestsAtOnceTakeTurns(t *testing.T) {
	const n = 6
	w, s := newIdleWorld(t, 2*n)
	order := slices.Clone(s.order)
	w.memMiB += 256 // one finds room
	var made sync.WaitGroup
	for range n + 1 {
		made.Go(func() {
			if _, err := w.Create(t.Context(), owner, quarter); err != nil {
				t.Error(err)
			}
		})
	}
	made.Wait()
	if got := s.asleep(); !slices.Equal(got, order[:n]) {
		t.Errorf("%d slept, want the first %d:\n%v\n%v", len(got), n, got, order)
	}
}

// A request that finds no memory holds the lock of its VM, which may be the idle one.
func TestVMDoesNotWaitForItself(t *testing.T) {
	w, s := newIdleWorld(t, 2)
	ids := slices.Clone(s.order)
	for i, id := range ids {
		s.order = []string{id, ids[1-i]} // its own first
		began := time.Now()
		if _, err := w.Fork(t.Context(), owner, id, vm.CloneRequest{Count: 1}); !errs.HasCode(err, "memory_exhausted") {
			t.Errorf("a VM that would have to sleep for its own clone: %v", err)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("it waited for itself, %v", took)
		}
		if got := s.asleep(); got != nil {
			t.Errorf("%v slept", got)
		}
	}
}

// Memory of VMs that sleep already is waited for until it is on disk: no other sleeps.
func TestMemoryOnItsWayToDiskIsWaitedFor(t *testing.T) {
	w, s := newIdleWorld(t, 2)
	w.shut(t)
	w.holdPersist = make(chan struct{})
	w.serve(t)
	if _, err := w.Sleep(t.Context(), access.Owner(owner), s.order[1]); err != nil {
		t.Fatal(err)
	}
	asked := 0
	w.diskMiB = func() (int64, error) {
		if asked++; asked == 2 { // the first time there was no room
			close(w.holdPersist)
		}
		return 1 << 20, nil
	}
	mustCreate(t, w, quarter)
	if got := s.asleep(); got != nil {
		t.Errorf("%v slept as well", got)
	}
}

// The memory of a VM is freed under its lock: a request that holds it waits for others only.
func TestAForkDoesNotWaitForTheMemoryOfItsVM(t *testing.T) {
	w, s := newIdleWorld(t, 2)
	w.shut(t)
	w.holdPersist = make(chan struct{})
	w.serve(t)
	w.memMiB += 16 // for the clone, and not for a VM more
	slept := s.order[1]
	if _, err := w.Sleep(t.Context(), access.Owner(owner), slept); err != nil {
		t.Fatal(err)
	}
	s.order = s.order[:1]
	want, copied := s.order[0], sync.OnceFunc(func() { close(w.holdPersist) })
	w.diskMiB = func() (int64, error) {
		copied() // its memory is on disk, and now waits for the lock
		return 1 << 20, nil
	}
	if _, err := w.Fork(t.Context(), owner, slept, vm.CloneRequest{Count: 1}); err != nil {
		t.Error(err)
	}
	if got := s.asleep(); !slices.Equal(got, []string{want}) {
		t.Errorf("%v slept, want %s", got, want)
	}
}

// Memory that cannot be written to the disk stays in RAM; it is not waited for.
func TestMemoryThatCannotBeSavedIsNotWaitedFor(t *testing.T) {
	w, s := newIdleWorld(t, 2)
	w.calls.Fail("Persist", 1, errors.New("the disk is broken"))
	order := slices.Clone(s.order)
	mustCreate(t, w, quarter)
	if got := s.asleep(); !slices.Equal(got, order) {
		t.Errorf("%v slept, want %v", got, order)
	}
}
