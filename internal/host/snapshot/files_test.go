//go:build linux

package snapshot

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

const id = "snap_a1"

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newFiles(t testing.TB) *Files {
	t.Helper()
	f, err := Open(filepath.Join(t.TempDir(), "snapshots"), 0)
	noError(t, err)
	t.Cleanup(func() { noError(t, f.Close()) })
	return f
}

// guest is a paused guest.
type guest struct {
	memory, disk     string // paths
	inMemory, onDisk []byte
	diskChanged      time.Time
}

func (g guest) parts() snapshot.Parts { return snapshot.Parts{Memory: g.memory, Disk: g.disk} }

func newGuest(t testing.TB) guest {
	t.Helper()
	dir := t.TempDir()
	g := guest{
		memory: filepath.Join(dir, "memory"), disk: filepath.Join(dir, "disk.img"),
		diskChanged: time.Date(2024, 2, 29, 1, 2, 3, 123456789, time.UTC),
	}
	g.inMemory, g.onDisk = patchy(t, g.memory, 16), patchy(t, g.disk, 8)
	noError(t, os.Chtimes(g.disk, time.Time{}, g.diskChanged))
	return g
}

// patchy makes a file with a few pages of data, holes and zeros.
func patchy(t testing.TB, path string, mib int) []byte {
	t.Helper()
	f, err := sparse.Create(path, int64(mib)<<20)
	noError(t, err)
	defer func() { noError(t, f.Close()) }()
	content := make([]byte, mib<<20)
	random := rand.NewChaCha8([32]byte{1})
	for _, at := range []int{0, 3*sparse.ChunkSize - 4096, 5 * sparse.ChunkSize, len(content) - 4096} {
		page := content[at : at+4096]
		_, _ = random.Read(page)
		_, err := f.WriteAt(page, int64(at))
		noError(t, err)
	}
	_, err = f.WriteAt(make([]byte, sparse.ChunkSize), 6*sparse.ChunkSize)
	noError(t, err)
	return content
}

// prepared makes a snapshot with a saved machine.
func prepared(t testing.TB, f *Files) {
	t.Helper()
	noError(t, f.Prepare(id, 1<<20))
	noError(t, os.WriteFile(filepath.Join(f.Dir(id), vmm.SavedDevices), []byte("registers"), 0o600))
	noError(t, vmm.Saved{Format: vmm.SavedFormat, Driver: "fake", MemMiB: 16}.Write(f.Dir(id)))
}

func sealedOf(t testing.TB, f *Files, g guest) snapshot.Sums {
	t.Helper()
	prepared(t, f)
	noError(t, f.Capture(t.Context(), id, g.parts()))
	sums, size, err := f.Seal(t.Context(), described())
	noError(t, err)
	// A disk that shares blocks includes those of zeros.
	if size < 8*4096 || size > 2<<20 {
		t.Errorf("it takes %d bytes for 32 KiB of content", size)
	}
	return sums
}

// described is the snapshot as its row has it before it is durable.
func described() snapshot.Snapshot {
	return snapshot.Snapshot{
		ID: id, OwnerID: "acc_a", VMID: "vm_a", Kind: snapshot.Manual, CreatedAt: time.Unix(1700000000, 123000).UTC(),
		VM: snapshot.Origin{InstanceID: "vm_a", Spec: machine.Spec{Hostname: "web", MemMiB: 16, UserData: "a secret"}}, SealedUserData: []byte("sealed"),
	}
}

func holds(t testing.TB, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s differs: %d bytes, %v", filepath.Base(path), len(got), err)
	}
}

