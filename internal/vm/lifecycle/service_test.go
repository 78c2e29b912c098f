package lifecycle_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/fake/driver"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustCreate(t *testing.T, w *world, req vm.CreateRequest) vm.VM {
	t.Helper()
	v, err := w.Create(t.Context(), owner, req)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCreateFillsInDefaults(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if v.State != vm.Running || v.ImageID != "img_default" || v.VCPUs != 1 || v.MemMiB != 512 || !v.EnableNetwork || v.Driver != "fake" {
		t.Errorf("got %+v", v)
	}
	if v.Lease.Address.String() != "172.16.0.2" || v.Lease.MAC.String() != "02:fc:00:00:00:02" || v.Lease.SSHPort != 16000 {
		t.Errorf("got the lease %+v", v.Lease)
	}
	if !strings.Contains(v.Cmdline(netip.MustParseAddr("172.16.0.1"), 24), "hatch.ip=172.16.0.2/24") {
		t.Error("the guest is not told its address")
	}
}

func TestCreateRefusesWhatIsOutOfRange(t *testing.T) {
	w := newWorld(t)
	taken := mustCreate(t, w, vm.CreateRequest{Name: "taken"})
	cases := []struct {
		name  string
		req   vm.CreateRequest
		field string
		says  string
	}{
		{"no cpus", vm.CreateRequest{Overrides: machine.Overrides{VCPUs: new(0)}}, "vcpu_count", "1 to 4"},
		{"more cpus than the host", vm.CreateRequest{Overrides: machine.Overrides{VCPUs: new(5)}}, "vcpu_count", "1 to 4"},
		{"too little memory", vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(63)}}, "mem_mib", "64 to 16384"},
		{"more memory than the host", vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(16385)}}, "mem_mib", "64 to 16384"},
		{"tiny disk", vm.CreateRequest{Overrides: machine.Overrides{DiskMiB: new(1)}}, "disk_mib", "64 to"},
		{"address elsewhere", vm.CreateRequest{Address: netip.MustParseAddr("10.0.0.1")}, "guest_ip", "172.16.0.0/24"},
		{"gateway's address", vm.CreateRequest{Address: netip.MustParseAddr("172.16.0.1")}, "guest_ip", "host's address"},
		{"broadcast address", vm.CreateRequest{Address: netip.MustParseAddr("172.16.0.255")}, "guest_ip", "broadcast"},
		{"taken address", vm.CreateRequest{Address: taken.Lease.Address}, "guest_ip", "172.16.0.2"},
		{"multicast mac", vm.CreateRequest{MAC: net.HardwareAddr{3, 0, 0, 0, 0, 1}}, "guest_mac", "multicast"},
		{"the host's own mac", vm.CreateRequest{MAC: net.HardwareAddr{2, 0xfc, 0, 0, 0, 1}}, "guest_mac", "host's own"},
		{"zero mac", vm.CreateRequest{MAC: make(net.HardwareAddr, 6)}, "guest_mac", "02:FC"},
		{"long mac", vm.CreateRequest{MAC: make(net.HardwareAddr, 8)}, "guest_mac", "six bytes"},
		{"taken mac", vm.CreateRequest{MAC: taken.Lease.MAC}, "guest_mac", "02:FC"},
		{"address without a network", vm.CreateRequest{Overrides: machine.Overrides{EnableNetwork: new(false)}, Address: netip.MustParseAddr("172.16.0.9")}, "guest_ip", "enable_network"},
		{"name with spaces", vm.CreateRequest{Name: "a b"}, "name", "hostname"},
		{"taken name", vm.CreateRequest{Name: "taken"}, "name", "taken"},
		{"line break in boot_args", vm.CreateRequest{Overrides: machine.Overrides{BootArgs: new("a\nb")}}, "boot_args", "printable"},
		{"huge user_data", vm.CreateRequest{Overrides: machine.Overrides{UserData: new(strings.Repeat("x", machine.MaxUserData+1))}}, "user_data", "1048576"},
		{"label without a key", vm.CreateRequest{Overrides: machine.Overrides{Labels: map[string]string{"": "x"}}}, "labels", "key"},
		{"a private key as key", vm.CreateRequest{Overrides: machine.Overrides{SSHKeys: []string{"-----BEGIN OPENSSH PRIVATE KEY-----"}}}, "ssh_authorized_keys", "entry 1"},
		{"a slow disk", vm.CreateRequest{Overrides: machine.Overrides{RateLimits: &vmm.RateLimits{Disk: vmm.DiskLimit{BytesPerSecond: 1}}}}, "rate_limits.disk.bytes_per_second", "65536 to"},
		{"a network's limit without a network", vm.CreateRequest{Overrides: machine.Overrides{EnableNetwork: new(false), RateLimits: &vmm.RateLimits{NetworkIn: vmm.NetworkLimit{BytesPerSecond: 1 << 20}}}}, "rate_limits", "enable_network"},
		{"unknown image", vm.CreateRequest{Overrides: machine.Overrides{ImageID: "img_none"}}, "image_id", "img_none"},
		{"unknown driver", vm.CreateRequest{Overrides: machine.Overrides{Driver: "vmware"}}, "vmm", "firecracker"},
		{"absent driver", vm.CreateRequest{Overrides: machine.Overrides{Driver: "firecracker"}}, "vmm", "firecracker"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := w.Create(t.Context(), owner, c.req)
			kind := errs.KindOf(err)
			if kind != errs.Invalid && kind != errs.Conflict && kind != errs.Unsupported {
				t.Fatalf("got kind %s: %v", kind, err)
			}
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), c.field) {
				t.Errorf("%q should name %q and say %q", err, c.field, c.says)
			}
		})
	}
	if all, _, _ := w.List(t.Context(), access.Owner(owner), vm.Filter{}); len(all) != 1 {
		t.Errorf("%d rows after refused creates, want 1", len(all))
	}
}

