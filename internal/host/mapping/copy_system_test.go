//go:build linux && system

package mapping

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const size = 8 << 20

// newFile makes a memfd with data in its first and fifth MiB and maps it privately
// into this process.
func newFile(t *testing.T, name string) (f *os.File, mapped []byte) {
	t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f = os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 4 << 20} {
		if _, err := f.WriteAt(bytes.Repeat([]byte("file"), 1<<18), at); err != nil {
			t.Fatal(err)
		}
	}
	mapped, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mapped) })
	return f, mapped
}

// change writes to data and to holes of the mapping, and clears a page.
func change(mapped []byte) {
	copy(mapped[4096*3+17:], "changed in what is filled")
	copy(mapped[2<<20:], "changed in a hole")
	copy(mapped[size-4096:], "changed at the end")
	clear(mapped[4<<20 : 4<<20+4096])
}

func newTarget(t *testing.T) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, bytes.Repeat([]byte("rubbish "), 3<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// requireCopied copies the mapping and checks that no holes of f were filled.
func requireCopied(t *testing.T, f *os.File, mapped []byte) Copied {
	t.Helper()
	m, err := Find(os.Getpid(), f.Name(), size)
	if err != nil {
		t.Fatal(err)
	}
	to, before := newTarget(t), blocks(t, f)
	copied, err := m.CopyTo(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	if after := blocks(t, f); after != before {
		t.Errorf("the file had %d blocks and has %d", before, after)
	}
	got, err := os.ReadFile(to.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, mapped) {
		t.Error("the copy differs from what the process sees")
	}
	return copied
}

func TestWhatAProcessSeesIsCopied(t *testing.T) {
	f, mapped := newFile(t, "hatch-test")
	change(mapped)
	copied := requireCopied(t, f, mapped)
	if want := (Copied{Changed: 4 * 4096, Written: 2<<20 + 4096}); copied != want {
		t.Errorf("copied %+v, want %+v", copied, want)
	}
}

func TestPartsAreCopied(t *testing.T) {
	f, mapped := newFile(t, "hatch-test")
	change(mapped)
	if err := unix.Madvise(mapped[size/4:size/2], unix.MADV_DONTDUMP); err != nil { // a part of its own
		t.Fatal(err)
	}
	m, err := Find(os.Getpid(), "hatch-test", size)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.parts) != 3 {
		t.Errorf("%d parts", len(m.parts))
	}
	requireCopied(t, f, mapped)
}

func TestNothingIsMapped(t *testing.T) {
	newFile(t, "hatch-other")
	if _, err := Find(os.Getpid(), "hatch-test", size); !errors.Is(err, ErrNone) {
		t.Errorf("the error is %v", err)
	}
	if _, err := Find(os.Getpid(), "hatch-other", size+4096); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("a file of another size: %v", err)
	}
}

func TestCopyingEndsWithItsContext(t *testing.T) {
	newFile(t, "hatch-test")
	m, err := Find(os.Getpid(), "hatch-test", size)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.CopyTo(ctx, newTarget(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}

func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

// BenchmarkCopy copies a file without holes, of which a fourth is changed.
func BenchmarkCopy(b *testing.B) {
	for _, mib := range []int{128, 1024} {
		b.Run(fmt.Sprint(mib, "MiB"), func(b *testing.B) { benchmarkCopy(b, mib<<20) })
	}
}

func benchmarkCopy(b *testing.B, size int) {
	fd, err := unix.MemfdCreate("hatch-bench", unix.MFD_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "base")
	defer func() { _ = f.Close() }()
	for at := 0; at < size; at += 1 << 20 {
		if _, err := f.WriteAt(bytes.Repeat([]byte("file"), 1<<18), int64(at)); err != nil {
			b.Fatal(err)
		}
	}
	mapped, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mapped) }()
	for at := 0; at < size; at += 4 * 4096 {
		mapped[at]++
	}
	to, err := os.CreateTemp("/dev/shm", "hatch")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = errors.Join(to.Close(), os.Remove(to.Name())) }()
	for b.Loop() {
		m, err := Find(os.Getpid(), "hatch-bench", int64(size))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := m.CopyTo(b.Context(), to); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed())/float64(time.Millisecond)/float64(b.N)/float64(size>>20)*100, "ms-per-100MiB")
}
