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
	{"a guest from a base is saved also by a daemon that adopted it", testSaveAdoptedFromABase},
	{"a guest from a base may go on after a save, and is saved whole again", testGoOnFromABase},
	{"a save of a guest from a base that fails lets it go on", testFailedSaveFromABase},
}

// base is a saved guest whose memory is kept in a file that nobody can change.
type base struct {
	spec   vmm.Spec
	dir    string // what was saved beside the memory
	last   string // the guest's last line
	memory *os.File
	sum    [sha256.Size]byte
}

// makeBase saves a ticking guest that keeps "parent" in its memory.
func makeBase(t *testing.T, h Harness) base {
	t.Helper()
	_, m := boot(t, h)
	m.keep(h, "parent")
	m.console.Say("tick")
	m.console.Expect("tick 3")
	b := base{spec: m.spec, last: rest(t, m)}
	m.isLetGo = true
	b.dir = save(t, m, m.spec)
	b.memory = sealedCopy(t, m.spec.Memory)
	b.sum = sumOf(t, b.memory)
	t.Logf("the base has %d MiB, of which %s are filled", m.spec.MemMiB, filled(t, b.memory))
	return b
}

// fork wakes a machine with disks and a memory file of its own from the base,
// and lets it go on.
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
	requireGoesOn(t, m, b.last)
	m.requireKept("parent")
	return m
}

func (b base) requireUnchanged(t *testing.T) {
	t.Helper()
	if sumOf(t, b.memory) != b.sum {
		t.Error("the base has changed")
	}
	t.Logf("of the base %s are filled now", filled(t, b.memory))
}

func (m *started) keep(h Harness, word string) {
	m.console.Say(fmt.Sprint("keep ", word, " ", h.KeepMiB))
	m.console.Expect("keep: ok")
}

func (m *started) requireKept(words ...string) {
	m.console.t.Helper()
	m.console.Say("kept")
	if got := strings.Fields(m.console.Expect("kept:")); strings.Join(got, " ") != strings.Join(words, " ") {
		m.console.t.Errorf("the guest has %q in its memory, want %q", got, words)
	}
}

// saveAndWake saves the machine, ends it, and wakes it from its own memory.
func saveAndWake(t *testing.T, h Harness, m *started) *started {
	t.Helper()
	last := rest(t, m)
	m.isLetGo = true
	dir := save(t, m, m.spec)
	requireNothingLeft(t, h, m.spec)
	spec := m.spec
	spec.Base = nil
	t.Logf("its memory file has %s", filled(t, openFile(t, spec.Memory)))
	woken := wake(t, h, spec, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	requireGoesOn(t, woken, last)
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
	if h.Look != nil {
		var handles []vmm.Handle
		for _, m := range forks {
			handles = append(handles, m.Handle())
		}
		h.Look(t, handles)
	}
	b.requireUnchanged(t)
}

func testSaveFromABase(t *testing.T, h Harness) {
	b := makeBase(t, h)
	m := b.fork(t, h)
	m.keep(h, "one")
	if shares(t, h) {
		fillWithRubbish(t, m.spec.Memory)
	}
	m = saveAndWake(t, h, m)
	m.requireKept("parent", "one")
	m.keep(h, "two")
	m = saveAndWake(t, h, m)
	m.requireKept("parent", "one", "two")
	b.requireUnchanged(t)
	b.fork(t, h) // and it is still good
}

func testSaveAdoptedFromABase(t *testing.T, h Harness) {
	b := makeBase(t, h)
	m := b.fork(t, h)
	m.keep(h, "one")
	m.letGo(t)
	next := adoptStarted(t, h, m)
	next.console.Expect("tick ")
	saveAndWake(t, h, next).requireKept("parent", "one")
}

func testGoOnFromABase(t *testing.T, h Harness) {
	b := makeBase(t, h)
	m := b.fork(t, h)
	m.keep(h, "one")
	last := rest(t, m)
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
	requireGoesOn(t, m, last)
	m.requireKept("parent", "one")
	m.keep(h, "two")
	m.letGo(t)
	m = adoptStarted(t, h, m)
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

// adoptStarted lets the next daemon take over a machine that was let go.
func adoptStarted(t *testing.T, h Harness, m *started) *started {
	t.Helper()
	next, err := h.Driver(t).Adopt(t.Context(), m.Handle())
	if err != nil {
		t.Fatalf("cannot adopt: %v", err)
	}
	spec := m.spec
	spec.Base = nil // a later daemon has none
	s := &started{Machine: next, spec: spec}
	t.Cleanup(func() {
		if !s.isLetGo {
			end(t, h, next, spec)
		}
	})
	s.console = DialConsole(t, next)
	return s
}

// newMemfd returns a file in memory as a Spec.Base has to be, but for its seals.
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

// sealedCopy makes a Spec.Base of a memory file.
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

// copyData copies the pages that hold something.
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

// copyContent makes a file hold what another holds, and leaves its owner and
// its mode.
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

// filled tells how much of a file is no hole.
func filled(t *testing.T, f *os.File) string {
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
		t.Errorf("the memory file has %d blocks, and should be all hole", got)
	}
}

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

// fillWithRubbish writes where the guest has something, and where it has nothing.
func fillWithRubbish(t *testing.T, path string) {
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
	rubbish := bytes.Repeat([]byte("rubbish!"), 1<<14)
	for at := int64(0); at < st.Size(); at += 8 << 20 {
		if _, err := f.WriteAt(rubbish, at); err != nil {
			t.Fatal(err)
		}
	}
}
