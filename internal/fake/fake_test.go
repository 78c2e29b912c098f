package fake

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const vmID = "vm_a"

func requireCode(t *testing.T, err error, kind errs.Kind, code string) {
	t.Helper()
	if !errs.Is(err, kind) || !errs.HasCode(err, code) {
		t.Errorf("the error is %v; want %s with code %s", err, kind, code)
	}
}

func TestLinks(t *testing.T) {
	calls := &Calls{}
	n := &Network{Calls: calls, Carried: network.Traffic{RxBytes: 1}}
	link := network.Link{VMID: vmID, Tap: "tap0"}
	if err := n.Detach(t.Context(), link); err != nil {
		t.Errorf("nothing to undo: %v", err)
	}
	_, err := n.Traffic(t.Context(), link)
	requireCode(t, err, errs.NotFound, "tap_missing")
	calls.FailNext("Attach")
	if _, err := n.Attach(t.Context(), link); err == nil || len(n.Links()) != 0 {
		t.Errorf("a failed attach left %v, %v", n.Links(), err)
	}
	for range 2 { // it may be called again
		if _, err := n.Attach(t.Context(), link); err != nil {
			t.Error(err)
		}
	}
	if got, err := n.Traffic(t.Context(), link); err != nil || got != n.Carried || n.Links()[vmID].Tap != "tap0" {
		t.Errorf("the links are %v, their traffic %+v, %v", n.Links(), got, err)
	}
	if err := n.Detach(t.Context(), link); err != nil || len(n.Links()) != 0 {
		t.Errorf("a detach left %v, %v", n.Links(), err)
	}
}

func TestForwards(t *testing.T) {
	calls := &Calls{}
	f := &Forwards{Calls: calls}
	to := network.Forward{Kind: network.ForwardSSH, Host: 16000, Guest: 22, Address: netip.MustParseAddr("172.16.0.2")}
	calls.FailNext("Open")
	if err := f.Forward(vmID, []network.Forward{to}); err == nil || len(f.VMs()) != 0 {
		t.Errorf("a failed open left %v, %v", f.VMs(), err)
	}
	for range 2 { // the same again is no error
		if err := f.Forward(vmID, []network.Forward{to}); err != nil {
			t.Error(err)
		}
	}
	requireCode(t, f.Forward("vm_b", []network.Forward{to}), errs.Conflict, "ssh_port_in_use")
	if f.VMs()[16000] != vmID || !f.Of(vmID)[16000].Equal(to) || len(f.Of("vm_b")) != 0 {
		t.Errorf("open are %v", f.VMs())
	}
	if err := f.Forward(vmID, nil); err != nil || len(f.VMs()) != 0 {
		t.Errorf("none are wanted, open are %v, %v", f.VMs(), err)
	}
	if err := f.Forward("vm_b", []network.Forward{to}); err != nil {
		t.Errorf("a closed port: %v", err)
	}
}

func TestConsoles(t *testing.T) {
	calls := &Calls{}
	c := &Consoles{Calls: calls}
	attach := func(readOnly bool) (io.ReadWriteCloser, error) { return c.Attach(t.Context(), vmID, readOnly) }
	_, err := attach(true)
	requireCode(t, err, errs.Conflict, "console_closed")
	calls.FailNext("Console")
	if err := c.Open(vmID, nil); err == nil || len(c.VMs()) != 0 {
		t.Errorf("a failed open left %v, %v", c.VMs(), err)
	}
	if err := c.Open(vmID, nil); err != nil || !slices.Equal(c.VMs(), []string{vmID}) {
		t.Fatalf("open are %v, %v", c.VMs(), err)
	}
	writer, err := attach(false)
	if err != nil {
		t.Fatal(err)
	}
	_, err = attach(false)
	requireCode(t, err, errs.Conflict, "console_in_use")
	reader, err := attach(true)
	if err != nil {
		t.Fatal(err)
	}
	_, err = reader.Write([]byte("x"))
	requireCode(t, err, errs.Forbidden, "console_read_only")
	if n, err := writer.Write([]byte("x")); n != 1 || err != nil {
		t.Errorf("the writer wrote %d bytes, %v", n, err)
	}
	_ = reader.Close()
	_, err = attach(false)
	requireCode(t, err, errs.Conflict, "console_in_use")
	_ = writer.Close()
	if _, err := attach(false); err != nil {
		t.Errorf("once the writer has left: %v", err)
	}
	_ = writer.Close() // once more does not release another's
	_, err = attach(false)
	requireCode(t, err, errs.Conflict, "console_in_use")
	c.Close(vmID)
	if len(c.VMs()) != 0 {
		t.Errorf("open are %v", c.VMs())
	}
}