func TestCreateThatFailsLeavesOnlyARowInError(t *testing.T) {
	for _, call := range []string{"Provision", "Attach", "Open", "Initramfs", "Disks", "Start", "UpdateVM", "Console"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t)
			w.calls.FailNext(call)
			_, failed := w.Create(t.Context(), owner, vm.CreateRequest{})
			if failed == nil {
				t.Fatal("the create did not fail")
			}
			w.requireNothing(t)
			all, _, err := w.List(t.Context(), access.Owner(owner), vm.Filter{})
			if err != nil || len(all) != 1 {
				t.Fatalf("got %v, %v", all, err)
			}
			v := all[0]
			if v.State != vm.Failed || v.StateReason == "" || v.Lease.Address.IsValid() || v.Lease.SSHPort != 0 || v.Machine != nil {
				t.Errorf("got %+v", v)
			}
			if e, ok := errs.As(failed); !ok || e.VMID != v.ID {
				t.Errorf("the error does not name %s: %v", v.ID, failed)
			}
			again, err := w.Start(t.Context(), access.Owner(owner), v.ID)
			if err != nil || again.State != vm.Running || !again.Lease.Address.IsValid() {
				t.Errorf("error is a dead end: %+v, %v", again, err)
			}
		})
	}
}

func TestStopStartKeepsTheLease(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	for range 3 {
		stopped, err := w.Stop(t.Context(), access.Owner(owner), v.ID)
		if err != nil || stopped.State != vm.Stopped || stopped.Lease.Address != v.Lease.Address {
			t.Fatalf("got %+v, %v", stopped, err)
		}
		if again, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil || again.State != vm.Stopped {
			t.Fatalf("stop of a stopped VM: %+v, %v", again, err)
		}
		started, err := w.Start(t.Context(), access.Owner(owner), v.ID)
		if err != nil || started.State != vm.Running || started.Lease.Address != v.Lease.Address || started.Lease.SSHPort != v.Lease.SSHPort {
			t.Fatalf("got %+v, %v", started, err)
		}
	}
	if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	w.requireNothing(t)
	if _, err := w.Get(t.Context(), access.Owner(owner), v.ID); !errs.Is(err, errs.NotFound) {
		t.Errorf("got %v after delete", err)
	}
}

