package warm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	snapshotfiles "github.com/hatchvm/hatch/internal/host/snapshot"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/store"
	"github.com/hatchvm/hatch/internal/store/storetest"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	imageID       = "img_a"
	othersImageID = "img_others" // of another owner
)

// world is a service over a real store and real files; its VMs are fake.
// It does not call Run: a test builds queued shapes itself.
type world struct {
	*Service
	vms       *fakeVMs
	snapshots *snapshot.Service
	files     *snapshotfiles.Files
	store     *store.Store
	listing   func() // called after snapshots were read, unless nil
}

// listedStore is a store that calls a world's listing.
type listedStore struct {
	*store.Store
	w *world
}

func (s listedStore) Snapshots(ctx context.Context, scope access.Scope, f snapshot.Filter) ([]snapshot.Snapshot, error) {
	all, err := s.Store.Snapshots(ctx, scope, f)
	if s.w.listing != nil {
		s.w.listing()
	}
	return all, err
}

func newWorld(t *testing.T, mode Mode) *world {
	t.Helper()
	st := storetest.Open(t)
	t.Cleanup(func() { _ = st.Close() })
	for _, id := range []string{access.SystemID, access.AdminID, "acc_other"} {
		if err := st.InsertUser(t.Context(), access.User{ID: id, Name: id, CreatedAt: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	for id, owner := range map[string]string{imageID: access.SystemID, "img_b": access.SystemID, othersImageID: "acc_other"} {
		if err := st.UpsertImage(t.Context(), image.Image{ID: id, OwnerID: owner, CreatedAt: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	files, err := snapshotfiles.Open(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	log := slog.New(slog.DiscardHandler)
	w := &world{files: files, store: st}
	snapshots := snapshot.New(listedStore{st, w}, files, snapshot.Limits{PerVM: 10}, log)
	w.snapshots = snapshots
	w.vms = &fakeVMs{snapshots: snapshots, files: files, dir: t.TempDir(), shapes: map[string]vm.Shape{}, gone: make(chan string, 2*maxSnapshots)}
	w.Service = New(snapshots, files, st, mode, log)
	return w
}

// shape returns the shape of a VM with this much memory.
func shape(memMiB int) vm.Shape {
	return vm.Shape{Shape: machine.Shape{ImageID: imageID, VCPUs: 1, MemMiB: memMiB, DiskMiB: 64, EnableNetwork: true}, Machine: snapshot.Machine{Driver: "fake"}}
}

// othersShape returns a shape of another owner's image.
func othersShape(memMiB int) vm.Shape {
	s := shape(memMiB)
	s.ImageID = othersImageID
	return s
}

// buildAll builds all queued shapes.
func (w *world) buildAll(t *testing.T) {
	t.Helper()
	for s, ok := w.next(true); ok; s, ok = w.next(true) {
		w.build(t.Context(), w.vms, s)
	}
}

// requireStates checks the states of the image's guests.
func (w *world) requireStates(t *testing.T, want ...State) []Entry {
	t.Helper()
	all, err := w.List(t.Context(), imageID)
	if err != nil {
		t.Fatal(err)
	}
	var states []State
	for _, g := range all {
		states = append(states, g.State)
	}
	if !slices.Equal(states, want) {
		t.Errorf("there are %+v, want %v", all, want)
	}
	return all
}

func ample(context.Context) error { return nil }

// requireFind checks whether VMs of the shape can be cloned.
func (w *world) requireFind(t *testing.T, s vm.Shape, want bool) {
	t.Helper()
	warm, ok := w.Find(t.Context(), s, ample)
	if ok != want {
		t.Errorf("found: %v, want %v", ok, want)
	}
	if ok {
		warm.Release()
	}
}

// damage changes a guest's memory on disk.
func (w *world) damage(t *testing.T, id string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.files.Dir(id), "memory"), []byte("another's memory"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// fakeVMs are VMs that are ready at once.
type fakeVMs struct {
	snapshots *snapshot.Service
	files     *snapshotfiles.Files
	dir       string

	made    int
	shapes  map[string]vm.Shape // of existing VMs, by id
	unready error               // the result of Wait
	waits   func(context.Context) error
	stale   bool
	busy    chan struct{} // the host is not idle until it is closed; nil: it is
	gone    chan string   // ids of deleted VMs

	looked func() // called by Idle, unless nil: then the host changes all the time, and is not idle
}

func (f *fakeVMs) CreateOfShape(_ context.Context, s vm.Shape) (vm.VM, error) {
	f.made++
	id := fmt.Sprintf("vm_%012d", f.made)
	f.shapes[id] = s
	return vm.VM{ID: id}, nil
}

func (f *fakeVMs) Wait(ctx context.Context, _ access.Scope, id string, want vm.WaitFor) (vm.VM, error) {
	if !want.Ready {
		return vm.VM{}, errors.New("no wait for ready was called")
	}
	if f.waits != nil {
		return vm.VM{}, f.waits(ctx)
	}
	return vm.VM{ID: id}, f.unready
}

func (f *fakeVMs) SnapshotWarm(ctx context.Context, id string) (snapshot.Snapshot, error) {
	s := f.shapes[id]
	snap, err := f.snapshots.Begin(ctx, snapshot.Snapshot{
		OwnerID: access.SystemID, VMID: id, Kind: snapshot.Warm, Machine: s.Machine,
		VM: snapshot.Origin{Spec: s.Spec(), Initramfs: s.Initramfs},
	}, 0)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	part := filepath.Join(f.dir, "part")
	err = errors.Join(os.WriteFile(part, []byte("a guest's memory"), 0o600),
		os.WriteFile(filepath.Join(f.files.Dir(snap.ID), vmm.SavedDevices), []byte("registers"), 0o600),
		os.WriteFile(filepath.Join(f.files.Dir(snap.ID), vmm.SavedManifest), []byte("{}"), 0o600),
		f.files.Capture(ctx, snap.ID, snapshot.Parts{Memory: part, Disk: part}))
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	return f.snapshots.Finish(ctx, snap)
}

func (f *fakeVMs) Delete(_ context.Context, scope access.Scope, id string) error {
	if _, there := f.shapes[id]; !there || scope != access.Owner(access.SystemID) {
		return errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", id)
	}
	delete(f.shapes, id)
	f.gone <- id
	return nil
}

func (f *fakeVMs) List(context.Context, access.Scope, vm.Filter) (all []vm.VM, _ string, _ error) {
	for id := range f.shapes {
		all = append(all, vm.VM{ID: id})
	}
	return all, "", nil
}

func (f *fakeVMs) Idle(context.Context) (bool, <-chan struct{}, error) {
	if f.looked != nil {
		f.looked()
		changed := make(chan struct{})
		close(changed)
		return false, changed, nil
	}
	select {
	case <-f.busy:
		return true, f.busy, nil
	default:
		return f.busy == nil, f.busy, nil
	}
}

func (f *fakeVMs) IsCurrent(context.Context, vm.Shape) bool { return !f.stale }