func names(t testing.TB, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	noError(t, err)
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestASnapshotIsWhatTheGuestWas(t *testing.T) {
	f, g := newFiles(t), newGuest(t)
	sums := sealedOf(t, f, g)
	for _, sum := range []string{sums.Devices, sums.Memory, sums.Disk} {
		if !strings.HasPrefix(sum, "sha256:") || len(sum) != len("sha256:")+64 {
			t.Errorf("a sum is %q", sum)
		}
	}
	holds(t, filepath.Join(f.Dir(id), memoryName), g.inMemory)
	holds(t, filepath.Join(f.Dir(id), diskName), g.onDisk)
	noError(t, f.Verify(t.Context(), id, sums))

	to := filepath.Join(t.TempDir(), "disk.img")
	noError(t, f.CopyDisk(t.Context(), id, to))
	holds(t, to, g.onDisk)
	st, err := os.Stat(to)
	noError(t, err)
	if !st.ModTime().Equal(g.diskChanged) || st.Mode().Perm() != 0o600 {
		t.Errorf("the copy is of %v, mode %v; want %v", st.ModTime(), st.Mode(), g.diskChanged)
	}
	noError(t, f.Verify(t.Context(), id, sums))
}

func readManifest(t *testing.T, f *Files) snapshot.Manifest {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(f.Dir(id), manifestName))
	noError(t, err)
	m, err := snapshot.ParseManifest(text)
	noError(t, err)
	return m
}

func TestASealedSnapshotDescribesItself(t *testing.T) {
	f := newFiles(t)
	sums := sealedOf(t, f, newGuest(t))
	m := readManifest(t, f)
	if m.ID != id || m.VM.Hostname != "web" || string(m.UserData) != "sealed" || sumsOf(m.Parts) != sums {
		t.Errorf("got %+v", m)
	}
	sizes := map[string]int64{}
	for _, p := range m.Parts {
		st, err := os.Stat(filepath.Join(f.Dir(id), p.Name))
		noError(t, err)
		if st.Size() != p.Size {
			t.Errorf("%s has %d bytes, and the manifest says %d", p.Name, st.Size(), p.Size)
		}
		sizes[p.Name] = p.Size
	}
	if len(sizes) != 6 || sizes[memoryName] != 16<<20 || sizes[diskName] != 8<<20 {
		t.Errorf("the parts are %v", sizes)
	}
	if st, err := os.Stat(filepath.Join(f.Dir(id), manifestName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v", st.Mode(), err)
	}
}

// TestDescribeWritesAMissingManifest is for snapshots of an earlier hatchd.
func TestDescribeWritesAMissingManifest(t *testing.T) {
	f, snap := newFiles(t), described()
	snap.Sums, snap.Durable = sealedOf(t, f, newGuest(t)), true
	path := filepath.Join(f.Dir(id), manifestName)
	want, err := os.ReadFile(path)
	noError(t, err)
	for what, damage := range map[string]func() error{
		"complete": func() error { return nil },
		"missing":  func() error { return os.Remove(path) },
		"damaged":  func() error { return os.WriteFile(path, want[:len(want)/2], 0o600) },
		"of another row": func() error {
			return os.WriteFile(path, bytes.Replace(want, []byte(`"web"`), []byte(`"db"`), 1), 0o600)
		},
	} {
		noError(t, damage())
		noError(t, f.Verify(t.Context(), id, snap.Sums))
		noError(t, f.Describe(snap))
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the manifest is %s, %v", what, got, err)
		}
	}
	noError(t, os.Remove(path))
	noError(t, os.WriteFile(filepath.Join(f.Dir(id), vmm.SavedDevices), []byte("other"), 0o600))
	refuses(t, "Describe", f.Describe(snap), "the state of its devices is damaged")
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a damaged snapshot got a manifest: %v", err)
	}
}

func TestBaseCannotBeChanged(t *testing.T) {
	f, g := newFiles(t), newGuest(t)
	sealedOf(t, f, g)
	base, err := f.Base(t.Context(), id)
	noError(t, err)
	defer func() { noError(t, base.Close()) }()
	isSealed(t, base, g)
}