// A kill or a delete does not wait for a stop that waits for its guest.
func TestUrgentRequestsCutAStopShort(t *testing.T) {
	for name, urgent := range map[string]func(ctx context.Context, w *world, id string) error{
		"kill": func(ctx context.Context, w *world, id string) error {
			_, err := w.Service.Stop(ctx, access.Owner(owner), id, new(time.Duration(0)))
			return err
		},
		"delete": func(ctx context.Context, w *world, id string) error { return w.Delete(ctx, access.Owner(owner), id) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			w.driver.IgnorePowerButton(v.ID)
			stopped := make(chan error, 1)
			go func() {
				after, err := w.Service.Stop(t.Context(), access.Owner(owner), v.ID, new(time.Minute))
				if err == nil && !strings.Contains(after.StateReason, "killed for another request") {
					err = errors.New(after.StateReason)
				}
				stopped <- err
			}()
			if _, err := w.Wait(t.Context(), access.Owner(owner), v.ID, vm.WaitFor{State: vm.Stopping}); err != nil {
				t.Fatal(err)
			}
			if err := urgent(t.Context(), w, v.ID); err != nil {
				t.Error(err)
			}
			if err := <-stopped; err != nil {
				t.Errorf("the stop: %v", err)
			}
		})
	}
}

// A request may have a timeout of its own; 0 does not ask the guest.
func TestStopWithATimeout(t *testing.T) {
	for timeout, want := range map[time.Duration]string{0: "killed at once", time.Millisecond: "did not shut down within 1ms"} {
		t.Run(timeout.String(), func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			w.driver.IgnorePowerButton(v.ID)
			stopped, err := w.Service.Stop(t.Context(), access.Owner(owner), v.ID, &timeout)
			if err != nil || stopped.State != vm.Stopped || !strings.Contains(stopped.StateReason, want) {
				t.Fatalf("got %+v, %v", stopped, err)
			}
		})
	}
}

func TestStopOfAnUnresponsiveGuestKillsIt(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.driver.IgnorePowerButton(v.ID)
	stopped, err := w.Stop(t.Context(), access.Owner(owner), v.ID)
	if err != nil || stopped.State != vm.Stopped || !strings.Contains(stopped.StateReason, "did not shut down") {
		t.Fatalf("got %+v, %v", stopped, err)
	}
}

func TestStopOfAPausedGuest(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if p, err := w.Pause(t.Context(), access.Owner(owner), v.ID); err != nil || p.State != vm.Paused {
		t.Fatalf("got %+v, %v", p, err)
	}
	if _, err := w.Start(t.Context(), access.Owner(owner), v.ID); !errs.HasCode(err, "vm_paused") {
		t.Errorf("start of a paused VM: %v", err)
	}
	if stopped, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil || stopped.State != vm.Stopped {
		t.Fatalf("got %+v, %v", stopped, err)
	}
}

func TestMachineExitsAreDetected(t *testing.T) {
	cases := []struct {
		name  string
		end   func(w *world, id string)
		state vm.State
		says  string
	}{
		{"power off in the guest", func(w *world, id string) { w.driver.PowerOff(id) }, vm.Stopped, "powered itself off"},
		{"panic in the guest", func(w *world, id string) { w.driver.Panic(id) }, vm.Failed, "panicked"},
		{"crash of the VMM", func(w *world, id string) { w.driver.Crash(id) }, vm.Failed, "ended unexpectedly"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			c.end(w, v.ID)
			ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
			defer cancel()
			got, err := w.Wait(ctx, access.Owner(owner), v.ID, vm.WaitFor{State: c.state})
			if err != nil || !strings.Contains(got.StateReason, c.says) {
				t.Fatalf("got %+v, %v", got, err)
			}
			if _, err := w.Start(t.Context(), access.Owner(owner), v.ID); err != nil {
				t.Errorf("cannot start it again: %v", err)
			}
		})
	}
}

