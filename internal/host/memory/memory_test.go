//go:build linux

package memory

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/vmm"
)

const id = "vm_a"

// newKeeper returns a keeper with an ordinary directory in place of RAM.
func newKeeper(t *testing.T) *Keeper {
	t.Helper()
	disk := t.TempDir()
	if err := os.Mkdir(filepath.Join(disk, id), 0o700); err != nil {
		t.Fatal(err)
	}
	k := &Keeper{ram: t.TempDir(), vmDir: func(id string) string { return filepath.Join(disk, id) }}
	t.Cleanup(k.removing.Wait)
	return k
}

// asleep makes and saves a memory of mib with a few pages of data.
func asleep(t *testing.T, k *Keeper, mib int) (content []byte) {
	t.Helper()
	if err := k.Make(id, mib, 0); err != nil {
		t.Fatal(err)
	}
	content = make([]byte, mib<<20)
	random := rand.NewChaCha8([32]byte{1})
	f, err := os.OpenFile(k.Path(id), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	// A few pages here and there: the first, the last, some across two chunks,
	// and one that was written with zeros.
	for _, at := range []int{0, 3*sparse.ChunkSize - sparse.PageSize, 3 * sparse.ChunkSize, 5*sparse.ChunkSize + 3*sparse.PageSize, len(content) - sparse.PageSize} {
		_, _ = random.Read(content[at : at+sparse.PageSize])
		if _, err := f.WriteAt(content[at:at+sparse.PageSize], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(make([]byte, 2*sparse.ChunkSize), 6*sparse.ChunkSize); err != nil {
		t.Fatal(err)
	}
	if err := k.Prepare(id, 4096); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{vmm.SavedDevices, vmm.SavedManifest} {
		if err := os.WriteFile(filepath.Join(k.Dir(id), name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return content
}

func TestMemoryComesBackFromDisk(t *testing.T) {
	k := newKeeper(t)
	content := asleep(t, k, 16)
	if !k.Has(id, false) || k.Has(id, true) {
		t.Error("before it is durable it is not in RAM only")
	}
	size, err := k.Persist(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if most := int64(1 << 20); size > most {
		t.Errorf("%d bytes on disk for 20 KiB of content, more than %d", size, most)
	}
	if err := k.Release(id); err != nil {
		t.Fatal(err)
	}
	if k.Has(id, false) || !k.Has(id, true) {
		t.Error("once it is durable it is not on disk only")
	}
	for range 2 { // a second wake from the same copy
		if err := k.Recall(t.Context(), id, true, 0); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(k.Path(id)); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("another memory came back: %d bytes, %v", len(got), err)
		}
		var st unix.Stat_t
		if err := unix.Stat(k.Path(id), &st); err != nil || st.Blocks*512 > 1<<20 {
			t.Errorf("it uses %d bytes of RAM, %v", st.Blocks*512, err)
		}
	}
}

func TestMemoryInRAMIsUsedUnchanged(t *testing.T) {
	k := newKeeper(t)
	content := asleep(t, k, 16)
	if err := k.Recall(t.Context(), id, false, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(k.Path(id)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("it has changed: %v", err)
	}
	if err := k.Release(id); err != nil {
		t.Fatal(err)
	}
	if err := k.Recall(t.Context(), id, false, 0); !errs.HasCode(err, "saved_unusable") {
		t.Errorf("without memory: %v", err)
	}
}

func TestDamagedMemoryIsRefused(t *testing.T) {
	change := func(name string, f func([]byte) []byte) func(t *testing.T, k *Keeper) {
		return func(t *testing.T, k *Keeper) {
			path := filepath.Join(k.Dir(id), name)
			text, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, f(text), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 0x10; return b }
	}
	for name, damage := range map[string]func(*testing.T, *Keeper){
		"a flipped bit":               change(memoryName, flip(100)),
		"a flipped bit among zeros":   change(memoryName, flip(10*sparse.ChunkSize)),
		"a flipped bit in the last":   change(memoryName, flip(16*sparse.ChunkSize-1)),
		"truncated":                   change(memoryName, func(b []byte) []byte { return b[:len(b)-1] }),
		"a page of zeros":             change(memoryName, func(b []byte) []byte { clear(b[:sparse.PageSize]); return b }),
		"longer":                      change(memoryName, func(b []byte) []byte { return append(b, 0) }),
		"another checksum":            change(indexName, func(b []byte) []byte { return bytes.Replace(b, []byte(`[`), []byte(`[1`), 1) }),
		"truncated checksums":         change(indexName, func(b []byte) []byte { return b[:len(b)/2] }),
		"checksums of another format": change(indexName, func(b []byte) []byte { return bytes.Replace(b, []byte(`"format":1`), []byte(`"format":2`), 1) }),
		"a checksum less":             change(indexName, func(b []byte) []byte { return bytes.Replace(b, []byte(`,-1]`), []byte(`]`), 1) }),
		"no checksums":                func(t *testing.T, k *Keeper) { remove(t, filepath.Join(k.Dir(id), indexName)) },
		"no memory":                   func(t *testing.T, k *Keeper) { remove(t, filepath.Join(k.Dir(id), memoryName)) },
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper(t)
			asleep(t, k, 16)
			if _, err := k.Persist(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			damage(t, k)
			if name == "a checksum less" { // the last chunk has data
				change(indexName, func(b []byte) []byte { return append(b[:bytes.LastIndexByte(b, ',')], "]}"...) })(t, k)
			}
			if err := k.Recall(t.Context(), id, true, 0); !errs.HasCode(err, "saved_unusable") {
				t.Errorf("got %v", err)
			}
			if held, err := os.ReadDir(k.ram); err != nil || len(held) > 0 {
				t.Errorf("left in RAM: %v, %v", held, err)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestACopyThatIsCutShortLeavesNothing(t *testing.T) {
	k := newKeeper(t)
	asleep(t, k, 16)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Persist(ctx, id); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	entries, err := os.ReadDir(k.Dir(id))
	if err != nil || len(entries) != 2 {
		t.Errorf("left %v, %v; want the two files of the machine", entries, err)
	}
	if _, err := k.Persist(t.Context(), id); err != nil {
		t.Errorf("the next one: %v", err)
	}
	if err := k.Recall(ctx, id, true, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestASleepNeedsSpaceOnDisk(t *testing.T) {
	k := newKeeper(t)
	k.reserve = 1 << 60
	if err := k.Make(id, 16, 0); err != nil {
		t.Fatal(err)
	}
	if err := k.Prepare(id, 4096); !errs.HasCode(err, "disk_full") || !errs.Is(err, errs.Exhausted) || errs.Missing(err) < 1<<59 {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(k.Dir(id)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left the directory: %v", err)
	}
	k.reserve = 0
	if err := k.Prepare(id, 4096); err != nil {
		t.Error(err)
	}
	if err := k.Prepare(id, 1<<60); !errs.HasCode(err, "disk_full") {
		t.Errorf("for more than the disk has: %v", err)
	}
}

func TestASaveNeedsSpaceInRAM(t *testing.T) {
	k := newKeeper(t)
	if err := k.CanHold(id, 4096); !errs.Is(err, errs.Unsupported) {
		t.Errorf("a VM without a file in RAM: %v", err)
	}
	asleep(t, k, 16)
	for size, fits := range map[int64]bool{0: true, 16 << 20: true, 1 << 60: false} {
		if err := k.CanHold(id, size); (err == nil) != fits || (!fits && !errs.HasCode(err, "memory_exhausted")) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestForgetRemoves(t *testing.T) {
	k := newKeeper(t)
	asleep(t, k, 16)
	for range 2 { // once beside a saved machine, once alone
		if err := os.Mkdir(k.Dir(id)+gone+"1", 0o700); err != nil { // of a daemon that was killed
			t.Fatal(err)
		}
		if err := k.Forget(id); err != nil {
			t.Fatal(err)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(k.vmDir(id)); err != nil || len(left) > 0 {
			t.Errorf("left %v, %v", left, err)
		}
	}
}

func TestHeldListsCompleteFiles(t *testing.T) {
	k := newKeeper(t)
	if err := k.Make(id, 1, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.ram, "vm_b"+fresh), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if held, err := k.Held(); err != nil || strings.Join(held, " ") != id {
		t.Errorf("held: %v, %v", held, err)
	}
	for _, of := range []string{id, "vm_b"} {
		if err := k.Release(of); err != nil {
			t.Fatal(err)
		}
	}
	if held, err := os.ReadDir(k.ram); err != nil || len(held) > 0 {
		t.Errorf("left: %v, %v", held, err)
	}
}

func BenchmarkRecall(b *testing.B) {
	k := &Keeper{ram: b.TempDir(), vmDir: func(string) string { return "" }}
	disk := b.TempDir()
	k.vmDir = func(string) string { return disk }
	const size = 64 << 20
	text := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(text)
	if err := os.WriteFile(k.Path(id), text, 0o600); err != nil {
		b.Fatal(err)
	}
	if err := k.Prepare(id, 4096); err != nil {
		b.Fatal(err)
	}
	if _, err := k.Persist(b.Context(), id); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		if err := k.Recall(b.Context(), id, true, 0); err != nil {
			b.Fatal(err)
		}
	}
}
