package lifecycle_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

// TestAWaitIsForABootThatStays has a guest that reboots while its row tells of the boot
// that ends.
func TestAWaitIsForABootThatStays(t *testing.T) {
	for name, want := range map[string]vm.WaitFor{
		"agent": {Agent: true}, "cloud-init": {CloudInit: true}, "ready": {Ready: true}, "a port": {Port: 80},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			asked := make(chan struct{}, 64)
			w.guests.Up = func(context.Context) (string, error) {
				asked <- struct{}{}
				return "2", nil
			}
			w.guests.DialPort = func(context.Context, int) (net.Conn, error) {
				conn, _ := net.Pipe()
				return conn, nil
			}
			v := mustCreate(t, w, vm.CreateRequest{})
			report := func(boot string) {
				w.guests.Session(v.ID).Observe(&vm.GuestReport{BootID: boot, Addresses: []netip.Addr{v.Lease.Address}, CloudInit: vm.CloudInit{Status: "done"}})
			}
			report("1")
			for tick := time.Tick(time.Millisecond); get(t, w, v.ID).Conditions.BootID != "1"; {
				<-tick
			}
			waited := make(chan error, 1)
			go func() { waited <- waitFor(t, w, v, want) }()
			select {
			case <-asked:
			case err := <-waited:
				t.Fatalf("the wait ended in the boot that ends: %v", err)
			}
			report("2")
			if err := <-waited; err != nil {
				t.Error(err)
			}
			if now := get(t, w, v.ID); now.Conditions.BootID != "2" {
				t.Errorf("the wait ended in boot %s", now.Conditions.BootID)
			}
		})
	}
}

// TestAGuestThatBootsIsSavedOnceItsKernelIsUp sleeps and takes a snapshot, with a driver
// that saves no earlier.
func TestAGuestThatBootsIsSavedOnceItsKernelIsUp(t *testing.T) {
	for name, save := range map[string]func(*world, vm.VM) error{
		"sleep": func(w *world, v vm.VM) error {
			_, err := w.Sleep(context.Background(), access.Owner(owner), v.ID)
			return err
		},
		"snapshot": func(w *world, v vm.VM) error {
			_, err := w.Snapshot(context.Background(), access.Owner(owner), v.ID, vm.SnapshotRequest{Name: "early"})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.driver.Capabilities.SaveNeedsKernel = true
			v := mustCreate(t, w, vm.CreateRequest{})
			var up atomic.Bool
			w.calls.Before("Save", func() {
				if !up.Load() {
					t.Error("it is saved before its kernel is up")
				}
			})
			saved := make(chan error, 1)
			go func() { saved <- save(w, v) }()
			<-time.After(50 * time.Millisecond) // in which a save that does not wait would be seen
			up.Store(true)
			w.guests.Session(v.ID).Observe(&vm.GuestReport{Addresses: []netip.Addr{v.Lease.Address}, CloudInit: vm.CloudInit{Status: "running"}})
			if err := <-saved; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAPausedGuestIsNotWaitedFor(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Pause(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Guest(t.Context(), access.Owner(owner), v.ID); !errs.HasCode(err, "vm_paused") {
		t.Errorf("work in a paused guest: %v", err)
	}
	if _, err := w.Resume(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Guest(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Errorf("after the resume: %v", err)
	}
}

// TestWorkBeginsInABootThatStays has a guest that is not up for as long as its caller waits.
func TestWorkBeginsInABootThatStays(t *testing.T) {
	w := newWorld(t)
	ctx, leave := context.WithCancel(t.Context())
	w.guests.Up = func(ctx context.Context) (string, error) {
		leave()
		<-ctx.Done()
		return "", ctx.Err()
	}
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Guest(ctx, access.Owner(owner), v.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("work in a guest that is not up: %v", err)
	}
}