func TestAGuestThatRebootsIsStartedAgain(t *testing.T) {
	cases := map[string]struct {
		faults []string
		state  vm.State
		left   bool // a process of it is left
	}{
		"started":             {nil, vm.Running, true},
		"no start":            {[]string{"Start"}, vm.Failed, false},
		"no console":          {[]string{"Console"}, vm.Failed, false},
		"no console, no kill": {[]string{"Console", "Kill"}, vm.Failed, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			for _, fault := range c.faults {
				w.calls.FailNext(fault)
			}
			w.driver.Reset(v.ID)
			w.untilTold(t, v.ID, "operation reboot ", 1)
			if c.state == vm.Running {
				w.untilTold(t, v.ID, "guest rebooted", 1)
			}
			got, err := w.Get(t.Context(), access.Owner(owner), v.ID)
			if err != nil || got.State != c.state || (got.Machine != nil) != c.left {
				t.Fatalf("got %s (%s), machine %+v, %v", got.State, got.StateReason, got.Machine, err)
			}
			if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
				t.Fatal(err)
			}
			w.requireNothing(t)
		})
	}
}

func TestMachinesOutliveTheDaemonAndAreAdopted(t *testing.T) {
	w := newWorld(t)
	running := mustCreate(t, w, vm.CreateRequest{})
	paused := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Pause(t.Context(), access.Owner(owner), paused.ID); err != nil {
		t.Fatal(err)
	}
	lost := mustCreate(t, w, vm.CreateRequest{})
	w.shut(t)
	w.driver.Crash(lost.ID)
	w.serve(t)

	for id, want := range map[string]vm.State{running.ID: vm.Running, paused.ID: vm.Paused, lost.ID: vm.Stopped} {
		if v, err := w.Get(t.Context(), access.Owner(owner), id); err != nil || v.State != want {
			t.Errorf("%s: got %s (%s), %v; want %s", id, v.State, v.StateReason, err, want)
		}
	}
	if links, forwards := w.network.Links(), w.forwards.VMs(); len(links) != 2 || len(forwards) != 2 {
		t.Errorf("networks and forwards were not put back: %v %v", links, forwards)
	}
	for _, id := range []string{running.ID, paused.ID, lost.ID} {
		if err := w.Delete(t.Context(), access.Owner(owner), id); err != nil {
			t.Error(err)
		}
	}
	w.requireNothing(t)
}

// A machine whose driver cannot be used any more may live: nothing that it uses
// is given away.
func TestMachineWithoutItsDriverIsNotGone(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.shut(t)
	w.driverName = "other"
	w.open(t)
	if err := w.Recover(t.Context(), "/"); err == nil || !strings.Contains(err.Error(), "cannot be used") {
		t.Errorf("the adoption says %v", err)
	}
	if now, err := w.Get(t.Context(), access.Owner(owner), v.ID); err != nil || now.State != vm.Running {
		t.Errorf("it is %s (%s), %v", now.State, now.StateReason, err)
	}
	if err := w.Delete(t.Context(), access.Owner(owner), v.ID); !errs.HasCode(err, "vmm_unresponsive") {
		t.Errorf("the delete says %v", err)
	}
	w.shut(t)
	w.driverName = "fake"
	w.serve(t) // which goes on with the delete
	if _, err := w.Get(t.Context(), access.Owner(owner), v.ID); !errs.Is(err, errs.NotFound) {
		t.Errorf("with its driver: %v", err)
	}
	w.requireNothing(t)
}

// A driver that cannot list its machines leaves its own VMs as they are, and
// holds up neither another driver's nor those for good.
func TestDriverThatCannotListMachinesDelaysNoOther(t *testing.T) {
	w := newWorld(t)
	w.second = driver.New()
	w.shut(t)
	w.serve(t)
	mute, heard := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{Driver: "mute"}}), mustCreate(t, w, vm.CreateRequest{})
	w.shut(t)
	w.second.Crash(mute.ID) // which only its driver could tell
	w.second.Calls.Fail("List", 1, errors.New("injected: no list"))
	w.open(t)
	if err := w.Recover(t.Context(), "/"); err == nil || !strings.Contains(err.Error(), "no list") {
		t.Errorf("the adoption says %v", err)
	}
	if _, err := w.Guest(t.Context(), access.Owner(owner), heard.ID); err != nil || len(w.network.Links()) != 1 {
		t.Errorf("the other driver's VM was not adopted: %v, links %v", err, w.network.Links())
	}
	if now, err := w.Get(t.Context(), access.Owner(owner), mute.ID); err != nil || now.State != vm.Running || now.Machine == nil {
		t.Errorf("its own VM is %s (%s), %v", now.State, now.StateReason, err)
	}
	w.shut(t)
	w.second.Calls.Withdraw("List")
	w.serve(t)
	if now, err := w.Get(t.Context(), access.Owner(owner), mute.ID); err != nil || now.State != vm.Stopped {
		t.Errorf("once it lists, its own VM is %s (%s), %v", now.State, now.StateReason, err)
	}
	for _, id := range []string{mute.ID, heard.ID} {
		if err := w.Delete(t.Context(), access.Owner(owner), id); err != nil {
			t.Error(err)
		}
	}
	w.requireNothing(t)
}

