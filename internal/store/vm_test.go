package store

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// pools are small: a network with five addresses for guests.
func pools(t testing.TB) network.Pools { return poolsOf(t, "10.9.0.1/29", 5) }

func poolsOf(t testing.TB, cidr string, size int) network.Pools {
	t.Helper()
	n, err := network.New("br-test", cidr)
	noError(t, err)
	return network.Pools{
		Network: n, SSHMin: 16000, SSHMax: 16000 + size, UIDMin: 900000, UIDMax: 900000 + size,
		TapPrefix: "tap",
	}
}

// newVM returns a VM with a value in every field but the lease.
func newVM(id string) vm.VM {
	at := now()
	file := image.File{Path: "/x", Digest: "sha256:00", Size: 7, ModTime: at, Inode: 1 << 63}
	return vm.VM{
		ID: id, OwnerID: "acc_a", Name: "name-" + id[len(vm.IDPrefix):],
		Spec: machine.Spec{
			ImageID: "img_a", TemplateID: "tpl_a", Driver: "fake", Description: "a\n\tb", Hostname: "DB-1.example.com",
			Boot:  image.Boot{ImageID: "img_a", Kernel: file, Rootfs: file, RootfsFormat: "ext4", DiskMode: image.DiskCopy, BootArgs: "b", CloudInit: true},
			VCPUs: 2, MemMiB: 512, DiskMiB: 1024, BootArgs: "quiet", EnableNetwork: true,
			UserData: "#!/bin/sh\n\x00\xff", SSHKeys: []string{"ssh-ed25519 AAAA"}, Labels: map[string]string{"team": "a", "id": id},
			RateLimits: vmm.RateLimits{Disk: vmm.DiskLimit{OpsPerSecond: 100}, NetworkIn: vmm.NetworkLimit{BytesPerSecond: 1 << 20}},
		},
		Intent: vm.IntentRunning, State: vm.Starting, StateReason: "because",
		Conditions: vm.Conditions{Agent: vm.Condition{Status: vm.True, Reason: "Answers", Message: "m\x00", ChangedAt: at}},
		Machine:    &vmm.Handle{Driver: "fake", ID: id, PID: 4711, StartTime: 1 << 60}, Provisioned: true, SnapshotID: "snap_a", Unconfirmed: vm.FromWarm, Autostart: vm.AutostartPaused,
		CreatedAt: at, UpdatedAt: at, StartedAt: &at,
	}
}

// anImage creates the image of newVM's VMs if it does not exist.
func anImage(t testing.TB, s *Store) {
	t.Helper()
	noError(t, s.UpsertImage(context.Background(), image.Image{ID: "img_a", OwnerID: "acc_a", CreatedAt: now()}))
}

func createVM(t testing.TB, s *Store, v vm.VM) vm.VM {
	t.Helper()
	anImage(t, s)
	stored, err := s.CreateVM(context.Background(), v, network.Request{}, pools(t), vm.Capacity{})
	noError(t, err)
	return stored
}

// same compares VMs field by field, but for the revision.
func same(t testing.TB, got, want vm.VM) {
	t.Helper()
	got.Revision, want.Revision = 0, 0
	if !reflect.DeepEqual(got, want) {
		g, _ := json.MarshalIndent(got, "", " ")
		w, _ := json.MarshalIndent(want, "", " ")
		t.Fatalf("got %s\nwant %s", g, w)
	}
}

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func TestCreateVMKeepsEveryField(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		want := newVM("vm_a")
		stored := createVM(t, s, want)
		want.Lease = network.Lease{
			Address: addr("10.9.0.2"), MAC: net.HardwareAddr{2, 0xFC, 0, 0, 0, 2},
			Tap: "tap0", SSHPort: 16000, UID: 900000,
		}
		same(t, stored, want)
		got, err := s.VM(t.Context(), access.Owner("acc_a"), "vm_a")
		noError(t, err)
		same(t, got, want)
		all, err := s.AllVMs(t.Context())
		noError(t, err)
		want.UserData = "" // for GET and starts only
		same(t, all[0], want)
	})
}

