package cp

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
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

// sparse files have a hole of this size in bytes, and a block of data behind it.
const hole = 64 << 20

// rawEntry returns a header of an archive, with fields that tar.Writer does not write,
// and its content.
func rawEntry(name string, kind byte, content string, set func(header []byte)) []byte {
	header := make([]byte, 512)
	copy(header, name)
	copy(header[100:], "0000644\x000000000\x000000000\x00")
	copy(header[124:], fmt.Sprintf("%011o\x0000000000000\x00        ", len(content)))
	header[156] = kind
	set(header)
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
	padded := make([]byte, (len(content)+511)&^511)
	copy(padded, content)
	return append(header, padded...)
}

// gnuSparse and paxSparse return the two forms of a sparse file.
func gnuSparse() []byte {
	return rawEntry("t/big", tar.TypeGNUSparse, strings.Repeat("x", 512), func(h []byte) {
		copy(h[257:], "ustar  \x00")
		copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00", hole, 512))
		copy(h[483:], fmt.Sprintf("%011o\x00", hole+512))
	})
}

func paxSparse() []byte {
	var records strings.Builder
	for _, text := range []string{
		"GNU.sparse.name=t/big", fmt.Sprintf("GNU.sparse.size=%d", hole+512), "GNU.sparse.numblocks=1", fmt.Sprintf("GNU.sparse.map=%d,512", hole),
	} {
		length := len(text) + 4 // two digits, a space and the line's end
		fmt.Fprintf(&records, "%d %s\n", length, text)
	}
	ustar := func(h []byte) { copy(h[257:], "ustar\x0000") }
	return append(rawEntry("t/x", tar.TypeXHeader, records.String(), ustar), rawEntry("t/y", tar.TypeReg, strings.Repeat("x", 512), ustar)...)
}

// TestSparseFilesAreRefused has archives of 2 KiB that stand for 64 MiB.
func TestSparseFilesAreRefused(t *testing.T) {
	plain := rawEntry("t/plain", tar.TypeReg, strings.Repeat("y", 100_000), func(h []byte) { copy(h[257:], "ustar\x0000") })
	for name, sparse := range map[string][]byte{"gnu": gnuSparse(), "pax": paxSparse()} {
		if header, err := tar.NewReader(bytes.NewReader(sparse)).Next(); err != nil || header.Name != "t/big" || header.Size != hole+512 {
			t.Fatalf("%s: the archive has %+v, %v", name, header, err)
		}
		dir := t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = root.Close() }()
		u := &unpacker{root: root, skipped: &Skipped{}}
		err = u.unpack(io.MultiReader(bytes.NewReader(plain), bytes.NewReader(sparse), bytes.NewReader(make([]byte, 1024))))
		if !errors.Is(err, errExpands) || !strings.Contains(err.Error(), "big: ") {
			t.Errorf("%s: got %v", name, err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 || entries[0].Name() != "plain" {
			t.Errorf("%s: left behind: %v, %v", name, entries, err)
		}
	}
}
