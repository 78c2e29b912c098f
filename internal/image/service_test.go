package image

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Store in memory with the errors of the contract.
type memory struct {
	mu     sync.Mutex
	images []Image
	users  int
	writes int
}

func (m *memory) InsertImage(_ context.Context, i Image) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.ContainsFunc(m.images, func(o Image) bool { return o.ID == i.ID }) {
		return errs.New(errs.Conflict, "image_exists", "there is an image %s", i.ID)
	}
	m.images, m.writes = append(m.images, i), m.writes+1
	return nil
}

func (m *memory) UpsertImage(_ context.Context, i Image) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.images = slices.DeleteFunc(m.images, func(o Image) bool { return o.ID == i.ID })
	m.images, m.writes = append(m.images, i), m.writes+1
	return nil
}

func (m *memory) Image(_ context.Context, scope access.Scope, id string) (Image, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range m.images {
		if i.ID == id && scope.Sees(i.OwnerID) {
			return i, nil
		}
	}
	return Image{}, errs.New(errs.NotFound, "image_not_found", "there is no image %s", id)
}

func (m *memory) Images(context.Context, access.Scope) ([]Image, error) { return m.images, nil }

func (m *memory) ImageUsers(context.Context, string) (int, error) { return m.users, nil }

func (m *memory) UpdateImage(_ context.Context, id string, change func(*Image) error) (Image, error) {
	at := slices.IndexFunc(m.images, func(i Image) bool { return i.ID == id })
	i := m.images[at]
	err := change(&i)
	if err == nil {
		m.images[at] = i
	}
	return i, err
}

func (m *memory) DeleteImage(_ context.Context, _ access.Scope, id string) error {
	m.images = slices.DeleteFunc(m.images, func(o Image) bool { return o.ID == id })
	return nil
}

// believer accepts every file.
type believer struct{}

func (believer) Inspect(_ context.Context, r Registration) (Facts, error) {
	kernel, err := stat(r.KernelPath)
	if err != nil {
		return Facts{}, errs.InvalidField("kernel_path", "%v", err)
	}
	rootfs, err := stat(r.RootfsPath)
	return Facts{Kernel: kernel, KernelVersion: "6.1", ModulesPath: r.ModulesPath, Rootfs: rootfs, RootfsFormat: "ext4", DiskMode: DiskOverlay}, err
}

func (believer) Unchanged(f File) bool {
	now, err := stat(f.Path)
	return err == nil && now == f
}

func stat(path string) (File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return File{}, err
	}
	return File{Path: path, Size: st.Size(), ModTime: st.ModTime(), Inode: st.Sys().(*syscall.Stat_t).Ino}, nil
}