// isSealed tries what another process could do with a base.
func isSealed(t *testing.T, base *os.File, g guest) {
	t.Helper()
	path := "/proc/self/fd/" + strconv.Itoa(int(base.Fd()))
	holds(t, path, g.inMemory)
	if link, err := os.Readlink(path); err != nil || link != "/memfd:"+vmm.BaseName+" (deleted)" {
		t.Errorf("it is called %q, %v", link, err)
	}
	var st unix.Stat_t
	noError(t, unix.Fstat(int(base.Fd()), &st))
	if st.Mode&0o777 != 0o777 || st.Blocks*512 > 1<<20 {
		t.Errorf("its mode is %o, and it takes %d bytes", st.Mode&0o777, st.Blocks*512)
	}
	again, err := os.OpenFile(path, os.O_RDWR, 0)
	noError(t, err)
	defer func() { noError(t, again.Close()) }()
	for _, file := range []*os.File{base, again} {
		fd := int(file.Fd())
		if _, err := file.WriteAt([]byte{1}, 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("write: %v", err)
		}
		if _, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EPERM) {
			t.Errorf("mmap, shared: %v", err)
		}
		for _, size := range []int64{0, int64(len(g.inMemory)) + 1} {
			if err := file.Truncate(size); !errors.Is(err, unix.EPERM) {
				t.Errorf("truncate to %d: %v", size, err)
			}
		}
		if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096); !errors.Is(err, unix.EPERM) {
			t.Errorf("punch a hole: %v", err)
		}
		if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); !errors.Is(err, unix.EPERM) {
			t.Errorf("another seal: %v", err)
		}
	}
	own, err := unix.Mmap(int(again.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	noError(t, err)
	own[0] ^= 1
	noError(t, unix.Munmap(own))
	holds(t, path, g.inMemory)
}

func TestTheMemoryOfAnEphemeralSnapshotIsInRAM(t *testing.T) {
	f, g := newFiles(t), newGuest(t)
	prepared(t, f)
	noError(t, f.CaptureEphemeral(t.Context(), id, g.parts()))
	if _, err := os.Stat(filepath.Join(f.Dir(id), memoryName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its memory is on disk: %v", err)
	}
	first, err := f.Base(t.Context(), id)
	noError(t, err)
	noError(t, first.Close()) // f has its own handle
	second, err := f.Base(t.Context(), id)
	noError(t, err)
	to := filepath.Join(t.TempDir(), "disk.img")
	noError(t, f.CopyDisk(t.Context(), id, to))
	holds(t, to, g.onDisk)
	noError(t, f.Remove(id))
	isSealed(t, second, g) // an open handle stays valid
	noError(t, second.Close())
	if _, err := f.Base(t.Context(), id); !errs.HasCode(err, "snapshot_unusable") {
		t.Errorf("the memory of a removed snapshot: %v", err)
	}
}

func TestMemoryStaysLoadedWhileItHasUsers(t *testing.T) {
	f := newFiles(t)
	sealedOf(t, f, newGuest(t))
	counts := func(want ...int64) {
		t.Helper()
		var got []int64
		for _, shared := range f.Bases() {
			got = append(got, shared.Bytes)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v bytes are loaded, want %v", got, want)
		}
	}
	base := func() (inode uint64, size int64) {
		t.Helper()
		file, err := f.Base(t.Context(), id)
		noError(t, err)
		shared, err := vmm.SharedOf(file)
		noError(t, errors.Join(err, file.Close()))
		return shared.Inode, shared.Bytes
	}
	base()
	counts()
	first, second := f.PinMemory(id, 7), f.PinMemory(id, 5)
	counts(7)
	inode, size := base()
	if again, _ := base(); again != inode {
		t.Error("it was read twice")
	}
	counts(size)
	first()
	first() // again, which changes nothing
	counts(size)
	second()
	counts()

	release := f.PinMemory(id, 7)
	base()
	noError(t, f.Remove(id))
	counts()
	release()
}

func TestLinkMemorySharesItsBlocks(t *testing.T) {
	f, g := newFiles(t), newGuest(t)
	sums := sealedOf(t, f, g)
	dir := filepath.Join(filepath.Dir(f.root), "vm", "sleep")
	noError(t, os.MkdirAll(dir, 0o700))
	noError(t, f.LinkMemory(id, dir))
	for _, name := range []string{memoryName, memoryIndex} {
		var here, there unix.Stat_t
		noError(t, errors.Join(unix.Stat(filepath.Join(dir, name), &here), unix.Stat(filepath.Join(f.Dir(id), name), &there)))
		if here.Ino != there.Ino || here.Nlink != 2 {
			t.Errorf("%s is another file: %d and %d, %d links", name, here.Ino, there.Ino, here.Nlink)
		}
	}
	if err := f.LinkMemory(id, dir); !errors.Is(err, os.ErrExist) {
		t.Errorf("over existing files: %v", err)
	}
	holds(t, filepath.Join(dir, memoryName), g.inMemory)
	noError(t, os.RemoveAll(dir))
	noError(t, f.Verify(t.Context(), id, sums))
}

func TestMemoryIsCopiedToAnotherFileSystem(t *testing.T) {
	f, g := newFiles(t), newGuest(t)
	sealedOf(t, f, g)
	dir := t.TempDir()
	noError(t, f.copyMemory(id, dir))
	holds(t, filepath.Join(dir, memoryName), g.inMemory)
	x, err := memory.ReadIndex(filepath.Join(dir, memoryIndex))
	if err != nil || x.Size != int64(len(g.inMemory)) {
		t.Errorf("its checksums: %v, %v", x, err)
	}
}

func TestDamageIsFound(t *testing.T) {
	flip := func(name string, at int64) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			file, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
			noError(t, err)
			var b [1]byte
			_, err = file.ReadAt(b[:], at)
			noError(t, err)
			_, err = file.WriteAt([]byte{b[0] ^ 4}, at)
			noError(t, errors.Join(err, file.Close()))
		}
	}
	cut := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			st, err := os.Stat(filepath.Join(dir, name))
			noError(t, err)
			noError(t, os.Truncate(filepath.Join(dir, name), st.Size()-1))
		}
	}
	drop := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { noError(t, os.Remove(filepath.Join(dir, name))) }
	}
	type use string
	const base, copying, linking use = "Base", "CopyDisk", "LinkMemory"
	for name, c := range map[string]struct {
		damage func(t *testing.T, dir string)
		want   string
		by     []use // other calls beside Verify that notice it
	}{
		"memory flipped":           {flip(memoryName, 100), "its memory is damaged", []use{base}},
		"memory flipped in a hole": {flip(memoryName, 2*sparse.ChunkSize), "its memory is damaged", []use{base}},
		"memory flipped in zeros":  {flip(memoryName, 6*sparse.ChunkSize+1), "its memory is damaged", []use{base}},
		"memory cut":               {cut(memoryName), "its memory has 16777215 bytes and had 16777216", []use{base}},
		"memory gone":              {drop(memoryName), "its memory is missing", []use{base, linking}},
		"memory sums flipped":      {flip(memoryIndex, 70), "the checksums of its memory are damaged", nil},
		"memory sums cut":          {cut(memoryIndex), "the checksums of its memory are damaged", []use{base}},
		"memory sums gone":         {drop(memoryIndex), "the checksums of its memory are missing", []use{base, linking}},
		"disk flipped":             {flip(diskName, 8<<20-1), "its disk is damaged", []use{copying}},
		"disk flipped in a hole":   {flip(diskName, 4<<20), "its disk is damaged", []use{copying}},
		"disk cut":                 {cut(diskName), "its disk has 8388607 bytes and had 8388608", []use{copying}},
		"disk gone":                {drop(diskName), "its disk is missing", []use{copying}},
		"disk sums flipped":        {flip(diskIndex, 70), "the checksums of its disk are damaged", nil},
		"disk sums cut":            {cut(diskIndex), "the checksums of its disk are damaged", []use{copying}},
		"disk sums gone":           {drop(diskIndex), "the checksums of its disk are missing", []use{copying}},
		"devices flipped":          {flip(vmm.SavedDevices, 0), "the state of its devices is damaged", nil},
		"devices cut":              {cut(vmm.SavedDevices), "the state of its devices is damaged", nil},
		"devices gone":             {drop(vmm.SavedDevices), "the state of its devices is missing", nil},
		"manifest flipped":         {flip(vmm.SavedManifest, 5), "its manifest is damaged", nil},
		"manifest gone":            {drop(vmm.SavedManifest), "its manifest is missing", nil},
		"all gone":                 {func(t *testing.T, dir string) { noError(t, os.RemoveAll(dir)) }, "its manifest is missing", nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			sums := sealedOf(t, f, newGuest(t))
			c.damage(t, f.Dir(id))
			to := t.TempDir()
			uses := map[use]func() error{
				base:    func() error { _, err := f.Base(t.Context(), id); return err },
				copying: func() error { return copyPlainly(t.Context(), f, filepath.Join(to, diskName)) },
				linking: func() error { return f.LinkMemory(id, to) },
			}
			refuses(t, "Verify", f.Verify(t.Context(), id, sums), c.want)
			for _, by := range c.by {
				refuses(t, string(by), uses[by](), c.want)
				if left := names(t, to); len(left) > 0 {
					t.Errorf("%s has left %v", by, left)
				}
			}
		})
	}
}

