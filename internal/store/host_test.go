package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestHostID(t *testing.T) {
	dir := t.TempDir()
	first, err := HostID(dir)
	noError(t, err)
	again, err := HostID(dir)
	noError(t, err)
	if first != again || !strings.HasPrefix(first, hostPrefix) || len(first) <= len(hostPrefix) {
		t.Errorf("got %q, then %q", first, again)
	}
	other, err := HostID(t.TempDir())
	noError(t, err)
	if other == first {
		t.Errorf("two directories are %s", first)
	}
	if st, err := os.Stat(filepath.Join(dir, hostFile)); err != nil || st.Mode() != 0o600 {
		t.Errorf("the file: %v, %v", st.Mode(), err)
	}
	for _, text := range []string{"", "\n", "host_", "vm_1", "host_A", "host_1\nhost_2", "host_" + strings.Repeat("a", 100)} {
		noError(t, os.WriteFile(filepath.Join(dir, hostFile), []byte(text), 0o600))
		if id, err := HostID(dir); err == nil {
			t.Errorf("%q is taken for %q", text, id)
		}
	}
}

// onHost returns the store as the hatchd of another host would open it.
func onHost(s *Store, host string) *Store {
	db := *s.database
	db.host = host
	return newStore(&db)
}

func TestHostsHaveTheirOwn(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx, other := t.Context(), onHost(s, "host_b")
		here := createVM(t, s, newVM("vm_a"))
		there := createVM(t, other, newVM("vm_b"))
		equal(t, there.Lease, here.Lease) // each host has its own pools
		if second := createVM(t, s, newVM("vm_c")); second.Lease.Address == here.Lease.Address || second.Lease.UID == here.Lease.UID {
			t.Errorf("two VMs of one host have %+v", second.Lease)
		}
		for store, want := range map[*Store]string{s: "vm_a vm_c", other: "vm_b"} {
			all, err := store.AllVMs(ctx)
			noError(t, err)
			var ids []string
			for _, v := range all {
				ids = append(ids, v.ID)
			}
			equal(t, strings.Join(ids, " "), want)
		}
		limit := vm.Capacity{MemMiB: 3 * 512}
		for store, id := range map[*Store]string{s: "vm_d", other: "vm_e"} { // 2 and 1 of 3 are taken
			_, err := store.CreateVM(ctx, newVM(id), network.Request{}, pools(t), limit)
			noError(t, err)
		}
		_, err := s.CreateVM(ctx, newVM("vm_f"), network.Request{}, pools(t), limit)
		hasCode(t, err, errs.Exhausted, "memory_exhausted")
		_, err = other.VM(ctx, access.Owner("acc_a"), "vm_a") // an owner sees all hosts' VMs
		noError(t, err)

		insertSnapshots(t, s, newSnapshot("snap_a"))
		insertSnapshots(t, other, newSnapshot("snap_b"))
		for store, want := range map[*Store]string{s: "snap_a", other: "snap_b"} {
			all, err := store.HostSnapshots(ctx)
			noError(t, err)
			if len(all) != 1 || all[0].ID != want {
				t.Errorf("got %+v, want %s", all, want)
			}
		}
	})
}

// An SQLite database may be restored without the file host-id.
func TestSQLiteRowsFollowTheirDatabase(t *testing.T) {
	dsn := sqliteDSNFor(t)
	s := open(t, dsn)
	createVM(t, s, newVM("vm_a"))
	noError(t, s.Close())
	moved, err := Open(t.Context(), dsn, "host_new")
	noError(t, err)
	defer func() { noError(t, moved.Close()) }()
	all, err := moved.AllVMs(t.Context())
	noError(t, err)
	equal(t, len(all), 1)
	u, err := moved.Usage(t.Context(), "acc_a")
	noError(t, err)
	equal(t, u.Used[quota.VMs], 1)
}

// A user's quota counts the VMs of all hosts that have used the database.
func TestVMsOfAFormerHostCount(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			s := open(t, b.dsn(t))
			used := func(want int64) {
				t.Helper()
				u, err := s.Usage(t.Context(), "acc_a")
				noError(t, err)
				equal(t, u.Used[quota.VMs], want)
			}
			former := onHost(s, "host_former")
			createVM(t, former, newVM("vm_old"))
			createVM(t, former, newVM("vm_older"))
			createVM(t, s, newVM("vm_new"))
			used(3)
			noError(t, s.DeleteVM(t.Context(), "vm_old"))
			used(2)
			noError(t, s.write(t.Context(), func(tx *tx) error { return tx.countUsage(t.Context()) }))
			used(2)
		})
	}
}