func TestCreateVMWithLittle(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		at := now()
		stored := createVM(t, s, vm.VM{ID: "vm_a", OwnerID: "acc_a", Spec: machine.Spec{ImageID: "img_a", Labels: map[string]string{}}, CreatedAt: at, UpdatedAt: at})
		want := vm.VM{ID: "vm_a", OwnerID: "acc_a", Spec: machine.Spec{ImageID: "img_a"}, CreatedAt: at, UpdatedAt: at, Lease: network.Lease{UID: 900000}}
		same(t, stored, want) // without a network: a user id and nothing else
		createVM(t, s, vm.VM{ID: "vm_b", OwnerID: "acc_a", Spec: machine.Spec{ImageID: "img_a"}})
	})
}

// A VM's row and its saved memory are of one moment, also while they change.
func TestAVMIsReadAsOfOneMoment(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		createVM(t, s, newVM("vm_a"))
		ctx, stop := context.WithCancel(t.Context())
		var changes errgroup.Group
		changes.Go(func() error {
			defer stop()
			for range 300 {
				for _, change := range []func(*vm.VM){vm.ToAsleep(vm.Sleep{At: now()}), vm.ToAwake(vmm.Handle{Driver: "fake", ID: "vm_a", PID: 1}, now())} {
					if _, err := s.UpdateVM(t.Context(), "vm_a", change); err != nil {
						return err
					}
				}
			}
			return nil
		})
		for ctx.Err() == nil {
			v, err := s.VM(t.Context(), access.Everyone, "vm_a")
			noError(t, err)
			if (v.State == vm.Snapshotted) != (v.Sleep != nil) {
				t.Errorf("it is %s with saved memory %+v", v.State, v.Sleep)
				break
			}
		}
		noError(t, changes.Wait())
	})
}

func TestVMsOfOtherOwnersAreNotFound(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		account(t, s, "acc_b")
		createVM(t, s, newVM("vm_a"))
		_, err := s.VM(t.Context(), access.Owner("acc_b"), "vm_a")
		hasCode(t, err, errs.NotFound, "vm_not_found")
		if page, _, err := s.VMs(t.Context(), access.Owner("acc_b"), vm.Filter{}); err != nil || len(page) != 0 {
			t.Errorf("VMs: %v, %v", page, err)
		}
		if _, err := s.VM(t.Context(), access.Everyone, "vm_a"); err != nil {
			t.Errorf("every owner: %v", err)
		}
		theirs := newVM("vm_b")
		theirs.OwnerID, theirs.Name = "acc_b", "name-a"
		createVM(t, s, theirs) // the same name is free for another owner
	})
}

func TestInvalidVM(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		for _, id := range []string{"", "vm_none", "vm_\x00", "vm_\xff", "' OR 1=1 --"} {
			_, err := s.VM(t.Context(), access.Owner("acc_a"), id)
			hasCode(t, err, errs.NotFound, "vm_not_found")
		}
		_, err := s.UpdateVM(t.Context(), "vm_none", func(*vm.VM) {})
		hasCode(t, err, errs.NotFound, "vm_not_found")
		_, err = s.LeaseVM(t.Context(), "vm_none", pools(t), vm.Capacity{})
		hasCode(t, err, errs.NotFound, "vm_not_found")
		noError(t, s.DeleteVM(t.Context(), "vm_none"))
		noError(t, s.ReleaseVM(t.Context(), "vm_none"))
	})
}

func TestNameTaken(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		createVM(t, s, newVM("vm_a"))
		second := newVM("vm_b")
		second.Name = "name-a"
		_, err := s.CreateVM(t.Context(), second, network.Request{}, pools(t), vm.Capacity{})
		hasCode(t, err, errs.Conflict, "name_taken")
		if n := count(t, s, "vms"); n != 1 {
			t.Errorf("%d rows", n)
		}
		noError(t, s.DeleteVM(t.Context(), "vm_a"))
		createVM(t, s, second)
	})
}