// copyPlainly is CopyDisk without shared blocks.
func copyPlainly(ctx context.Context, f *Files, to string) error {
	dst, err := sparse.Create(to, 8<<20)
	if err != nil {
		return err
	}
	err = f.copyDiskChecked(ctx, dst, id)
	return refused(id, errors.Join(err, dst.Close(), os.Remove(to)))
}

func refuses(t *testing.T, who string, err error, want string) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Conflict || e.Code != "snapshot_unusable" ||
		e.Message != "snapshot "+id+" cannot be used: "+want || e.Hint == "" {
		t.Errorf("%s: got %v; want %q", who, err, want)
	}
}

func captures(f *Files) map[string]func(context.Context, string, snapshot.Parts) error {
	return map[string]func(context.Context, string, snapshot.Parts) error{"Capture": f.Capture, "CaptureEphemeral": f.CaptureEphemeral}
}

func TestMemoryIsComparedWithItsChecksums(t *testing.T) {
	f, g := newFiles(t), newGuest(t)
	from := g.parts()
	from.Index = filepath.Join(t.TempDir(), "memory.json")
	noError(t, sum(t.Context(), memory, g.memory, from.Index))
	prepared(t, f)
	noError(t, f.Capture(t.Context(), id, from))
	holds(t, filepath.Join(f.Dir(id), memoryName), g.inMemory)
	for what, damage := range map[string]func(){
		"no checksums": func() { from.Index += ".gone" },
		"a flipped bit": func() {
			damaged := slices.Clone(g.inMemory)
			damaged[len(damaged)-1] ^= 1
			noError(t, os.WriteFile(g.memory, damaged, 0o600))
		},
	} {
		damage()
		for name, capture := range captures(f) {
			noError(t, f.Remove(id))
			prepared(t, f)
			if err := capture(t.Context(), id, from); !errs.HasCode(err, "saved_unusable") {
				t.Errorf("%s: %s: %v", name, what, err)
			}
			if left := names(t, f.Dir(id)); !slices.Equal(left, []string{vmm.SavedDevices, vmm.SavedManifest}) || len(f.Bases()) > 0 {
				t.Errorf("%s: %s: left %v", name, what, left)
			}
		}
		from.Index = strings.TrimSuffix(from.Index, ".gone")
	}
}