// TestNoCallerAdoptsAMachineBeforeRecovery wants to work inside a VM while
// the daemon still takes over what it finds. A caller that gets ahead of it leaves
// the VM without its network and its SSH port.
func TestNoCallerAdoptsAMachineBeforeRecovery(t *testing.T) {
	for name, open := range map[string]func(ctx context.Context, w *world, id string) error{
		"guest": func(ctx context.Context, w *world, id string) error {
			_, err := w.Guest(ctx, access.Owner(owner), id)
			return err
		},
		"console": func(ctx context.Context, w *world, id string) error {
			_, err := w.Console(ctx, access.Owner(owner), id, true)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			v := mustCreate(t, w, vm.CreateRequest{})
			w.shut(t)
			w.open(t)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if err := open(ctx, w, v.ID); err == nil {
				t.Error("it was reached before it was taken over")
			}
			if err := w.Recover(t.Context(), "/"); err != nil {
				t.Fatal(err)
			}
			if links, forwards := w.network.Links(), w.forwards.VMs(); len(links) != 1 || len(forwards) != 1 {
				t.Errorf("network and forward were not put back: %v %v", links, forwards)
			}
			if _, err := w.Guest(t.Context(), access.Owner(owner), v.ID); err != nil {
				t.Errorf("after the adoption: %v", err)
			}
		})
	}
}

func TestMachinesWithoutAVMAreEndedAtStart(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.shut(t)
	if err := w.store.DeleteVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	w.serve(t)
	w.requireNothing(t)
}

func TestOperationsInterruptedByACrashAreFinished(t *testing.T) {
	w := newWorld(t)
	deleting := mustCreate(t, w, vm.CreateRequest{})
	stopping := mustCreate(t, w, vm.CreateRequest{})
	starting := mustCreate(t, w, vm.CreateRequest{})
	w.shut(t)
	change := func(id string, f func(*vm.VM)) {
		if _, err := w.store.UpdateVM(t.Context(), id, f); err != nil {
			t.Fatal(err)
		}
	}
	change(deleting.ID, func(v *vm.VM) { v.Intent = vm.IntentDeleted })
	change(stopping.ID, func(v *vm.VM) { v.State, v.Intent = vm.Stopping, vm.IntentStopped })
	change(starting.ID, func(v *vm.VM) { v.State, v.Machine, v.Provisioned = vm.Starting, nil, false })
	w.driver.Crash(starting.ID)
	w.serve(t)

	if _, err := w.Get(t.Context(), access.Owner(owner), deleting.ID); !errs.Is(err, errs.NotFound) {
		t.Errorf("a delete was not finished: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if _, err := w.Wait(ctx, access.Owner(owner), stopping.ID, vm.WaitFor{State: vm.Stopped}); err != nil {
		t.Errorf("a stop was not finished: %v", err)
	}
	v, err := w.Get(t.Context(), access.Owner(owner), starting.ID)
	if err != nil || v.State != vm.Failed || v.Lease.Address.IsValid() {
		t.Errorf("a create cut short: got %+v, %v", v, err)
	}
}

func TestConcurrentCreatesGetDistinctLeases(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	for range 20 {
		wg.Go(func() {
			v, err := w.Create(context.Background(), owner, vm.CreateRequest{Overrides: machine.Overrides{MemMiB: new(64)}})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, part := range []string{v.Lease.Address.String(), v.Lease.MAC.String(), v.Lease.Tap} {
				if seen[part] {
					t.Errorf("%s was given twice", part)
				}
				seen[part] = true
			}
		})
	}
	wg.Wait()
}

func TestDisconnectedCallerAbortsNothing(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.driver.IgnorePowerButton(v.ID)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan struct{})
	w.calls.Before("UpdateVM", func() { leave(); <-left }) // the stop has begun, and goes on when its caller is gone
	_, err := w.Stop(ctx, access.Owner(owner), v.ID)
	w.calls.Before("UpdateVM", nil)
	close(left)
	if !errs.HasCode(err, "still_working") {
		t.Fatalf("got %v", err)
	}
	if err := waitFor(t, w, v, vm.WaitFor{State: vm.Stopped}); err != nil {
		t.Errorf("the stop was aborted: %v", err)
	}
}

