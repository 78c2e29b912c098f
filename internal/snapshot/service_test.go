package snapshot_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	files "github.com/hatchvm/hatch/internal/host/snapshot"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/store"
	"github.com/hatchvm/hatch/internal/store/storetest"
	"github.com/hatchvm/hatch/internal/vmm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	owner = "acc_a"
	mib   = 1 << 20
)

// world is a service with a real store and real files.
type world struct {
	*snapshot.Service
	t     *testing.T
	store *store.Store
	files *files.Files
	root  string // of the files
	guest string // the file that is used as the guest's memory and as its disk
}

func newWorld(t *testing.T, limits snapshot.Limits) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, root: filepath.Join(dir, "snapshots"), guest: filepath.Join(dir, "guest")}
	var err error
	w.store = storetest.Open(t)
	t.Cleanup(func() { w.ok(w.store.Close()) })
	w.files, err = files.Open(w.root, 0)
	w.ok(err)
	t.Cleanup(func() { w.ok(w.files.Close()) })
	w.ok(w.store.InsertUser(t.Context(), access.User{ID: owner, CreatedAt: time.Now()}))
	w.ok(w.store.InsertImage(t.Context(), image.Image{ID: "img_a", OwnerID: owner, CreatedAt: time.Now()}))
	w.ok(os.WriteFile(w.guest, []byte(strings.Repeat("guest", 1000)), 0o600))
	w.restart(limits)
	return w
}

// restart makes a new service over the same store and files.
func (w *world) restart(limits snapshot.Limits) {
	w.Service = snapshot.New(w.store, w.files, limits, slog.New(slog.DiscardHandler))
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) refuses(err error, kind errs.Kind, code string) {
	w.t.Helper()
	if !errs.Is(err, kind) || !errs.HasCode(err, code) {
		w.t.Errorf("got %v; want %s of kind %s", err, code, kind)
	}
}

func draft(kind snapshot.Kind, name string) snapshot.Snapshot {
	return snapshot.Snapshot{OwnerID: owner, VMID: "vm_a", Kind: kind, Name: name, VM: snapshot.Origin{Spec: machine.Spec{ImageID: "img_a"}}}
}

// begin begins a snapshot and captures its files.
func (w *world) begin(d snapshot.Snapshot, bytes int64) snapshot.Snapshot {
	w.t.Helper()
	snap, err := w.Begin(w.t.Context(), d, bytes)
	w.ok(err)
	dir := w.files.Dir(snap.ID)
	w.ok(os.WriteFile(filepath.Join(dir, vmm.SavedDevices), []byte("registers"), 0o600))
	w.ok(vmm.Saved{Format: vmm.SavedFormat}.Write(dir))
	w.ok(w.files.Capture(w.t.Context(), snap.ID, snapshot.Parts{Memory: w.guest, Disk: w.guest}))
	return snap
}

func (w *world) take(d snapshot.Snapshot) snapshot.Snapshot {
	w.t.Helper()
	snap, err := w.Finish(w.t.Context(), w.begin(d, 0))
	w.ok(err)
	return snap
}

// takeSized takes a snapshot whose row has this size.
func (w *world) takeSized(d snapshot.Snapshot, bytes int64) snapshot.Snapshot {
	w.t.Helper()
	snap := w.take(d)
	snap.Bytes = bytes
	w.ok(w.store.SealSnapshot(w.t.Context(), snap))
	return snap
}

// left compares the snapshots that have rows and directories with want.
func (w *world) left(want ...snapshot.Snapshot) {
	w.t.Helper()
	rows, err := w.store.Snapshots(w.t.Context(), access.Everyone, snapshot.Filter{})
	w.ok(err)
	dirs, err := w.files.List()
	w.ok(err)
	var byRow, wanted []string
	for _, snap := range rows {
		byRow = append(byRow, snap.ID)
	}
	for _, snap := range want {
		wanted = append(wanted, snap.ID)
	}
	slices.Sort(byRow)
	slices.Sort(wanted)
	if !slices.Equal(byRow, wanted) || !slices.Equal(dirs, wanted) {
		w.t.Errorf("rows of %v and files of %v are left; want %v", byRow, dirs, wanted)
	}
}

var ample = snapshot.Limits{PerVM: 10}

