package cp

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestHoles writes zeros and data in pieces that end within blocks.
func TestHoles(t *testing.T) {
	data := func(n int) []byte { return bytes.Repeat([]byte("data"), n/4) }
	zeros := func(n int) []byte { return make([]byte, n) }
	for name, c := range map[string]struct {
		parts [][]byte
		most  int64 // space, in KiB
	}{
		"nothing":          {nil, 0},
		"data":             {[][]byte{data(100_000)}, 104},
		"zeros":            {[][]byte{zeros(1 << 20)}, 0},
		"zeros at the end": {[][]byte{data(4096), zeros(1<<20 + 1)}, 8},
		"data at the end":  {[][]byte{zeros(1 << 20), data(4)}, 8},
		"data within":      {[][]byte{zeros(1<<20 + 5), data(4), zeros(1 << 20), data(8192), zeros(1 << 20)}, 24},
	} {
		for size, reader := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader,
			"odd": func(r io.Reader) io.Reader { return struct{ io.Reader }{io.LimitReader(r, 1<<40)} },
		} {
			want := bytes.Join(c.parts, nil)
			path := filepath.Join(t.TempDir(), "f")
			f, err := os.Create(path)
			must(t, err)
			must(t, copyWithHoles(f, reader(bytes.NewReader(want))))
			must(t, f.Close())
			got, err := os.ReadFile(path)
			must(t, err)
			var st unix.Stat_t
			must(t, unix.Stat(path, &st))
			if !bytes.Equal(got, want) || st.Blocks/2 > c.most {
				t.Errorf("%s, %s: equal %t, %d bytes, %d KiB on disk", name, size, bytes.Equal(got, want), len(got), st.Blocks/2)
			}
		}
	}
}

// TestTreesAreCopiedWhole packs a tree and unpacks it, with what -a keeps and without.
func TestTreesAreCopiedWhole(t *testing.T) {
	from := t.TempDir()
	must(t, os.Mkdir(from+"/d", 0o777))
	must(t, os.Chmod(from+"/d", 0o777|os.ModeSticky))
	must(t, os.WriteFile(from+"/d/one", []byte("x"), 0o600))
	must(t, os.Link(from+"/d/one", from+"/d/two"))
	must(t, unix.Setxattr(from+"/d/one", "user.note", []byte("binary \x00\xff"), 0))
	must(t, unix.Setxattr(from+"/d", "user.dir", []byte("d"), 0))
	for _, all := range []bool{true, false} {
		var b bytes.Buffer
		out := tar.NewWriter(&b)
		must(t, (&packer{copy: &Copy{KeepAll: all}, top: "t", withTop: true}).pack(out, from))
		must(t, out.Close())
		for _, unpackAll := range []bool{true, false} {
			to := t.TempDir()
			root, err := os.OpenRoot(to)
			must(t, err)
			defer func() { _ = root.Close() }()
			u := &unpacker{root: root, keepAll: unpackAll, skipped: &Skipped{}}
			if unpackAll && !all {
				continue // the archive says that root owns all
			}
			must(t, u.unpack(bytes.NewReader(b.Bytes())))
			if st, err := os.Stat(to + "/d"); err != nil || st.Mode() != 0o777|os.ModeSticky|os.ModeDir {
				t.Errorf("the directory is %v, %v", st.Mode(), err)
			}
			one, err := os.Stat(to + "/d/one")
			must(t, err)
			if two, err := os.Stat(to + "/d/two"); err != nil || !os.SameFile(one, two) {
				t.Errorf("the names are not of one file: %v, %v", two, err)
			}
			value := make([]byte, 100)
			n, _ := unix.Getxattr(to+"/d/one", "user.note", value)
			m, _ := unix.Getxattr(to+"/d", "user.dir", value[50:])
			if kept := string(value[:max(n, 0)]) == "binary \x00\xff" && m == 1; kept != unpackAll {
				t.Errorf("packed with all %t, unpacked with all %t: attributes %q, skipped %+v", all, unpackAll, value, u.skipped)
			}
		}
	}
}

// TestHostileAttributes has attributes that are not copied, and one that cannot be set.
func TestHostileAttributes(t *testing.T) {
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	must(t, out.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: "t/f", Mode: 0o600, Uid: os.Getuid(), Gid: os.Getgid(),
		PAXRecords: map[string]string{
			attributePrefix + "trusted.overlay.opaque": "y", attributePrefix + "security.selinux": "x",
			attributePrefix + "security.capability": "not one", attributePrefix + "user.ok": "yes",
		},
	}))
	must(t, out.Close())
	to := t.TempDir()
	root, err := os.OpenRoot(to)
	must(t, err)
	defer func() { _ = root.Close() }()
	u := &unpacker{root: root, keepAll: true, skipped: &Skipped{}}
	must(t, u.unpack(&b))
	names := make([]byte, 1000)
	n, err := unix.Listxattr(to+"/f", names)
	if got := string(names[:n]); err != nil || got != "user.ok\x00" {
		t.Errorf("it has %q, %v", got, err)
	}
	if len(u.skipped.Files) != 1 || !strings.Contains(u.skipped.Files[0].Reason, "security.capability") {
		t.Errorf("left out: %+v", u.skipped)
	}
}

func TestCompressedArchives(t *testing.T) {
	plain := append([]byte("\x1f\x8b odd name of a file"), make([]byte, 1000)...)
	copy(plain[257:], "ustar")
	xzWriter := func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }
	zstdWriter := func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }
	for name, compress := range map[string]func(io.Writer) (io.WriteCloser, error){
		"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"xz":   xzWriter, "zstd": zstdWriter,
	} {
		var b bytes.Buffer
		w, err := compress(&b)
		must(t, err)
		_, err = w.Write(plain)
		must(t, err)
		must(t, w.Close())
		r, err := decompressed(&b)
		must(t, err)
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for _, text := range []string{string(plain), "", "BZ", strings.Repeat("a", 600)} {
		r, err := decompressed(strings.NewReader(text))
		must(t, err)
		if got, err := io.ReadAll(r); err != nil || string(got) != text {
			t.Errorf("%.10q: %d bytes, %v", text, len(got), err)
		}
	}
	for _, broken := range []string{"\x1f\x8b", "\x1f\x8bno gzip at all", "\xfd7zXZ\x00broken"} {
		if _, err := decompressed(strings.NewReader(broken)); err == nil || !strings.Contains(fmt.Sprint(err), "begins like") {
			t.Errorf("%q: %v", broken, err)
		}
	}
}
