package cp

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProgressCountsWhatIsRead(t *testing.T) {
	c := &Copy{}
	if _, err := io.Copy(io.Discard, c.counted(strings.NewReader(strings.Repeat("x", 1<<20)))); err != nil {
		t.Fatal(err)
	}
	if got := c.Progress.Moved(); got != 1<<20 {
		t.Errorf("counted %d bytes", got)
	}
}

// FuzzUnpack unpacks any archive and checks that nothing is written outside.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte("t/../x"), []byte("../y"), byte(tar.TypeSymlink), false)
	f.Add([]byte("t/l"), []byte("../.."), byte(tar.TypeLink), true)
	f.Fuzz(func(t *testing.T, name, link []byte, kind byte, keepAll bool) {
		var b bytes.Buffer
		out := tar.NewWriter(&b)
		for _, h := range []tar.Header{
			{Name: "t/l", Linkname: string(link), Typeflag: tar.TypeSymlink},
			{Name: string(name), Linkname: string(link), Typeflag: kind},
			{Name: "t/l/x", Typeflag: tar.TypeReg},
		} {
			if out.WriteHeader(&h) != nil {
				return
			}
		}
		around := t.TempDir()
		inside := filepath.Join(around, "in")
		if err := os.Mkdir(inside, 0o700); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(inside)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = root.Close() }()
		u := &unpacker{root: root, keepAll: keepAll, skipped: &Skipped{}}
		_ = u.unpack(&b) // refused or not
		entries, err := os.ReadDir(around)
		if err != nil || len(entries) != 1 {
			t.Errorf("outside there is %v, %v", entries, err)
		}
	})
}
