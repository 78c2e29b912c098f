//go:build linux

package backup_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/host/backup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// archive makes an archive of three files, one of them with holes.
func archive(t testing.TB, dir string) []byte {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, "small"), []byte("content"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600))
	disk, err := os.Create(filepath.Join(dir, "disk.img"))
	must(t, err)
	must(t, disk.Truncate(64<<20+5))
	for _, at := range []int64{3 << 20, 30<<20 + 7, 64 << 20} {
		_, err := disk.WriteAt([]byte("piece"), at)
		must(t, err)
	}
	must(t, disk.Close())
	must(t, os.Chtimes(filepath.Join(dir, "disk.img"), time.Time{}, time.Unix(1_700_000_000, 123_456_789)))
	var out bytes.Buffer
	w, err := backup.NewWriter(&out, backup.Head{Version: "v", DataDir: "/d"})
	must(t, err)
	must(t, w.Add(t.Context(), "small", filepath.Join(dir, "small")))
	must(t, w.Add(t.Context(), "empty", filepath.Join(dir, "empty")))
	must(t, w.Add(t.Context(), "vms/vm_a/disk.img", filepath.Join(dir, "disk.img")))
	mark := w.Mark()
	must(t, w.Add(t.Context(), "vms/vm_b/disk.img", filepath.Join(dir, "small")))
	w.Drop(mark)
	if err := w.Add(t.Context(), "gone", filepath.Join(dir, "gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a missing file: %v", err)
	}
	must(t, w.Close([]backup.LeftOut{{What: "vm_b", Why: "it ran"}}))
	return out.Bytes()
}

func accept(backup.Head) error { return nil }

func TestFilesAreRestoredAsTheyWere(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	packed := archive(t, from)
	if len(packed) > 16<<10 {
		t.Errorf("holes take space: %d bytes", len(packed))
	}
	c, err := backup.Extract(t.Context(), bytes.NewReader(packed), to, accept)
	must(t, err)
	if c.Head.DataDir != "/d" || len(c.Files) != 3 || len(c.LeftOut) != 1 || c.LeftOut[0].What != "vm_b" {
		t.Errorf("got %+v", c)
	}
	for name, original := range map[string]string{"small": "small", "empty": "empty", "vms/vm_a/disk.img": "disk.img"} {
		want, err := os.ReadFile(filepath.Join(from, original))
		must(t, err)
		got, err := os.ReadFile(filepath.Join(to, name))
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs", name)
		}
		st, err := os.Stat(filepath.Join(to, name))
		must(t, err)
		was, err := os.Stat(filepath.Join(from, original))
		must(t, err)
		if !st.ModTime().Equal(was.ModTime()) || st.Mode() != was.Mode() {
			t.Errorf("%s: %v %v, want %v %v", name, st.ModTime(), st.Mode(), was.ModTime(), was.Mode())
		}
	}
	if _, err := os.Stat(filepath.Join(to, "vms/vm_b/disk.img")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dropped file is restored: %v", err)
	}
}

func TestDamagedArchivesAreRefused(t *testing.T) {
	packed := archive(t, t.TempDir())
	for _, cut := range []int{0, 1, len(packed) / 2, len(packed) - 1} {
		if _, err := backup.Extract(t.Context(), bytes.NewReader(packed[:cut]), t.TempDir(), accept); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("the first %d bytes: %v", cut, err)
		}
	}
	for at := 0; at < len(packed); at += len(packed)/24 + 1 {
		changed := bytes.Clone(packed)
		changed[at] ^= 0x10
		if _, err := backup.Extract(t.Context(), bytes.NewReader(changed), t.TempDir(), accept); err == nil {
			if again, _ := decoder(t).DecodeAll(changed, nil); !bytes.Equal(again, unpack(t, packed)) { // else another way to write the same zeros
				t.Errorf("a change of byte %d is not seen", at)
			}
		}
	}
	plain := unpack(t, packed)
	for name, change := range map[string][2]string{
		"a file is another":      {"content", "CONTENT"},
		"a piece is elsewhere":   {"piece", "other"},
		"a manifest":             {`"name": "small"`, `"name": "smaLL"`},
		"a name out of the way":  {"data/small", "data/../xx"},
		"a name of another kind": {"data/empty", "dota/empty"},
		"a newer format":         {`"format": 1`, `"format": 2`},
	} {
		changed := bytes.Replace(plain, []byte(change[0]), []byte(change[1]), 1)
		if bytes.Equal(changed, plain) {
			t.Fatalf("%s: the test is broken", name)
		}
		to := t.TempDir()
		_, err := backup.Extract(t.Context(), bytes.NewReader(pack(t, mended(t, changed))), to, accept)
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		if strings.Contains(name, "newer") && !strings.Contains(err.Error(), "format 2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := backup.Extract(t.Context(), bytes.NewReader(packed), t.TempDir(), func(backup.Head) error { return fs.ErrPermission }); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a head that is refused: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := backup.Extract(ended, bytes.NewReader(packed), t.TempDir(), accept); !errors.Is(err, context.Canceled) {
		t.Errorf("after its context: %v", err)
	}
}