// TestWaitTimeoutDuringAReadIsReported ends before the database has answered.
func TestWaitTimeoutDuringAReadIsReported(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	ctx, leave := context.WithCancel(t.Context())
	leave()
	_, err := w.Wait(ctx, access.Owner(owner), v.ID, vm.WaitFor{State: vm.Stopped})
	if !errs.HasCode(err, "wait_timeout") || strings.HasSuffix(err.Error(), "the VM is ") {
		t.Errorf("got %v", err)
	}
}

// A row of the last hatchd is not believed before recovery has looked for the machine.
func TestWaitAwaitsRecovery(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.shut(t)
	w.driver.Crash(v.ID)
	w.open(t)
	type answer struct {
		vm  vm.VM
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		got, err := w.Wait(t.Context(), access.Owner(owner), v.ID, vm.WaitFor{State: vm.Running})
		answers <- answer{got, err}
	}()
	select {
	case got := <-answers:
		t.Fatalf("before recovery: %s, %v", got.vm.State, got.err)
	case <-time.After(50 * time.Millisecond): // a wait that believes the row answers at once
	}
	if err := w.Recover(t.Context(), "/"); err != nil {
		t.Fatal(err)
	}
	if got := <-answers; !errs.HasCode(got.err, "wait_impossible") {
		t.Errorf("after recovery: %s, %v", got.vm.State, got.err)
	}
}

func TestAnotherOwnerSeesNothing(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	for name, call := range map[string]func() error{
		"get":    func() error { _, err := w.Get(t.Context(), access.Owner("acc_other"), v.ID); return err },
		"stop":   func() error { _, err := w.Stop(t.Context(), access.Owner("acc_other"), v.ID); return err },
		"delete": func() error { return w.Delete(t.Context(), access.Owner("acc_other"), v.ID) },
		"wait": func() error {
			_, err := w.Wait(t.Context(), access.Owner("acc_other"), v.ID, vm.WaitFor{Ready: true})
			return err
		},
		"guest": func() error { _, err := w.Guest(t.Context(), access.Owner("acc_other"), v.ID); return err },
		"look":  func() error { _, err := w.AwakeGuest(t.Context(), access.Owner("acc_other"), v.ID); return err },
	} {
		if err := call(); !errs.Is(err, errs.NotFound) {
			t.Errorf("%s of another owner's VM: %v", name, err)
		}
	}
}

// The host is idle once all guests are ready, and the caller hears of it.
func TestTheHostIsIdleOnceGuestsAreReady(t *testing.T) {
	w := newWorld(t)
	requireIdle := func(want bool) <-chan struct{} {
		t.Helper()
		idle, changed, err := w.Idle(t.Context())
		if err != nil || idle != want {
			t.Errorf("the host is idle: %v, %v; want %v", idle, err, want)
		}
		return changed
	}
	requireIdle(true)
	v := mustCreate(t, w, vm.CreateRequest{})
	changed := requireIdle(false)
	w.guests.Session(v.ID).Observe(&vm.GuestReport{Addresses: []netip.Addr{v.Lease.Address}, CloudInit: vm.CloudInit{Status: "running"}})
	<-changed
	changed = requireIdle(false)
	w.guests.Session(v.ID).Observe(&vm.GuestReport{Addresses: []netip.Addr{v.Lease.Address}, CloudInit: vm.CloudInit{Status: "done"}})
	<-changed
	requireIdle(true)

	w.calls.FailNext("Start")
	if _, err := w.Create(t.Context(), owner, vm.CreateRequest{}); err == nil {
		t.Fatal("the create does not fail")
	}
	requireIdle(true)
}