func TestSnapshotIsDurableOnceFinished(t *testing.T) {
	w := newWorld(t, ample)
	_, err := w.Latest(t.Context(), access.Owner(owner), "vm_a")
	w.refuses(err, errs.Conflict, "no_snapshot")
	begun := w.begin(draft(snapshot.Manual, "base"), 7)
	if begun.Durable || !strings.HasPrefix(begun.ID, snapshot.IDPrefix) || begun.CreatedAt.IsZero() {
		t.Errorf("begun: %+v", begun)
	}
	_, err = w.Latest(t.Context(), access.Owner(owner), "vm_a")
	w.refuses(err, errs.Conflict, "no_snapshot")
	w.refuses(w.Delete(t.Context(), access.Owner(owner), begun.ID), errs.Conflict, "snapshot_in_use")

	done, err := w.Finish(t.Context(), begun)
	w.ok(err)
	if !done.Durable || done.Bytes < 4096 || done.Sums.Memory == "" || done.Sums.Disk == "" || done.Sums.Devices == "" {
		t.Errorf("done: %+v", done)
	}
	for _, key := range []string{done.ID, "base"} {
		if got, err := w.Get(t.Context(), access.Owner(owner), key); err != nil || got.ID != done.ID || got.Bytes != done.Bytes || got.Sums != done.Sums {
			t.Errorf("%s: %+v, %v", key, got, err)
		}
	}
	if got, err := w.Latest(t.Context(), access.Owner(owner), "vm_a"); err != nil || got.ID != done.ID {
		t.Errorf("the latest: %+v, %v", got, err)
	}
	w.ok(w.files.Verify(t.Context(), done.ID, done.Sums))
	w.left(done)
	w.refuses(w.Delete(t.Context(), access.Owner("acc_b"), done.ID), errs.NotFound, "snapshot_not_found")
	w.ok(w.Delete(t.Context(), access.Owner(owner), "base"))
	w.left()
	w.refuses(w.Delete(t.Context(), access.Owner(owner), done.ID), errs.NotFound, "snapshot_not_found")
}

func TestAbandonLeavesNothing(t *testing.T) {
	w := newWorld(t, ample)
	ctx, cancel := context.WithCancel(t.Context())
	begun := w.begin(draft(snapshot.Manual, "base"), 0)
	cancel()
	w.Abandon(ctx, begun)
	w.left()
	again := w.take(draft(snapshot.Manual, "base"))
	w.ok(w.Delete(t.Context(), access.Owner(owner), again.ID)) // no longer pinned
}

// lostStore stores, but returns an error, and so does every later call.
type lostStore struct{ *store.Store }

var errLost = errors.New("the database does not answer")

func (s lostStore) SealSnapshot(ctx context.Context, snap snapshot.Snapshot) error {
	return errors.Join(s.Store.SealSnapshot(ctx, snap), errLost)
}

func (lostStore) DeleteSnapshot(context.Context, string) error { return errLost }

// A snapshot that is stored as durable keeps its files, even if the store returned an
// error.
func TestAbandonedDurableSnapshotKeepsItsFiles(t *testing.T) {
	w := newWorld(t, ample)
	w.Service = snapshot.New(lostStore{w.store}, w.files, ample, slog.New(slog.DiscardHandler))
	begun := w.begin(draft(snapshot.Manual, "base"), 0)
	if _, err := w.Finish(t.Context(), begun); !errors.Is(err, errLost) {
		t.Fatalf("got %v", err)
	}
	w.Abandon(t.Context(), begun)
	w.restart(ample)
	w.ok(w.Reconcile(t.Context()))
	snap, err := w.Get(t.Context(), access.Owner(owner), "base")
	w.ok(err)
	w.ok(w.files.Verify(t.Context(), snap.ID, snap.Sums))
}

func TestEphemeralSnapshotIsNeverStored(t *testing.T) {
	w := newWorld(t, snapshot.Limits{PerVM: 1})
	kept := w.take(draft(snapshot.Manual, ""))
	snap, err := w.Begin(t.Context(), draft(snapshot.Ephemeral, ""), 0)
	w.ok(err)
	w.ok(w.files.CaptureEphemeral(t.Context(), snap.ID, snapshot.Parts{Memory: w.guest, Disk: w.guest}))
	if all, err := w.List(t.Context(), access.Owner(owner), snapshot.Filter{}); err != nil || len(all) != 1 {
		t.Errorf("listed: %v, %v", all, err)
	}
	w.Abandon(t.Context(), snap)
	w.left(kept)
}

