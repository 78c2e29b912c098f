package vmmtest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/vmm"
)

// baseTests are the conformance tests of guests that are woken from a base.
var baseTests = []conformance{
	{"many guests wake from one base", testManyFromABase},
	{"a guest from a base is saved, woken and saved again", testSaveFromABase},
	{"a guest from a base is saved by a daemon that adopted it", testSaveAdoptedFromABase},
	{"a guest from a base is resumed after a save, and saved completely again", testResumeFromABase},
	{"a guest from a base continues after a failed save", testFailedSaveFromABase},
}

// base is a saved guest whose memory is in an immutable file.
type base struct {
	spec   vmm.Spec
	dir    string // with the saved machine
	last   string // the guest's last line
	memory *os.File
	sum    [sha256.Size]byte
}

// makeBase saves a ticking guest that has the data of "parent" in its memory.
func makeBase(t *testing.T, h Harness) base {
	t.Helper()
	_, m := boot(t, h)
	m.keep(h, "parent")
	m.console.Say("tick")
	m.console.Expect("tick 3")
	b := base{spec: m.spec, last: pauseBetweenLines(t, m)}
	m.closed = true
	b.dir = save(t, m, m.spec)
	b.memory = sealedCopy(t, m.spec.Memory)
	b.sum = sumOf(t, b.memory)
	t.Logf("the base has %d MiB, of which %s are allocated", m.spec.MemMiB, allocated(t, b.memory))
	return b
}

