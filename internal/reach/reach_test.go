package reach_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/fake"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vmm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const id = "vm_abc123def456"

// world is one VM with everything that leads to it.
type world struct {
	*reach.Reach
	vm        vm.VM
	live      *live.Registry
	guests    *fake.Guests
	waking    func() // during a wake; nil: nothing
	endless   bool   // a wake does not end before its caller's context
	wakes     int
	wakeError error
	noNetwork error // of dials to its address
	noAgent   error // of dials through its agent
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{vm: vm.VM{
		ID: id, OwnerID: "acc_a", State: vm.Running, Machine: &vmm.Handle{PID: 1},
		Lease: network.Lease{Address: netip.MustParseAddr("172.16.0.2")},
	}}
	w.vm.EnableNetwork = true
	w.guests = &fake.Guests{DialPort: func(context.Context, int) (net.Conn, error) { return connection(w.noAgent) }}
	w.live = live.New(live.Config{Guests: w.guests, Consoles: &fake.Consoles{}, BootID: func() string { return "" }, Log: slog.New(slog.DiscardHandler)})
	w.Reach = w.newReach(0)
	return w
}

func (w *world) newReach(wakeTimeout time.Duration) *reach.Reach {
	return reach.New(reach.Config{Store: w, Live: w.live, Locks: w, Waker: w, WakeTimeout: wakeTimeout, DialNetwork: w.dial})
}

// run gives the VM a machine.
func (w *world) run(t *testing.T) {
	t.Helper()
	if _, err := w.live.Join(id, machine{}, w.guests.Connect); err != nil {
		t.Fatal(err)
	}
	w.vm.State, w.vm.Sleep, w.vm.Machine = vm.Running, nil, &vmm.Handle{PID: 1}
}

func (w *world) sleep() {
	w.vm.State, w.vm.Sleep, w.vm.Machine = vm.Snapshotted, &vm.Sleep{}, nil
}

func (w *world) VM(_ context.Context, scope access.Scope, vmID string) (vm.VM, error) {
	if vmID != id || !scope.Sees(w.vm.OwnerID) {
		return vm.VM{}, errs.New(errs.NotFound, "vm_not_found", "no such VM")
	}
	return w.vm, nil
}

func (w *world) LockRecovered(context.Context, string) (func(), error) { return func() {}, nil }

func (w *world) WakeIfAsleep(ctx context.Context, _ string) error {
	w.wakes++
	if w.waking != nil {
		w.waking()
	}
	if w.endless {
		<-ctx.Done()
		return ctx.Err()
	}
	return w.wakeError
}

func (w *world) WakeOnDemand(ctx context.Context, id string) error { return w.WakeIfAsleep(ctx, id) }

func (w *world) dial(context.Context, netip.AddrPort) (net.Conn, error) {
	return connection(w.noNetwork)
}

func connection(err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	ours, theirs := net.Pipe()
	_ = theirs.Close()
	return ours, nil
}

func (w *world) requireUses(t *testing.T, want ...reach.Cause) {
	t.Helper()
	var got []reach.Cause
	for _, use := range w.Uses(id) {
		if use.Since.IsZero() {
			t.Errorf("%s began at no time", use.Cause)
		}
		got = append(got, use.Cause)
	}
	if len(got) != len(want) {
		t.Fatalf("in use for %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("in use for %v, want %v", got, want)
		}
	}
}

type machine struct{ vmm.Machine }

func (machine) Close() error { return nil }

var owner = access.Owner("acc_a")

func TestAUseCountsUntilItIsReleased(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	s, release, err := w.Open(t.Context(), owner, id, reach.Exec, reach.Wake)
	if err != nil || s == nil {
		t.Fatal(s, err)
	}
	_, releaseFiles, err := w.Open(t.Context(), owner, id, reach.Files, reach.NoWake)
	if err != nil {
		t.Fatal(err)
	}
	w.requireUses(t, reach.Exec, reach.Files)
	release()
	release() // once more is harmless
	w.requireUses(t, reach.Files)
	releaseFiles()
	w.requireUses(t)
	if w.wakes != 0 {
		t.Errorf("a running VM was woken %d times", w.wakes)
	}
}

func TestAFailedOpenCountsNothing(t *testing.T) {
	for name, c := range map[string]struct {
		scope access.Scope
		setUp func(*world)
		mode  reach.Mode
		code  string
	}{
		"of another user":         {access.Owner("acc_b"), func(*world) {}, reach.Wake, "vm_not_found"},
		"of the zero scope":       {access.Scope{}, func(*world) {}, reach.Wake, "vm_not_found"},
		"stopped":                 {owner, func(w *world) { w.vm.State, w.vm.Machine = vm.Stopped, nil }, reach.Wake, "vm_not_running"},
		"asleep, not to be woken": {owner, (*world).sleep, reach.NoWake, "vm_not_running"},
		"asleep, and stays so":    {owner, func(w *world) { w.sleep(); w.wakeError = errs.New(errs.Exhausted, "memory_exhausted", "full") }, reach.Wake, "memory_exhausted"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.setUp(w)
			s, release, err := w.Open(t.Context(), c.scope, id, reach.Exec, c.mode)
			if !errs.HasCode(err, c.code) || s != nil || release != nil {
				t.Errorf("got %v, %v", s, err)
			}
			if c.mode == reach.NoWake && w.wakes > 0 {
				t.Error("it was woken")
			}
			w.requireUses(t)
		})
	}
}

func TestASleepingVMIsWokenAndInUseMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.sleep()
	w.waking = func() {
		w.requireUses(t, reach.Files)
		w.run(t)
	}
	_, release, err := w.Open(t.Context(), owner, id, reach.Files, reach.Wake)
	if err != nil || w.wakes != 1 {
		t.Fatalf("woken %d times, %v", w.wakes, err)
	}
	release()
	w.requireUses(t)
}

func TestAConnectionCountsUntilItIsClosed(t *testing.T) {
	unreachable := errors.New("unreachable")
	for name, c := range map[string]struct {
		noNetwork, noAgent error
		networkless        bool
		code               string
	}{
		"by the network":      {},
		"through the agent":   {noNetwork: unreachable},
		"without a network":   {networkless: true, noNetwork: unreachable},
		"neither":             {noNetwork: unreachable, noAgent: unreachable, code: "port_closed"},
		"neither, no network": {networkless: true, noNetwork: unreachable, noAgent: errs.New(errs.Unsupported, "agent_too_old", "old"), code: "agent_too_old"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.run(t)
			w.noNetwork, w.noAgent, w.vm.EnableNetwork = c.noNetwork, c.noAgent, !c.networkless
			conn, err := w.Dial(t.Context(), owner, id, 80, reach.Wait)
			if c.code != "" {
				if !errs.HasCode(err, c.code) {
					t.Errorf("got %v", err)
				}
				w.requireUses(t)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			w.requireUses(t, reach.Wait)
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			w.requireUses(t)
		})
	}
}

func TestNoConnectionOutOfScope(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	if _, err := w.Dial(t.Context(), access.Owner("acc_b"), id, 80, reach.Wait); !errs.HasCode(err, "vm_not_found") {
		t.Errorf("got %v", err)
	}
	w.requireUses(t)
}

func TestNoMachineMeansNoConnection(t *testing.T) {
	w := newWorld(t)
	w.noNetwork = errors.New("unreachable")
	if _, err := w.Dial(t.Context(), owner, id, 80, reach.Wait); !errs.HasCode(err, "port_closed") {
		t.Errorf("got %v", err)
	}
	w.requireUses(t)
}

// A connection that is kept is no use, and each machine has a number of its own.
func TestAKeptConnectionIsNoUse(t *testing.T) {
	w := newWorld(t)
	if _, ok := w.Current(id); ok {
		t.Error("a VM without a machine has one")
	}
	w.run(t)
	first, ok := w.Current(id)
	conn, err := w.Connect(t.Context(), owner, id, 80, reach.Route)
	if err != nil || !ok {
		t.Fatal(err)
	}
	w.requireUses(t)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	w.live.Remove(id, w.live.Current(id))
	w.sleep()
	if _, err := w.Machine(t.Context(), owner, id, reach.Route, reach.NoWake); !errs.HasCode(err, "vm_not_running") {
		t.Errorf("got %v", err)
	}
	w.waking = func() { w.run(t) }
	second, err := w.Machine(t.Context(), owner, id, reach.Route, reach.Wake)
	if current, _ := w.Current(id); err != nil || second == first || current != second || w.wakes != 1 {
		t.Errorf("machine %d, then %d, now %d, %v", first, second, current, err)
	}
}

// Nothing is kept of a VM that is deleted while it is used, or while it falls asleep.
func TestADeletedVMIsForgotten(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	quiet := 0
	w.OnQuiet(func(string) { quiet++ })
	_, release, err := w.Open(t.Context(), owner, id, reach.Exec, reach.Wake)
	if err != nil {
		t.Fatal(err)
	}
	_, decided := w.FallAsleep(id)
	w.Forget(id)
	release()
	decided()
	if last, inUse := w.Last(id); last != (vm.Activity{}) || inUse || quiet != 0 {
		t.Errorf("its last use was %s, in use: %v, quiet: %d", last, inUse, quiet)
	}
	w.requireUses(t)
}

// The server bounds the wait for a wake on each way in, however long a caller would wait.
func TestEachWayInWaitsForAWakeOnlySoLong(t *testing.T) {
	w := newWorld(t)
	r := w.newReach(time.Millisecond)
	w.sleep()
	w.endless = true
	for name, enter := range map[string]func(context.Context) error{
		"a session": func(ctx context.Context) error {
			_, _, err := r.Open(ctx, access.Everyone, id, reach.Exec, reach.Wake)
			return err
		},
		"a machine": func(ctx context.Context) error {
			_, err := r.Machine(ctx, access.Everyone, id, reach.Route, reach.Wake)
			return err
		},
		"a wait or a tunnel": func(ctx context.Context) error { _, err := r.Awake(ctx, access.Everyone, id); return err },
		"a port":             func(ctx context.Context) error { return r.WakeOnDemand(ctx, id) },
	} {
		if err := enter(t.Context()); !errs.HasCode(err, "wake_timeout") || !errs.Is(err, errs.TimedOut) {
			t.Errorf("%s: %v", name, err)
		}
		gone, leave := context.WithCancel(t.Context())
		leave()
		if err := enter(gone); errs.HasCode(err, "wake_timeout") || err == nil {
			t.Errorf("%s of a caller that leaves: %v", name, err)
		}
	}
	w.requireUses(t)
}