func TestNames(t *testing.T) {
	w := newWorld(t, ample)
	for _, name := range []string{"a b", "-a", ".a", "a/b", "..", "snap_x", "ä", "a\x00", strings.Repeat("a", 64)} {
		_, err := w.Begin(t.Context(), draft(snapshot.Manual, name), 0)
		w.refuses(err, errs.Invalid, "invalid_name")
	}
	first := w.take(draft(snapshot.Manual, strings.Repeat("a", 63)))
	_, err := w.Begin(t.Context(), draft(snapshot.Manual, first.Name), 0)
	w.refuses(err, errs.Conflict, "name_taken")
	w.left(first)
}

func TestOldestAutomaticSnapshotIsEvicted(t *testing.T) {
	w := newWorld(t, snapshot.Limits{PerVM: 3})
	manual := w.take(draft(snapshot.Manual, "mine"))
	w.take(draft(snapshot.Automatic, ""))
	held := w.take(draft(snapshot.Automatic, ""))
	release := w.Pin(held.ID)
	other := draft(snapshot.Manual, "")
	other.VMID = "vm_b"
	theirs := w.take(other)

	third := w.take(draft(snapshot.Automatic, ""))
	w.left(manual, held, third, theirs)
	fourth := w.take(draft(snapshot.Automatic, "")) // the oldest is pinned: the next one is evicted
	w.left(manual, held, fourth, theirs)
	release()
	fifth := w.take(draft(snapshot.Automatic, ""))
	w.left(manual, fourth, fifth, theirs)
}

// A quota that is used up does not end the rotation of automatic snapshots.
func TestAutomaticSnapshotsRotateWithinAQuota(t *testing.T) {
	w := newWorld(t, snapshot.Limits{PerVM: 9})
	w.store.LimitUsers(quota.Limits{quota.Snapshots: 3, quota.SnapshotMiB: 5})
	manual := w.takeSized(draft(snapshot.Manual, "mine"), mib)
	w.takeSized(draft(snapshot.Automatic, ""), mib)
	second := w.takeSized(draft(snapshot.Automatic, ""), mib)
	third := w.take(draft(snapshot.Automatic, ""))
	w.left(manual, second, third)
	w.store.LimitUsers(quota.Limits{quota.SnapshotMiB: 3})
	_, err := w.Begin(t.Context(), draft(snapshot.Automatic, ""), 9*mib)
	w.refuses(err, errs.Forbidden, quota.Code)
	w.left(manual, second, third)
	w.store.LimitUsers(quota.Limits{quota.Snapshots: 3})
	_, err = w.Begin(t.Context(), draft(snapshot.Warm, ""), mib)
	w.refuses(err, errs.Forbidden, quota.Code)
	w.left(manual, second, third)
}

// A warm snapshot evicts no snapshot of an owner.
func TestWarmSnapshotEvictsOnlyWarmSnapshots(t *testing.T) {
	w := newWorld(t, snapshot.Limits{PerVM: 9, DiskMiB: 3})
	kept := w.takeSized(draft(snapshot.Automatic, ""), mib)
	first := w.takeSized(draft(snapshot.Warm, ""), 2*mib)
	_, err := w.Begin(t.Context(), draft(snapshot.Warm, ""), 3*mib)
	w.refuses(err, errs.Exhausted, "snapshot_disk_limit")
	w.left(kept, first)
	second := w.begin(draft(snapshot.Warm, ""), 2*mib)
	w.left(kept, second)
}