// Links and devices are not restored, nor files through them.
func TestOnlyFilesAreExtracted(t *testing.T) {
	for _, typ := range []byte{tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeDir} {
		var plain bytes.Buffer
		w := tar.NewWriter(&plain)
		head := []byte(`{"format": 1}`)
		must(t, w.WriteHeader(&tar.Header{Name: "backup.json", Size: int64(len(head)), Mode: 0o600}))
		_, err := w.Write(head)
		must(t, err)
		must(t, w.WriteHeader(&tar.Header{Name: "data/x", Typeflag: typ, Linkname: "/etc/passwd"}))
		must(t, w.Close())
		dir := t.TempDir()
		if _, err := backup.Extract(t.Context(), bytes.NewReader(pack(t, plain.Bytes())), dir, accept); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("type %c: %v", typ, err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("type %c: left %v", typ, left)
		}
	}
}

func decoder(t testing.TB) *zstd.Decoder {
	t.Helper()
	d, err := zstd.NewReader(nil)
	must(t, err)
	t.Cleanup(d.Close)
	return d
}

func unpack(t testing.TB, packed []byte) []byte {
	t.Helper()
	plain, err := decoder(t).DecodeAll(packed, nil)
	must(t, err)
	return plain
}

func pack(t testing.TB, plain []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	must(t, err)
	return e.EncodeAll(plain, nil)
}

// mended writes the checksums of tar headers anew.
func mended(t testing.TB, plain []byte) []byte {
	t.Helper()
	plain = slices.Clone(plain)
	for at := 0; at+512 <= len(plain); at += 512 {
		head := plain[at : at+512]
		if string(head[257:262]) != "ustar" {
			continue
		}
		copy(head[148:156], "        ")
		sum := 0
		for _, b := range head {
			sum += int(b)
		}
		copy(head[148:156], []byte(octal(sum)))
	}
	return plain
}

func octal(n int) string {
	text := []byte("000000\x00 ")
	for i := 5; i >= 0; i-- {
		text[i] = byte('0' + n&7)
		n >>= 3
	}
	return string(text)
}

func FuzzExtract(f *testing.F) {
	dir := f.TempDir()
	must(f, os.WriteFile(filepath.Join(dir, "x"), []byte("content"), 0o600))
	var out bytes.Buffer
	w, err := backup.NewWriter(&out, backup.Head{})
	must(f, err)
	must(f, w.Add(context.Background(), "x", filepath.Join(dir, "x")))
	must(f, w.Close(nil))
	f.Add(unpack(f, out.Bytes()))
	f.Fuzz(func(t *testing.T, plain []byte) {
		if len(plain) > 1<<20 {
			t.Skip()
		}
		above := t.TempDir()
		dir := filepath.Join(above, "dir")
		must(t, os.Mkdir(dir, 0o700))
		_, _ = backup.Extract(t.Context(), bytes.NewReader(pack(t, plain)), dir, accept)
		if entries, err := os.ReadDir(above); err != nil || len(entries) != 1 {
			t.Errorf("beside the directory: %v, %v", entries, err)
		}
	})
}