func TestACaptureThatIsCutShortLeavesNothing(t *testing.T) {
	f, g := newFiles(t), newGuest(t)
	prepared(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, capture := range captures(f) {
		if err := capture(ctx, id, g.parts()); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		if left := names(t, f.Dir(id)); !slices.Equal(left, []string{vmm.SavedDevices, vmm.SavedManifest}) {
			t.Errorf("%s has left %v", name, left)
		}
	}
	if len(f.Bases()) > 0 {
		t.Error("memory is left in RAM")
	}
	noError(t, f.Capture(t.Context(), id, g.parts()))
}

// TestPresentFindsWhatIsGone reads no file, but finds each that is missing or empty.
func TestPresentFindsWhatIsGone(t *testing.T) {
	for _, name := range sealed {
		for how, spoil := range map[string]func(path string) error{
			"missing": os.Remove,
			"damaged": func(path string) error { return os.Truncate(path, 0) },
		} {
			f := newFiles(t)
			sealedOf(t, f, newGuest(t))
			noError(t, f.Present(id))
			noError(t, spoil(f.path(id, name)))
			err := f.Present(id)
			if !errs.HasCode(err, "snapshot_unusable") || !strings.Contains(err.Error(), called[name].name) || !strings.Contains(err.Error(), how) {
				t.Errorf("%s is %s: got %v", name, how, err)
			}
		}
	}
	f := newFiles(t)
	if err := f.Present(id); !errs.HasCode(err, "snapshot_unusable") {
		t.Errorf("without a directory: got %v", err)
	}
}

func TestCopyDiskOverwritesNothing(t *testing.T) {
	f, g := newFiles(t), newGuest(t)
	sealedOf(t, f, g)
	to := filepath.Join(t.TempDir(), "disk.img")
	noError(t, os.WriteFile(to, []byte("precious"), 0o600))
	if err := f.CopyDisk(t.Context(), id, to); !errors.Is(err, os.ErrExist) {
		t.Errorf("got %v", err)
	}
	holds(t, to, []byte("precious"))
}

func TestASnapshotNeedsSpaceOnDisk(t *testing.T) {
	f := newFiles(t)
	f.reserve = 1 << 60
	if err := f.Prepare(id, 1); !errs.Is(err, errs.Exhausted) || !errs.HasCode(err, "disk_full") || errs.Missing(err) < 1<<59 {
		t.Errorf("got %v", err)
	}
	src, err := os.Open(newGuest(t).disk)
	noError(t, err)
	defer func() { noError(t, src.Close()) }()
	if err := f.requireSpaceFor(src); !errs.HasCode(err, "disk_full") {
		t.Errorf("for a copy of a disk: %v", err)
	}
	f.reserve = 0
	noError(t, f.requireSpaceFor(src))
	if err := f.Prepare(id, 1<<60); !errs.HasCode(err, "disk_full") {
		t.Errorf("got %v", err)
	}
	if left := names(t, f.root); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	noError(t, f.Prepare(id, 1))
}

func TestOnlySnapshotsAreListedAndRemoved(t *testing.T) {
	f := newFiles(t)
	for _, name := range []string{id, "snap_b2", "snap_", "snap_B", "snap_c" + gone + "1", "vm_a", "snap_..", ".hidden"} {
		noError(t, os.Mkdir(filepath.Join(f.root, name), 0o700))
	}
	noError(t, os.WriteFile(filepath.Join(f.root, "snap_file"), nil, 0o600))
	ids, err := f.List()
	if err != nil || !slices.Equal(ids, []string{id, "snap_b2"}) {
		t.Errorf("listed %v, %v", ids, err)
	}
	for _, name := range []string{"", ".", "..", "../snapshots", "snap_", "snap_/../..", "vm_a"} {
		if err := f.Remove(name); err == nil {
			t.Errorf("removed %q", name)
		}
		if err := f.Prepare(name, 0); err == nil {
			t.Errorf("prepared %q", name)
		}
	}
	for range 2 {
		noError(t, f.Remove(id))
	}
	noError(t, f.Close())
	if left := names(t, f.root); !slices.Equal(left, []string{".hidden", "snap_", "snap_..", "snap_B", "snap_b2", "snap_file", "vm_a"}) {
		t.Errorf("left %v", left)
	}
}

func TestOpenDeletesWhatAnEarlierDaemonWasRemoving(t *testing.T) {
	root := t.TempDir()
	half := filepath.Join(root, id+gone+"17")
	noError(t, os.Mkdir(half, 0o700))
	noError(t, os.WriteFile(filepath.Join(half, memoryName), []byte("x"), 0o600))
	f, err := Open(root, 0)
	noError(t, err)
	noError(t, f.Close())
	if left := names(t, root); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