func fill(text string) func(context.Context, string) error {
	return func(_ context.Context, path string) error { return os.WriteFile(path, []byte(text), 0o600) }
}

func TestFilesLeaveNothingOnError(t *testing.T) {
	unfilled := errors.New("unfilled")
	for name, provision := range map[string]func(f *Files) error{
		"an injected error": func(f *Files) error {
			f.Calls.FailNext("Provision")
			return f.Provision(t.Context(), vm.VM{ID: vmID})
		},
		"a disk that is not filled": func(f *Files) error {
			return f.ProvisionFrom(t.Context(), vm.VM{ID: vmID}, func(context.Context, string) error { return unfilled })
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := NewFiles(filepath.Join(t.TempDir(), "vms"), &Calls{})
			if err := provision(f); err == nil {
				t.Fatal("it did not fail")
			}
			if left, err := f.Orphans(nil); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			if err := f.Provision(t.Context(), vm.VM{ID: vmID}); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

func TestDisks(t *testing.T) {
	f := NewFiles(filepath.Join(t.TempDir(), "vms"), &Calls{})
	v := vm.VM{ID: vmID}
	_, err := f.Disks(v, f.Disk(vmID))
	requireCode(t, err, errs.Conflict, "disk_missing")
	if err := f.Provision(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if disks, err := f.Disks(v, f.Disk(vmID)); err != nil || len(disks) != 1 || disks[0].Path != f.Disk(vmID) {
		t.Errorf("got %+v, %v", disks, err)
	}
	if left, err := f.Orphans(map[string]bool{"vm_b": true}); err != nil || !slices.Equal(left, []string{vmID}) {
		t.Errorf("orphans are %v, %v", left, err)
	}
	f.Calls.FailNext("Remove")
	if err := f.Remove(vmID); err == nil {
		t.Error("the remove did not fail")
	}
	for range 2 { // a missing one is no error
		if err := f.Remove(vmID); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(f.Dir(vmID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestStagedFilesReplaceTheVMs(t *testing.T) {
	f := NewFiles(filepath.Join(t.TempDir(), "vms"), &Calls{})
	if err := f.Provision(t.Context(), vm.VM{ID: vmID}); err != nil {
		t.Fatal(err)
	}
	stage := func() error {
		return f.Stage(t.Context(), vmID, func(disk, _ string) error { return fill("staged")(t.Context(), disk) })
	}
	replaced := 0
	replace := func(string, string) error { replaced++; return nil }
	requireDisk := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(f.Disk(vmID)); err != nil || string(got) != want {
			t.Errorf("the disk holds %q, %v; want %q", got, err, want)
		}
	}
	f.Calls.FailNext("Stage")
	if err := stage(); err == nil {
		t.Error("the stage did not fail")
	}
	if err := f.CommitStaged(vmID, replace); err != nil || replaced != 0 {
		t.Errorf("a failed stage was committed: %v", err)
	}
	requireDisk(BlankDisk)
	if err := stage(); err != nil {
		t.Fatal(err)
	}
	f.Calls.FailNext("CommitStaged")
	if err := f.CommitStaged(vmID, replace); err == nil {
		t.Error("the commit did not fail")
	}
	requireDisk(BlankDisk)
	for range 2 { // nothing staged is no error
		if err := f.CommitStaged(vmID, replace); err != nil || replaced != 1 {
			t.Errorf("replaced %d times, %v", replaced, err)
		}
		requireDisk("staged")
	}
}

func TestSessions(t *testing.T) {
	var got []*vm.GuestReport
	observe := func(r *vm.GuestReport) { got = append(got, r) }
	g := &Guests{Calls: &Calls{}, Report: func(string) *vm.GuestReport { return &vm.GuestReport{AgentVersion: "fake"} }}
	as := vm.Identity{InstanceID: vmID}
	for _, c := range []struct {
		name    string
		open    func() vm.Session
		woken   bool
		clone   bool
		reports int // before it has confirmed
	}{
		{"connect", func() vm.Session { return g.Connect(vmID, nil, observe) }, false, false, 1},
		{"rejoin", func() vm.Session { return g.Rejoin(vmID, nil, observe) }, true, false, 1},
		{"reidentify", func() vm.Session { return g.Reidentify(vmID, nil, observe, as) }, true, true, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got = nil
			s := c.open()
			guest := g.Session(vmID)
			if guest == nil || guest.Woken != c.woken || (guest.Identity != nil) != c.clone || len(got) != c.reports {
				t.Errorf("the session is %+v, after %d reports", guest, len(got))
			}
			g.Calls.FailNext("Reidentify")
			if err := s.Confirmed(t.Context()); (err != nil) != c.clone || len(got) != c.reports {
				t.Errorf("an injected error: %v, after %d reports", err, len(got))
			}
			g.Calls.Withdraw("Reidentify")
			for range 2 {
				if err := s.Confirmed(t.Context()); err != nil || len(got) != 1 {
					t.Errorf("confirmed: %v, after %d reports", err, len(got))
				}
			}
			if err := s.Close(); err != nil || len(g.Sessions()) != 0 {
				t.Errorf("after a close: %v, %v", g.Sessions(), err)
			}
		})
	}
}

func TestAnOldSessionDoesNotCloseALaterOne(t *testing.T) {
	g := &Guests{}
	old, later := g.Connect(vmID, nil, nil), g.Connect(vmID, nil, nil)
	if err := old.Close(); err != nil || !slices.Equal(g.Sessions(), []string{vmID}) {
		t.Errorf("open are %v, %v", g.Sessions(), err)
	}
	if err := later.Close(); err != nil || len(g.Sessions()) != 0 {
		t.Errorf("open are %v, %v", g.Sessions(), err)
	}
}

func TestAGuestWithoutAnAgent(t *testing.T) {
	g := &Guests{}
	s := g.Connect(vmID, nil, nil)
	defer func() { _ = s.Close() }()
	_, usageErr := s.Usage(t.Context())
	_, dialErr := s.Dial(t.Context(), 80)
	requireCode(t, usageErr, errs.Unavailable, "agent_unavailable")
	requireCode(t, dialErr, errs.Unavailable, "port_refused")
	requireCode(t, s.Shutdown(t.Context(), false, func() {}), errs.Unavailable, "agent_unavailable")
	if err := s.SetClock(t.Context()); err != nil || g.Session(vmID).ClocksSet() != 1 {
		t.Errorf("its clock was set %d times, %v", g.Session(vmID).ClocksSet(), err)
	}
}

// A guest's files outlive its sessions, and are below the VM's directory.
func TestAGuestKeepsItsFiles(t *testing.T) {
	dir := t.TempDir()
	g := &Guests{Dir: func(id string) string { return filepath.Join(dir, id) }}
	for range 2 {
		s := g.Connect(vmID, nil, nil)
		if _, err := s.StatFile(t.Context(), "/root"); err != nil {
			t.Error(err)
		}
		if _, err := s.MakeDirectory(t.Context(), "/root/kept", 0o755, "", true); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	s := g.Connect("vm_b", nil, nil)
	defer func() { _ = s.Close() }()
	if err := s.ListFiles(t.Context(), "/root", func(i file.Info) error { return errors.New(i.Path) }); err != nil {
		t.Errorf("another guest has %v", err)
	}
}
