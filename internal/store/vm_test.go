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

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// pools are small: a network with five addresses for guests.
func pools(t testing.TB) vm.Pools { return poolsOf(t, "10.9.0.1/29", 5) }

func poolsOf(t testing.TB, cidr string, size int) vm.Pools {
	t.Helper()
	n, err := network.New("br-test", cidr)
	noError(t, err)
	return vm.Pools{
		Network: n, SSHMin: 16000, SSHMax: 16000 + size, UIDMin: 900000, UIDMax: 900000 + size,
		TapPrefix: "tap", IdempotencyReach: time.Hour,
	}
}

// newVM has something in every field but the lease.
func newVM(id string) vm.VM {
	at := now()
	file := image.File{Path: "/x", Digest: "sha256:00", Size: 7, ModTime: at, Inode: 1 << 63}
	return vm.VM{
		ID: id, OwnerID: "acc_a", Name: "name-" + id[len(vm.IDPrefix):], Labels: map[string]string{"team": "a", "id": id},
		ImageID: "img_a", TemplateID: "tpl_a",
		Boot:   image.Boot{ImageID: "img_a", Kernel: file, Rootfs: file, RootfsFormat: "ext4", DiskMode: image.DiskCopy, BootArgs: "b", CloudInit: true},
		Intent: vm.WantRunning, State: vm.Starting, StateReason: "because",
		Conditions: vm.Conditions{Agent: vm.Condition{Status: vm.True, Reason: "Answers", Message: "m\x00", ChangedAt: at}},
		VCPUs:      2, MemMiB: 512, DiskMiB: 1024, BootArgs: "quiet", EnableNetwork: true,
		UserData: "#!/bin/sh\n\x00\xff", SSHKeys: []string{"ssh-ed25519 AAAA"},
		RateLimits: vmm.RateLimits{Disk: vmm.DiskLimit{OpsPerSecond: 100}, NetworkIn: vmm.NetworkLimit{BytesPerSecond: 1 << 20}},
		Driver:     "fake", Machine: &vmm.Handle{Driver: "fake", ID: id, PID: 4711, StartTime: 1 << 60}, Provisioned: true, SnapshotID: "snap_a", Copying: vm.OfWarm,
		CreatedAt: at, UpdatedAt: at, StartedAt: &at,
	}
}

// anImage makes the image that newVM's VMs have, if need be.
func anImage(t testing.TB, s *Store) {
	t.Helper()
	noError(t, s.UpsertImage(context.Background(), image.Image{ID: "img_a", OwnerID: "acc_a", CreatedAt: now()}))
}

func createVM(t testing.TB, s *Store, v vm.VM) vm.VM {
	t.Helper()
	anImage(t, s)
	stored, created, err := s.CreateVM(context.Background(), v, vm.Wanted{}, pools(t), vm.Capacity{}, vm.Idempotency{})
	noError(t, err)
	if !created {
		t.Fatalf("%s was not created", v.ID)
	}
	return stored
}

// same compares VMs field by field.
func same(t testing.TB, got, want vm.VM) {
	t.Helper()
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
		want.Lease = vm.Lease{
			Address: addr("10.9.0.2"), MAC: net.HardwareAddr{2, 0xFC, 0, 0, 0, 2},
			Tap: "tap0", SSHPort: 16000, UID: 900000,
		}
		same(t, stored, want)
		got, err := s.VM(t.Context(), "acc_a", "vm_a")
		noError(t, err)
		same(t, got, want)
		all, err := s.AllVMs(t.Context())
		noError(t, err)
		same(t, all[0], want)
	})
}

func TestCreateVMWithLittle(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		at := now()
		stored := createVM(t, s, vm.VM{ID: "vm_a", OwnerID: "acc_a", ImageID: "img_a", Labels: map[string]string{}, CreatedAt: at, UpdatedAt: at})
		want := vm.VM{ID: "vm_a", OwnerID: "acc_a", ImageID: "img_a", CreatedAt: at, UpdatedAt: at, Lease: vm.Lease{UID: 900000}}
		same(t, stored, want) // without a network: a user id and nothing else
		createVM(t, s, vm.VM{ID: "vm_b", OwnerID: "acc_a", ImageID: "img_a"})
	})
}

func TestVMsOfOthersAreNotThere(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		account(t, s, "acc_b")
		createVM(t, s, newVM("vm_a"))
		_, err := s.VM(t.Context(), "acc_b", "vm_a")
		hasCode(t, err, errs.NotFound, "vm_not_found")
		if page, _, err := s.VMs(t.Context(), "acc_b", vm.Filter{}); err != nil || len(page) != 0 {
			t.Errorf("VMs: %v, %v", page, err)
		}
		if _, err := s.VM(t.Context(), "", "vm_a"); err != nil {
			t.Errorf("every owner: %v", err)
		}
		theirs := newVM("vm_b")
		theirs.OwnerID, theirs.Name = "acc_b", "name-a"
		createVM(t, s, theirs) // the same name is free for another owner
	})
}

func TestVMThatCannotBe(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		for _, id := range []string{"", "vm_none", "vm_\x00", "vm_\xff", "' OR 1=1 --"} {
			_, err := s.VM(t.Context(), "acc_a", id)
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
		_, _, err := s.CreateVM(t.Context(), second, vm.Wanted{}, pools(t), vm.Capacity{}, vm.Idempotency{})
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
		_, _, err := s.CreateVM(t.Context(), v, vm.Wanted{}, pools(t), vm.Capacity{}, vm.Idempotency{})
		hasCode(t, err, errs.NotFound, "image_not_found")
	})
}

func TestUpdateVM(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		want := createVM(t, s, newVM("vm_a"))
		started := now().Add(time.Minute)
		stored, err := s.UpdateVM(t.Context(), "vm_a", func(v *vm.VM) {
			v.Intent, v.State, v.StateReason = vm.WantStopped, vm.Failed, "guest said \x00\xff"
			v.Conditions.CloudInit = vm.Condition{Status: vm.False, Reason: "Failed"}
			v.Driver, v.Machine, v.Provisioned, v.StartedAt = "qemu", nil, false, &started
			v.Name, v.MemMiB = "ignored", 1
		})
		noError(t, err)
		if !stored.UpdatedAt.After(want.UpdatedAt) {
			t.Errorf("UpdatedAt = %v", stored.UpdatedAt)
		}
		want.Intent, want.State, want.StateReason = vm.WantStopped, vm.Failed, "guest said \uFFFD\uFFFD"
		want.Conditions.CloudInit = vm.Condition{Status: vm.False, Reason: "Failed"}
		want.Driver, want.Machine, want.Provisioned, want.StartedAt = "qemu", nil, false, &started
		want.UpdatedAt = stored.UpdatedAt
		same(t, stored, want)
		got, err := s.VM(t.Context(), "acc_a", "vm_a")
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
		got, err := s.VM(t.Context(), "", "vm_a")
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
				v, created, err := s.CreateVM(t.Context(), newVM(fmt.Sprintf("vm_%d", i)), vm.Wanted{}, p, vm.Capacity{}, vm.Idempotency{})
				if err != nil || !created {
					return fmt.Errorf("created %v: %w", created, err)
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
