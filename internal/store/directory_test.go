package store

import (
	"crypto/sha256"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
)

// A directory that has been used goes with its own database only. A database that does
// not go with it stays as it was.
func TestDirectoryGoesWithItsDatabase(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		known, foreign := sha256.Sum256([]byte("known")), sha256.Sum256([]byte("foreign"))
		createVM(t, s, newVM("vm_a"))
		insertSnapshots(t, s, newSnapshot("snap_a"))
		noError(t, s.InsertKey(t.Context(), access.Key{ID: "key_a", OwnerID: "acc_a", Name: "a", Hash: known[:], CreatedAt: time.UnixMicro(1)}))
		createVM(t, onHost(s, "host_b"), newVM("vm_b"))
		lite := s.lock == nil
		for name, c := range map[string]struct {
			dir  Directory
			want bool
		}{
			"its host":                    {Directory{HostID: testHost, VMs: []string{"vm_a"}, KeyHash: known[:]}, true},
			"its host, with more files":   {Directory{HostID: testHost, VMs: []string{"vm_new"}, Snapshots: []string{"snap_new"}, KeyHash: foreign[:]}, true},
			"a new directory":             {Directory{HostID: "host_new"}, true},
			"another host's files":        {Directory{HostID: "host_new", VMs: []string{"vm_x"}, Snapshots: []string{"snap_x"}}, false},
			"another host's VM":           {Directory{HostID: "host_new", VMs: []string{"vm_x"}, KeyHash: known[:]}, false},
			"another host's snapshot":     {Directory{HostID: "host_new", Snapshots: []string{"snap_x"}, KeyHash: known[:]}, false},
			"a key of another database":   {Directory{HostID: "host_new", KeyHash: foreign[:]}, false},
			"its key":                     {Directory{HostID: "host_new", KeyHash: known[:]}, true},
			"its VM, and a new host-id":   {Directory{HostID: "host_new", VMs: []string{"vm_x", "vm_a"}}, lite},
			"its snapshot, a new host-id": {Directory{HostID: "host_new", Snapshots: []string{"snap_a"}}, lite},
		} {
			err := s.checkDirectory(t.Context(), c.dir)
			if (err == nil) != c.want || err != nil && (!strings.Contains(err.Error(), "host_new") || !strings.Contains(err.Error(), "HATCH_DATABASE_URL")) {
				t.Errorf("%s: got %v", name, err)
			}
		}
	})
}

// TestRefusedDatabaseStaysAsItWas opens another host's database for a directory.
func TestRefusedDatabaseStaysAsItWas(t *testing.T) {
	dsn := sqliteDSNFor(t)
	s := open(t, dsn)
	createVM(t, s, newVM("vm_a"))
	noError(t, s.Close())
	foreign := Directory{HostID: "host_b", VMs: []string{"vm_b"}, KeyHash: make([]byte, 32)}
	for range 2 { // the first must not make it known
		if _, err := OpenFor(t.Context(), dsn, foreign); err == nil || !strings.Contains(err.Error(), "never used with this data directory") {
			t.Fatalf("got %v", err)
		}
	}
	again, err := OpenFor(t.Context(), dsn, Directory{HostID: testHost, VMs: []string{"vm_a"}})
	noError(t, err)
	defer func() { noError(t, again.Close()) }()
	all, err := again.AllVMs(t.Context())
	noError(t, err)
	equal(t, len(all), 1)
}

// TestNewDatabaseIsRefusedForAnOldDirectory: an old one without VMs is not, although it
// knows no host.
func TestNewDatabaseIsRefusedForAnOldDirectory(t *testing.T) {
	key := make([]byte, 32)
	_, err := OpenFor(t.Context(), filepath.Join(t.TempDir(), "hatch.db"), Directory{HostID: "host_a", KeyHash: key})
	if err == nil || !strings.Contains(err.Error(), "never used") {
		t.Errorf("a new one: got %v", err)
	}
	dsn := sqliteDSNFor(t)
	s := openAt(t, dsn, 10)
	s.mustExec(t, "INSERT INTO api_keys (id, owner_id, name, hash, created_at) VALUES ('key_a', 'acc_a', 'a', ?, 1)", []byte("another key's hash"))
	old, err := OpenFor(t.Context(), dsn, Directory{HostID: "host_a", KeyHash: key})
	noError(t, err)
	noError(t, old.Close())
}