func TestAReportThatCouldNotBeStoredIsStoredLater(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.calls.FailNext("UpdateVM")
	w.guests.Session(v.ID).Observe(&vm.GuestReport{Addresses: []netip.Addr{v.Lease.Address}, CloudInit: vm.CloudInit{Status: "absent"}})
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if _, err := w.Wait(ctx, access.Owner(owner), v.ID, vm.WaitFor{Ready: true}); err != nil {
		t.Fatal(err)
	}
	if w.calls.Pending("UpdateVM") {
		t.Error("the report was stored at the first attempt: the test shows nothing")
	}
}

func TestAWaitForAGuestIsAUse(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	ctx, leave := context.WithCancel(t.Context())
	waited := make(chan error, 1)
	go func() {
		_, err := w.Wait(ctx, access.Owner(owner), v.ID, vm.WaitFor{Ready: true})
		waited <- err
	}()
	uses := w.Reach().Uses(v.ID)
	for tick, late := time.Tick(time.Millisecond), time.After(waitTimeout); len(uses) == 0; uses = w.Reach().Uses(v.ID) {
		select {
		case <-tick:
		case <-late:
			t.Fatal("a wait for a guest is no use")
		}
	}
	if len(uses) != 1 || uses[0].Cause != reach.Wait {
		t.Errorf("during the wait: %+v", uses)
	}
	leave()
	if err := <-waited; !errs.HasCode(err, "wait_timeout") {
		t.Error(err)
	}
	if uses := w.Reach().Uses(v.ID); len(uses) > 0 {
		t.Errorf("after the wait: %+v", uses)
	}
}

func TestAReadyGuestEndsTheWait(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	ready := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
		defer cancel()
		_, err := w.Wait(ctx, access.Owner(owner), v.ID, vm.WaitFor{Ready: true})
		ready <- err
	}()
	g := w.guests.Session(v.ID)
	g.Observe(&vm.GuestReport{Addresses: []netip.Addr{v.Lease.Address}, CloudInit: vm.CloudInit{Status: "absent"}})
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	if _, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Wait(t.Context(), access.Owner(owner), v.ID, vm.WaitFor{Ready: true}); !errs.HasCode(err, "wait_impossible") {
		t.Errorf("waiting for a stopped guest: %v", err)
	}
}

// TestUnresponsiveMachineIsNotGone lets a daemon start that cannot take
// over a live machine at first.
func TestUnresponsiveMachineIsNotGone(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	w.shut(t)
	w.failAdopts(1) // the one of the start
	w.serve(t)
	got, err := w.Get(t.Context(), access.Owner(owner), v.ID)
	if err != nil || got.State != vm.Running {
		t.Fatalf("got %s (%s), %v", got.State, got.StateReason, err)
	}
	w.failAdopts(1)
	for name, call := range map[string]func() error{
		"delete": func() error { w.failAdopts(1); return w.Delete(t.Context(), access.Owner(owner), v.ID) },
		"start":  func() error { w.failAdopts(1); _, err := w.Start(t.Context(), access.Owner(owner), v.ID); return err },
		"stop":   func() error { w.failAdopts(1); _, err := w.Stop(t.Context(), access.Owner(owner), v.ID); return err },
	} {
		if err := call(); !errs.HasCode(err, "vmm_unresponsive") {
			t.Errorf("%s of a machine out of reach: %v", name, err)
		}
	}
	if _, err := os.Stat(w.files.Disk(v.ID)); err != nil {
		t.Fatal("the files of a live machine were removed")
	}
	if stopped, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil || stopped.State != vm.Stopped {
		t.Errorf("once it answers again: %+v, %v", stopped, err)
	}
	if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Error(err)
	}
	w.requireNothing(t)
}