// Snapshots of an owner are not evicted for others, not even automatic ones.
func TestNoOwnersSnapshotIsEvictedForAnother(t *testing.T) {
	w := newWorld(t, snapshot.Limits{PerVM: 9, DiskMiB: 4})
	w.ok(w.store.InsertUser(t.Context(), access.User{ID: "acc_b", Name: "b", CreatedAt: time.Now()}))
	theirs := draft(snapshot.Automatic, "")
	theirs.OwnerID, theirs.VMID = "acc_b", "vm_b"
	kept := w.takeSized(theirs, mib)
	mine := w.takeSized(draft(snapshot.Automatic, ""), mib)
	warm := w.takeSized(draft(snapshot.Warm, ""), mib)
	_, err := w.Begin(t.Context(), draft(snapshot.Manual, ""), 4*mib)
	w.refuses(err, errs.Exhausted, "snapshot_disk_limit")
	w.left(kept, mine, warm)
	first := w.begin(draft(snapshot.Manual, ""), 2*mib) // the warm snapshot is evicted first, though it is newer
	w.left(kept, mine, first)
	second := w.begin(draft(snapshot.Manual, ""), mib)
	w.left(kept, first, second)
}

// fullFiles has a disk that is full until a number of directories are removed.
type fullFiles struct {
	*files.Files
	excess  int
	missing int64           // reported in the error, if not 0
	fail    map[string]bool // ids whose removal fails
	flushed bool            // since the last removal
}

func (f *fullFiles) Prepare(id string, bytes int64) error {
	if f.excess > 0 || !f.flushed {
		return errs.New(errs.Exhausted, "disk_full", "the host's disk is full").WithCause(errs.Shortage{Bytes: f.missing})
	}
	return f.Files.Prepare(id, bytes)
}

func (f *fullFiles) Remove(id string) error {
	if f.fail[id] {
		return errors.New("the disk does not do it")
	}
	f.excess, f.flushed = f.excess-1, false
	return f.Files.Remove(id)
}

func (f *fullFiles) Flush() { f.flushed = true; f.Files.Flush() }

func TestWarmSnapshotsAreEvictedFirst(t *testing.T) {
	w := newWorld(t, ample)
	automatic := w.take(draft(snapshot.Automatic, ""))
	warm := []snapshot.Snapshot{w.take(draft(snapshot.Warm, "")), w.take(draft(snapshot.Warm, "")), w.take(draft(snapshot.Warm, ""))}
	full := &fullFiles{Files: w.files, excess: 2}
	w.Service = snapshot.New(w.store, full, ample, slog.New(slog.DiscardHandler))
	release := w.Pin(warm[0].ID)
	_, err := w.Begin(t.Context(), draft(snapshot.Warm, ""), 0) // which evicts nothing
	w.refuses(err, errs.Exhausted, "disk_full")
	w.left(append(warm, automatic)...)

	full.excess = 2
	snap := w.begin(draft(snapshot.Manual, ""), 0)
	w.left(warm[0], automatic, snap)
	full.excess = 3
	_, err = w.Begin(t.Context(), draft(snapshot.Ephemeral, ""), 0)
	w.refuses(err, errs.Exhausted, "disk_full")
	w.left(warm[0], automatic, snap) // the first is in use
	release()
	if yielded, err := w.Yield(t.Context(), 0); !yielded || err != nil {
		t.Errorf("the last snapshot: %v, %v", yielded, err)
	}
	w.left(automatic, snap)
}

func TestNoWarmSnapshotIsEvictedInVain(t *testing.T) {
	w := newWorld(t, ample)
	warm := []snapshot.Snapshot{w.takeSized(draft(snapshot.Warm, ""), mib), w.takeSized(draft(snapshot.Warm, ""), mib), w.takeSized(draft(snapshot.Warm, ""), mib)}
	full := &fullFiles{Files: w.files, excess: 1, missing: 2*mib + 1}
	w.Service = snapshot.New(w.store, full, ample, slog.New(slog.DiscardHandler))
	release := w.Pin(warm[0].ID)
	for _, kind := range []snapshot.Kind{snapshot.Manual, snapshot.Ephemeral} {
		full.excess = 2
		_, err := w.Begin(t.Context(), draft(kind, ""), 0)
		w.refuses(err, errs.Exhausted, "disk_full")
		w.left(warm...) // the first is in use, and the others are too small
	}
	release()
	full.excess = 1
	snap := w.begin(draft(snapshot.Manual, ""), 0)
	w.left(warm[1], warm[2], snap)
}