func count(t testing.TB, s *Store, table string) (n int) {
	t.Helper()
	noError(t, s.reads.Get(&n, "SELECT COUNT(*) FROM "+table))
	return n
}

func TestUnknownImage(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		v := newVM("vm_a")
		v.ImageID = "img_none"
		_, err := s.CreateVM(t.Context(), v, network.Request{}, pools(t), vm.Capacity{})
		hasCode(t, err, errs.NotFound, "image_not_found")
	})
}

func TestUpdateVM(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		want := createVM(t, s, newVM("vm_a"))
		started := now().Add(time.Minute)
		stored, err := s.UpdateVM(t.Context(), "vm_a", func(v *vm.VM) {
			v.Intent, v.State, v.StateReason = vm.IntentStopped, vm.Failed, "guest said \x00\xff"
			v.Conditions.CloudInit = vm.Condition{Status: vm.False, Reason: "Failed"}
			v.Machine, v.Provisioned, v.StartedAt, v.Autostart = nil, false, &started, vm.AutostartRunning
			v.Name, v.MemMiB, v.Driver = "ignored", 1, "ignored"
		})
		noError(t, err)
		if !stored.UpdatedAt.After(want.UpdatedAt) {
			t.Errorf("UpdatedAt = %v", stored.UpdatedAt)
		}
		want.Intent, want.State, want.StateReason = vm.IntentStopped, vm.Failed, "guest said \uFFFD\uFFFD"
		want.Conditions.CloudInit = vm.Condition{Status: vm.False, Reason: "Failed"}
		want.Machine, want.Provisioned, want.StartedAt, want.Autostart = nil, false, &started, vm.AutostartRunning
		want.UpdatedAt = stored.UpdatedAt
		same(t, stored, want)
		got, err := s.VM(t.Context(), access.Owner("acc_a"), "vm_a")
		noError(t, err)
		same(t, got, want)
	})
}

func TestConcurrentUpdatesBothHold(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		v := newVM("vm_a")
		v.StateReason = ""
		createVM(t, s, v)
		var g errgroup.Group
		const writers = 20
		for range writers {
			g.Go(func() error {
				_, err := s.UpdateVM(t.Context(), "vm_a", func(v *vm.VM) { v.StateReason += "x" })
				return err
			})
		}
		noError(t, g.Wait())
		got, err := s.VM(t.Context(), access.Everyone, "vm_a")
		noError(t, err)
		if len(got.StateReason) != writers {
			t.Errorf("%d of %d updates held", len(got.StateReason), writers)
		}
	})
}

func TestDeleteVMFreesAll(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		first := createVM(t, s, newVM("vm_a"))
		noError(t, s.DeleteVM(t.Context(), "vm_a"))
		for _, table := range []string{"vms", "vm_labels"} {
			if n := count(t, s, table); n != 0 {
				t.Errorf("%s has %d rows", table, n)
			}
		}
		if next := createVM(t, s, newVM("vm_b")); !reflect.DeepEqual(next.Lease, first.Lease) {
			t.Errorf("lease %+v, want %+v", next.Lease, first.Lease)
		}
	})
}

// Fifty creates at once get fifty different leases.
func TestConcurrentCreates(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		anImage(t, s)
		const creates = 50
		p := poolsOf(t, "10.9.0.1/24", creates)
		var mu sync.Mutex
		seen := map[any]string{}
		var g errgroup.Group
		for i := range creates {
			g.Go(func() error {
				v, err := s.CreateVM(t.Context(), newVM(fmt.Sprintf("vm_%d", i)), network.Request{}, p, vm.Capacity{})
				if err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				for _, held := range []any{v.Lease.Address, v.Lease.MAC.String(), v.Lease.Tap, v.Lease.SSHPort, v.Lease.UID} {
					if other, ok := seen[held]; ok {
						t.Errorf("%v was given to %s and %s", held, other, v.ID)
					}
					seen[held] = v.ID
				}
				return nil
			})
		}
		noError(t, g.Wait())
		if len(seen) != 5*creates {
			t.Errorf("%d things were given out, want %d", len(seen), 5*creates)
		}
	})
}