// fork wakes a machine with its own disks and memory file from the base, and resumes
// it.
func (b base) fork(t *testing.T, h Harness) *started {
	t.Helper()
	spec := h.Spec(t)
	spec.Base = b.memory
	for i, d := range b.spec.Disks {
		copyContent(t, spec.Disks[i].Path, d.Path)
	}
	dir := savedDir(t, spec)
	if err := vmm.AdaptSaved(b.dir, dir, spec); err != nil {
		t.Fatal(err)
	}
	m := wake(t, h, spec, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if shares(t, h) {
		requireEmpty(t, spec.Memory)
	}
	requireContinues(t, m, b.last)
	m.requireKept("parent")
	return m
}

func (b base) requireUnchanged(t *testing.T) {
	t.Helper()
	if sumOf(t, b.memory) != b.sum {
		t.Error("the base has changed")
	}
	t.Logf("%s of the base are allocated", allocated(t, b.memory))
}

func (m *started) keep(h Harness, word string) {
	m.console.Say(fmt.Sprint("keep ", word, " ", h.KeepMiB))
	m.console.Expect("keep: ok")
}

func (m *started) requireKept(words ...string) {
	m.console.t.Helper()
	m.console.Say("kept")
	if got := strings.Fields(m.console.Expect("kept:")); strings.Join(got, " ") != strings.Join(words, " ") {
		m.console.t.Errorf("the guest has the data of %q in its memory, want %q", got, words)
	}
}

// saveAndWake saves the machine, ends it, and wakes it from its memory file.
func saveAndWake(t *testing.T, h Harness, m *started) *started {
	t.Helper()
	last := pauseBetweenLines(t, m)
	m.closed = true
	dir := save(t, m, m.spec)
	requireNothingLeft(t, h, m.spec)
	spec := m.spec
	spec.Base = nil
	t.Logf("%s of its memory file are allocated", allocated(t, openFile(t, spec.Memory)))
	woken := wake(t, h, spec, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	requireContinues(t, woken, last)
	return woken
}

// shares reports whether the driver's machines share their base.
func shares(t *testing.T, h Harness) bool {
	t.Helper()
	return h.Driver(t).Info().Capabilities.Base
}

func testManyFromABase(t *testing.T, h Harness) {
	b := makeBase(t, h)
	var forks []*started
	for range 4 {
		forks = append(forks, b.fork(t, h))
	}
	for i, m := range forks {
		m.keep(h, fmt.Sprint("fork", i))
	}
	for i, m := range forks {
		m.requireKept("parent", fmt.Sprint("fork", i))
		m.console.Expect("tick ")
		m.console.Say("echo here")
		m.console.Expect("echo: here")
	}
	if h.Inspect != nil {
		var handles []vmm.Handle
		for _, m := range forks {
			handles = append(handles, m.Handle())
		}
		h.Inspect(t, handles)
	}
	b.requireUnchanged(t)
}

func testSaveFromABase(t *testing.T, h Harness) {
	b := makeBase(t, h)
	m := b.fork(t, h)
	m.keep(h, "one")
	if shares(t, h) {
		fillWithGarbage(t, m.spec.Memory)
	}
	m = saveAndWake(t, h, m)
	m.requireKept("parent", "one")
	m.keep(h, "two")
	m = saveAndWake(t, h, m)
	m.requireKept("parent", "one", "two")
	b.requireUnchanged(t)
	b.fork(t, h) // the base can still be used
}

func testSaveAdoptedFromABase(t *testing.T, h Harness) {
	b := makeBase(t, h)
	m := b.fork(t, h)
	m.keep(h, "one")
	m.close(t)
	next := adoptWithConsole(t, h, m)
	next.console.Expect("tick ")
	saveAndWake(t, h, next).requireKept("parent", "one")
}

func testResumeFromABase(t *testing.T, h Harness) {
	b := makeBase(t, h)
	m := b.fork(t, h)
	m.keep(h, "one")
	last := pauseBetweenLines(t, m)
	dir := savedDir(t, m.spec)
	if err := m.Save(t.Context(), m.spec, dir); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if shares(t, h) {
		empty(t, m.spec.Memory)
	}
	requireContinues(t, m, last)
	m.requireKept("parent", "one")
	m.keep(h, "two")
	m.close(t)
	m = adoptWithConsole(t, h, m)
	m.keep(h, "three")
	saveAndWake(t, h, m).requireKept("parent", "one", "two", "three")
}

func testFailedSaveFromABase(t *testing.T, h Harness) {
	b := makeBase(t, h)
	m := b.fork(t, h)
	m.keep(h, "one")
	dir := savedDir(t, m.spec)
	broken := m.spec
	broken.Disks = append(broken.Disks, vmm.Disk{Serial: "missing", Path: filepath.Join(m.spec.Dir, "missing")})
	if err := m.Save(t.Context(), broken, dir); err == nil { // fails last, in the manifest
		t.Fatal("saved with a disk that is not there")
	}
	if shares(t, h) {
		broken = m.spec
		broken.Memory += ".gone"
		if err := m.Save(t.Context(), broken, dir); err == nil {
			t.Fatal("saved without a file for its memory")
		}
	}
	if left := contents(t, dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	m.console.Expect("tick ")
	m.requireKept("parent", "one")
	saveAndWake(t, h, m).requireKept("parent", "one")
}

// adoptWithConsole adopts a closed machine with another driver, and connects its
// console.
func adoptWithConsole(t *testing.T, h Harness, m *started) *started {
	t.Helper()
	next, err := h.Driver(t).Adopt(t.Context(), m.Handle())
	if err != nil {
		t.Fatalf("cannot adopt: %v", err)
	}
	spec := m.spec
	spec.Base = nil // a later daemon has none
	s := &started{Machine: next, spec: spec}
	t.Cleanup(func() {
		if !s.closed {
			end(t, h, next, spec)
		}
	})
	s.console = DialConsole(t, next)
	return s
}

// newMemfd returns a memfd that would be a valid Spec.Base if it were sealed.
func newMemfd(t *testing.T, size int64) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate(vmm.BaseName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), vmm.BaseName)
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// sealedCopy copies a memory file to a Spec.Base.
func sealedCopy(t *testing.T, path string) *os.File {
	t.Helper()
	from := openFile(t, path)
	st, err := from.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f := newMemfd(t, st.Size())
	copyData(t, f, from)
	const all = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, all); err != nil {
		t.Fatal(err)
	}
	return f
}

// copyData copies the pages that are not all zeros.
func copyData(t *testing.T, to, from *os.File) {
	t.Helper()
	const pageSize = 4096
	page, zeros := make([]byte, pageSize), make([]byte, pageSize)
	for next := int64(0); ; {
		at, err := unix.Seek(int(from.Fd()), next, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return
		}
		if err == nil {
			_, err = from.ReadAt(page, at)
		}
		if err == nil && !bytes.Equal(page, zeros) {
			_, err = to.WriteAt(page, at)
		}
		next = at + pageSize
		if err != nil {
			t.Fatal(err)
		}
	}
}

// copyContent copies the content of a file to an existing file, whose owner and mode
// stay.
func copyContent(t *testing.T, to, from string) {
	t.Helper()
	in := openFile(t, from)
	out, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err == nil {
		_, err = io.Copy(out, in)
		err = errors.Join(err, out.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func sumOf(t *testing.T, f *os.File) (sum [sha256.Size]byte) {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<40)); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// allocated returns, for the log, how much of a file is not a hole.
func allocated(t *testing.T, f *os.File) string {
	t.Helper()
	return fmt.Sprintf("%d KiB", blocks(t, f)/2)
}

func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

func requireEmpty(t *testing.T, path string) {
	t.Helper()
	if got := blocks(t, openFile(t, path)); got != 0 {
		t.Errorf("the memory file has %d allocated blocks, want none", got)
	}
}

// empty makes a hole of the whole file.
func empty(t *testing.T, path string) {
	t.Helper()
	st, err := os.Stat(path)
	if err == nil {
		err = errors.Join(os.Truncate(path, 0), os.Truncate(path, st.Size()))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fillWithGarbage writes where the guest has something, and where it has nothing.
func fillWithGarbage(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	garbage := bytes.Repeat([]byte("garbage!"), 1<<14)
	for at := int64(0); at < st.Size(); at += 8 << 20 {
		if _, err := f.WriteAt(garbage, at); err != nil {
			t.Fatal(err)
		}
	}
}