type world struct {
	*Service
	store          *memory
	builder        *builder
	kernel, rootfs string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{
		store: &memory{}, builder: newBuilder(),
		kernel: filepath.Join(dir, "vmlinuz"), rootfs: filepath.Join(dir, "rootfs"),
	}
	for _, path := range []string{w.kernel, w.rootfs} {
		if err := os.WriteFile(path, []byte(path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.builder.built = Built{Kernel: w.kernel, Rootfs: w.rootfs}
	w.Service = New(w.store, believer{}, nil, w.builder, slog.New(slog.NewTextHandler(io.Discard, nil)))
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) registration() Registration {
	return Registration{KernelPath: w.kernel, RootfsPath: w.rootfs}
}

func TestRegisterStoresTheFacts(t *testing.T) {
	w := newWorld(t)
	r := w.registration()
	r.Name, r.BootArgs, r.ModulesPath = "mine", "quiet", "/modules"
	made, err := w.Register(t.Context(), "me", r)
	if err != nil || !idForm.MatchString(made.ID) || made.OwnerID != "me" || made.Name != "mine" {
		t.Fatalf("got %+v, %v", made, err)
	}
	boot := made.Boot()
	if boot.ImageID != made.ID || boot.BootArgs != "quiet" || boot.ModulesPath != "/modules" || boot.Kernel.Path != w.kernel || boot.RootfsFormat != "ext4" {
		t.Errorf("a VM would keep %+v", boot)
	}
	if got, err := w.Image(t.Context(), access.Owner("me"), made.ID); err != nil || got.ID != made.ID {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := w.Image(t.Context(), access.Owner("other"), made.ID); !errs.HasCode(err, "image_not_found") {
		t.Errorf("another owner got %v", err)
	}
}

func TestRegisterRefusesBadFields(t *testing.T) {
	w := newWorld(t)
	for field, change := range map[string]func(*Registration){
		"id":          func(r *Registration) { r.ID = "IMG_upper" },
		"name":        func(r *Registration) { r.Name = "-x" },
		"boot_args":   func(r *Registration) { r.BootArgs = "a\nb" },
		"kernel_path": func(r *Registration) { r.KernelPath = "/nowhere/at/all" },
	} {
		r := w.registration()
		change(&r)
		if _, err := w.Register(t.Context(), "me", r); !errs.HasCode(err, "invalid_"+field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
	for _, kept := range []string{DefaultID, MinimalID} {
		r := w.registration()
		r.ID = kept
		if _, err := w.Register(t.Context(), "me", r); !errs.HasCode(err, "invalid_id") {
			t.Errorf("%s: got %v", kept, err)
		}
	}
	if w.store.writes != 0 {
		t.Error("a refused image was stored")
	}
}

func TestImageInUseIsNotDeleted(t *testing.T) {
	w := newWorld(t)
	made, err := w.Register(t.Context(), "me", w.registration())
	if err != nil {
		t.Fatal(err)
	}
	var forgotten []string
	forget := func(_ context.Context, id string) error { forgotten = append(forgotten, id); return nil }
	w.store.users = 2
	if err := w.Delete(t.Context(), access.Owner("me"), made.ID, forget); !errs.HasCode(err, "image_in_use") {
		t.Errorf("got %v", err)
	}
	w.store.users = 0
	if err := w.Delete(t.Context(), access.Owner("other"), made.ID, forget); !errs.Is(err, errs.NotFound) {
		t.Errorf("another owner got %v", err)
	}
	if len(forgotten) != 0 {
		t.Errorf("hatchd forgot %v, which stay", forgotten)
	}
	if err := w.Delete(t.Context(), access.Owner("me"), made.ID, forget); err != nil || !slices.Equal(forgotten, []string{made.ID}) {
		t.Errorf("%v; hatchd forgot %v", err, forgotten)
	}
	if _, err := os.Stat(w.rootfs); err != nil {
		t.Errorf("the file was deleted with the image: %v", err)
	}
}

func TestChangedFilesAreNotUsed(t *testing.T) {
	w := newWorld(t)
	made, err := w.Register(t.Context(), "me", w.registration())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.rootfs, []byte("something longer than it was before"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Image(t.Context(), access.Owner("me"), made.ID); !errs.HasCode(err, "image_changed") {
		t.Errorf("got %v", err)
	}
}

func TestSetDefaultFollowsTheFiles(t *testing.T) {
	w := newWorld(t)
	set := func(kernel string, writes int) {
		t.Helper()
		if err := w.SetDefault(t.Context(), "me", kernel, w.rootfs); err != nil {
			t.Fatal(err)
		}
		got, err := w.Get(t.Context(), access.Owner("me"), DefaultID)
		if err != nil || got.Kernel.Path != kernel || w.store.writes != writes {
			t.Errorf("got %+v, %v after %d writes; want %d", got, err, w.store.writes, writes)
		}
	}
	set(w.kernel, 1)
	set(w.kernel, 1) // the same: nothing to do
	other := w.kernel + "-other"
	if err := os.WriteFile(other, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	set(other, 2)
	if err := os.WriteFile(other, []byte("changed in place"), 0o600); err != nil {
		t.Fatal(err)
	}
	set(other, 3)
}