func TestWarmSnapshotInUseIsSkipped(t *testing.T) {
	w := newWorld(t, ample)
	first, second := w.take(draft(snapshot.Warm, "")), w.take(draft(snapshot.Warm, ""))
	full := &fullFiles{Files: w.files, fail: map[string]bool{first.ID: true}}
	w.Service = snapshot.New(w.store, full, ample, slog.New(slog.DiscardHandler))
	if yielded, err := w.Yield(t.Context(), 1); !yielded || err != nil {
		t.Errorf("got %v, %v", yielded, err)
	}
	for id, there := range map[string]bool{first.ID: true, second.ID: false} {
		if _, err := os.Stat(w.files.Dir(id)); (err == nil) != there {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestManualSnapshotsAreNotEvicted(t *testing.T) {
	w := newWorld(t, snapshot.Limits{PerVM: 3})
	kept := []snapshot.Snapshot{
		w.take(draft(snapshot.Manual, "")), w.take(draft(snapshot.Manual, "")), w.take(draft(snapshot.Automatic, "")),
	}
	w.restart(snapshot.Limits{PerVM: 2}) // evicting the automatic snapshot would not suffice, so it stays
	_, err := w.Begin(t.Context(), draft(snapshot.Manual, ""), 0)
	w.refuses(err, errs.Conflict, "snapshot_limit")
	w.left(kept...)
}

// A request that fails for another reason evicts no snapshot.
func TestTakenNameEvictsNothing(t *testing.T) {
	w := newWorld(t, snapshot.Limits{PerVM: 2})
	kept := []snapshot.Snapshot{w.take(draft(snapshot.Manual, "base")), w.take(draft(snapshot.Automatic, ""))}
	_, err := w.Begin(t.Context(), draft(snapshot.Manual, "base"), 0)
	w.refuses(err, errs.Conflict, "name_taken")
	gone := draft(snapshot.Manual, "")
	gone.VM.ImageID = "img_gone"
	_, err = w.Begin(t.Context(), gone, 0)
	w.refuses(err, errs.NotFound, "image_not_found")
	w.left(kept...)
}

// busyStore pins a snapshot while another one is removed.
type busyStore struct {
	*store.Store
	removing func()
}

func (s busyStore) DeleteSnapshot(ctx context.Context, id string) error {
	s.removing()
	return s.Store.DeleteSnapshot(ctx, id)
}

func TestNextSnapshotIsEvictedInsteadOfOneInUse(t *testing.T) {
	for _, busy := range []int{1, 2} {
		w := newWorld(t, ample)
		all := []snapshot.Snapshot{w.take(draft(snapshot.Automatic, "")), w.take(draft(snapshot.Automatic, "")), w.take(draft(snapshot.Automatic, ""))}
		use := sync.OnceFunc(func() {
			for _, snap := range all[1 : 1+busy] {
				w.Pin(snap.ID)
			}
		})
		w.Service = snapshot.New(busyStore{w.store, use}, w.files, snapshot.Limits{PerVM: 2}, slog.New(slog.DiscardHandler))
		snap, err := w.Begin(t.Context(), draft(snapshot.Manual, ""), 0)
		if busy == 1 {
			w.ok(err)
			w.left(all[1], snap)
		} else {
			w.refuses(err, errs.Conflict, "snapshot_limit")
			w.left(all[1:]...)
		}
	}
}

func TestDiskLimit(t *testing.T) {
	w := newWorld(t, ample)
	manual := w.takeSized(draft(snapshot.Manual, ""), 40*mib)
	other := draft(snapshot.Automatic, "")
	other.VMID = "vm_b"
	oldest, second := w.takeSized(other, 30*mib), w.takeSized(draft(snapshot.Automatic, ""), 30*mib)
	w.restart(snapshot.Limits{PerVM: 10, DiskMiB: 100})

	_, err := w.Begin(t.Context(), draft(snapshot.Manual, ""), 61*mib)
	w.refuses(err, errs.Exhausted, "snapshot_disk_limit")
	w.left(manual, oldest, second) // none was removed in vain
	begun, err := w.Begin(t.Context(), draft(snapshot.Manual, ""), 20*mib)
	w.ok(err)
	w.left(manual, second, begun)
	_, err = w.Begin(t.Context(), draft(snapshot.Manual, ""), 41*mib) // an unfinished snapshot counts, too
	w.refuses(err, errs.Exhausted, "snapshot_disk_limit")
	w.left(manual, second, begun)
	w.Abandon(t.Context(), begun)
}

func TestOldAutomaticSnapshotsAreRemoved(t *testing.T) {
	w := newWorld(t, ample)
	manual, automatic, warm := w.take(draft(snapshot.Manual, "")), w.take(draft(snapshot.Automatic, "")), w.take(draft(snapshot.Warm, ""))
	w.ok(w.Prune(t.Context())) // without a limit
	w.left(manual, automatic, warm)
	w.restart(snapshot.Limits{PerVM: 10, MaxAge: time.Hour})
	w.ok(w.Prune(t.Context()))
	w.left(manual, automatic, warm)
	w.restart(snapshot.Limits{PerVM: 10, MaxAge: time.Nanosecond})
	release := w.Pin(automatic.ID)
	w.ok(w.Prune(t.Context()))
	w.left(manual, automatic, warm)
	release()
	w.ok(w.Prune(t.Context()))
	w.left(manual, warm)
}

// An old snapshot is evicted without a new one and without a restart of hatchd.
func TestRunRemovesOldAutomaticSnapshots(t *testing.T) {
	w := newWorld(t, ample)
	manual := w.take(draft(snapshot.Manual, ""))
	w.restart(snapshot.Limits{PerVM: 10, MaxAge: time.Nanosecond})
	ctx, stop := context.WithCancel(t.Context())
	tick, ended := make(chan time.Time), make(chan struct{})
	go func() { defer close(ended); snapshot.PruneAt(w.Service, ctx, tick) }()
	for range 2 {
		w.take(draft(snapshot.Automatic, ""))
		tick <- time.Now()
		select {
		case tick <- time.Now(): // received once the first tick has been handled
		case <-time.After(10 * time.Second):
			t.Fatal("it does not return")
		}
		w.left(manual)
	}
	stop()
	<-ended
}

func TestSnapshotInUseCannotBeDeleted(t *testing.T) {
	w := newWorld(t, ample)
	snap := w.take(draft(snapshot.Manual, "base"))
	first, second := w.Pin(snap.ID), w.Pin(snap.ID)
	for _, release := range []func(){first, second} {
		w.refuses(w.Delete(t.Context(), access.Owner(owner), "base"), errs.Conflict, "snapshot_in_use")
		w.left(snap)
		release()
	}
	w.ok(w.Delete(t.Context(), access.Owner(owner), "base"))
	w.left()
}

func TestReconcileRemovesUnfinishedSnapshots(t *testing.T) {
	w := newWorld(t, ample)
	whole := w.take(draft(snapshot.Manual, "whole"))
	w.begin(draft(snapshot.Manual, "half"), 0)
	w.ok(w.files.Prepare("snap_norow", 0))
	if err := os.Mkdir(filepath.Join(w.root, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.restart(ample)
	for range 2 {
		w.ok(w.Reconcile(t.Context()))
		w.left(whole)
	}
	if _, err := os.Stat(filepath.Join(w.root, "lost+found")); err != nil {
		t.Errorf("files without a snapshot: %v", err)
	}
	w.ok(w.files.Verify(t.Context(), whole.ID, whole.Sums))
	w.take(draft(snapshot.Manual, "half")) // its name is free again
}

// TestReconcileKeepsFilesThatTheDatabaseDoesNotHave has the database of before two
// snapshots were finished.
func TestReconcileKeepsFilesThatTheDatabaseDoesNotHave(t *testing.T) {
	w := newWorld(t, ample)
	whole := w.take(draft(snapshot.Manual, "whole"))
	lost, unsealed := w.take(draft(snapshot.Manual, "lost")), w.take(draft(snapshot.Manual, "unsealed"))
	w.ok(w.store.DeleteSnapshot(t.Context(), lost.ID))
	w.ok(w.store.DeleteSnapshot(t.Context(), unsealed.ID))
	unsealed.Durable = false
	_, err := w.store.InsertSnapshot(t.Context(), unsealed)
	w.ok(err)
	for range 2 {
		w.restart(ample)
		w.ok(w.Reconcile(t.Context()))
		w.left(whole)
	}
	for _, snap := range []snapshot.Snapshot{lost, unsealed} {
		aside, err := filepath.Glob(filepath.Join(filepath.Dir(w.root), "lost", snap.ID+"-*"))
		if err != nil || len(aside) != 1 {
			t.Fatalf("%s: set aside: %v, %v", snap.Name, aside, err)
		}
		w.ok(os.Rename(aside[0], w.files.Dir(snap.ID)))
		w.ok(w.files.Verify(t.Context(), snap.ID, snap.Sums))
	}
}

// TestDeletedFilesAreRemovedAtTheNextStart: the files of a snapshot that was deleted are
// not set aside when hatchd ended before it removed them.
func TestDeletedFilesAreRemovedAtTheNextStart(t *testing.T) {
	w := newWorld(t, ample)
	snap := w.take(draft(snapshot.Manual, ""))
	w.Service = snapshot.New(w.store, stuckFiles{w.files}, ample, slog.New(slog.DiscardHandler))
	if err := w.Delete(t.Context(), access.Owner(owner), snap.ID); !errors.Is(err, errStuck) {
		t.Fatalf("got %v", err)
	}
	w.restart(ample)
	w.ok(w.Reconcile(t.Context()))
	w.left()
	if aside, err := filepath.Glob(filepath.Join(filepath.Dir(w.root), "lost", "*")); err != nil || len(aside) > 0 {
		t.Errorf("set aside: %v, %v", aside, err)
	}
}

// TestDeleteThatFailsLeavesTheSnapshotWhole has no database for the moment.
func TestDeleteThatFailsLeavesTheSnapshotWhole(t *testing.T) {
	w := newWorld(t, ample)
	snap := w.take(draft(snapshot.Manual, ""))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.store.DeleteSnapshot(ended, snap.ID); err == nil {
		t.Fatal("the row was deleted")
	}
	w.ok(w.files.Disown(snap.ID)) // and then the row was not deleted
	for range 2 {
		w.restart(ample)
		w.ok(w.Reconcile(t.Context()))
		w.left(snap)
	}
	w.ok(w.files.Verify(t.Context(), snap.ID, snap.Sums))
	if kept, err := w.files.SetAside(snap.ID); err != nil || !kept {
		t.Errorf("it is not sealed again: %v, %v", kept, err)
	}
}

var errStuck = errors.New("the files cannot be removed")

// stuckFiles removes nothing.
type stuckFiles struct{ snapshot.Files }

func (stuckFiles) Remove(string) error { return errStuck }

func TestReconcilePrunesToo(t *testing.T) {
	w := newWorld(t, ample)
	w.take(draft(snapshot.Automatic, ""))
	w.restart(snapshot.Limits{PerVM: 10, MaxAge: time.Nanosecond})
	w.ok(w.Reconcile(t.Context()))
	w.left()
}

func TestConcurrentSnapshotsKeepTheLimit(t *testing.T) {
	w := newWorld(t, snapshot.Limits{PerVM: 3})
	var all sync.WaitGroup
	var mu sync.Mutex
	var begun []snapshot.Snapshot
	for range 8 {
		all.Go(func() {
			snap, err := w.Begin(t.Context(), draft(snapshot.Automatic, ""), 0)
			if errs.HasCode(err, "snapshot_limit") {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			begun = append(begun, snap)
		})
	}
	all.Wait()
	if len(begun) != 3 {
		t.Errorf("%d snapshots were begun concurrently", len(begun))
	}
	w.left(begun...)
}

func TestBeginStopsWaitingWithItsContext(t *testing.T) {
	w := newWorld(t, ample)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Begin(ctx, draft(snapshot.Manual, ""), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	w.left()
}

// TestReconcileDescribesSnapshotsOfAnEarlierHatchd removes a manifest, which earlier
// versions did not write.
func TestReconcileDescribesSnapshotsOfAnEarlierHatchd(t *testing.T) {
	w := newWorld(t, ample)
	snap := w.take(draft(snapshot.Manual, ""))
	path := filepath.Join(w.files.Dir(snap.ID), "snapshot.json")
	w.ok(os.Remove(path))
	w.ok(w.Reconcile(t.Context()))
	text, err := os.ReadFile(path)
	w.ok(err)
	m, err := snapshot.ParseManifest(text)
	if err != nil || m.ID != snap.ID || m.VMID != snap.VMID {
		t.Errorf("got %+v, %v", m, err)
	}
	w.left(snap)
}
