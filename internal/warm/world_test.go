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
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/store"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	imageID       = "img_a"
	othersImageID = "img_others" // of another owner
)

// world is a service over a real store and real files; its VMs are pretended.
// Run is not called: a test takes what waits to be built itself.
type world struct {
	*Service
	vms       *fakeVMs
	snapshots *snapshot.Service
	files     *snapshotfiles.Files
}

func newWorld(t *testing.T, mode Mode) *world {
	t.Helper()
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hatch.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	for _, id := range []string{access.SystemID, "acc_other"} {
		if err := st.InsertAccount(t.Context(), access.Account{ID: id, Name: id, CreatedAt: time.Now()}); err != nil {
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
	snapshots := snapshot.New(st, files, snapshot.Limits{PerVM: 10}, log)
	vms := &fakeVMs{snapshots: snapshots, files: files, dir: t.TempDir(), shapes: map[string]vm.Shape{}, gone: make(chan string, 2*maxKept)}
	return &world{Service: New(snapshots, files, st, mode, log), vms: vms, snapshots: snapshots, files: files}
}

// shape is one of a VM with so much memory.
func shape(memMiB int) vm.Shape {
	return vm.Shape{ImageID: imageID, VCPUs: 1, MemMiB: memMiB, DiskMiB: 64, Network: true, Machine: snapshot.Machine{Driver: "fake"}}
}

// othersShape is one of another owner's image.
func othersShape(memMiB int) vm.Shape {
	s := shape(memMiB)
	s.ImageID = othersImageID
	return s
}

// buildAll builds what waits.
func (w *world) buildAll(t *testing.T) {
	t.Helper()
	for s, ok := w.next(); ok; s, ok = w.next() {
		w.build(t.Context(), w.vms, s)
	}
}

// requireStates checks what is told of the image's guests.
func (w *world) requireStates(t *testing.T, want ...State) []Guest {
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

// requireFind checks whether VMs of the shape can begin as a copy.
func (w *world) requireFind(t *testing.T, s vm.Shape, want bool) {
	t.Helper()
	warmth, ok := w.Find(t.Context(), s, ample)
	if ok != want {
		t.Errorf("found: %v, want %v", ok, want)
	}
	if ok {
		warmth.Release()
	}
}

// damage changes what is on disk of a guest's memory.
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
	shapes  map[string]vm.Shape // of those there are, by id
	unready error               // what waits end with
	waits   func(context.Context) error
	stale   bool
	gone    chan string // ids of those that were deleted
}

func (f *fakeVMs) CreateOfShape(_ context.Context, s vm.Shape) (vm.VM, error) {
	f.made++
	id := fmt.Sprintf("vm_%012d", f.made)
	f.shapes[id] = s
	return vm.VM{ID: id}, nil
}

func (f *fakeVMs) Wait(ctx context.Context, _, id string, want vm.WaitFor) (vm.VM, error) {
	if !want.Ready {
		return vm.VM{}, errors.New("nobody asked whether it is ready")
	}
	if f.waits != nil {
		return vm.VM{}, f.waits(ctx)
	}
	return vm.VM{ID: id}, f.unready
}

func (f *fakeVMs) KeepWarm(ctx context.Context, id string) (snapshot.Snapshot, error) {
	s := f.shapes[id]
	one, err := f.snapshots.Begin(ctx, snapshot.Snapshot{
		OwnerID: access.SystemID, VMID: id, Kind: snapshot.Warm, Machine: s.Machine,
		VM: snapshot.Origin{ImageID: s.ImageID, Boot: s.Boot, Initramfs: s.Initramfs, VCPUs: s.VCPUs, MemMiB: s.MemMiB, DiskMiB: s.DiskMiB, BootArgs: s.BootArgs, Network: s.Network},
	}, 0)
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	part := filepath.Join(f.dir, "part")
	err = errors.Join(os.WriteFile(part, []byte("a guest's memory"), 0o600),
		os.WriteFile(filepath.Join(f.files.Dir(one.ID), vmm.SavedDevices), nil, 0o600),
		os.WriteFile(filepath.Join(f.files.Dir(one.ID), vmm.SavedManifest), nil, 0o600),
		f.files.Capture(ctx, one.ID, snapshot.Parts{Memory: part, Disk: part}))
	if err != nil {
		return snapshot.Snapshot{}, err
	}
	return f.snapshots.Finish(ctx, one)
}

func (f *fakeVMs) Delete(_ context.Context, owner, id string) error {
	if _, there := f.shapes[id]; !there || owner != access.SystemID {
		return errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", id)
	}
	delete(f.shapes, id)
	f.gone <- id
	return nil
}

func (f *fakeVMs) List(context.Context, string, vm.Filter) (all []vm.VM, _ string, _ error) {
	for id := range f.shapes {
		all = append(all, vm.VM{ID: id})
	}
	return all, "", nil
}

func (f *fakeVMs) IsCurrent(context.Context, vm.Shape) bool { return !f.stale }
