//go:build linux

package sparse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

const disk = Part("disk")

// size is not a multiple of a chunk or a page.
const size = 8*ChunkSize + PageSize + 100

// patchy makes a file with a few pages of data, some of zeros, and holes.
func patchy(t *testing.T) (f *os.File, content []byte) {
	t.Helper()
	f, err := Create(filepath.Join(t.TempDir(), "patchy"), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	content = make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	for _, at := range []int{0, 3*ChunkSize - PageSize, 3 * ChunkSize, 5*ChunkSize + 3*PageSize, size - 100} {
		page := content[at:min(at+PageSize, size)]
		_, _ = random.Read(page)
		if _, err := f.WriteAt(page, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(make([]byte, 2*ChunkSize), 6*ChunkSize); err != nil {
		t.Fatal(err)
	}
	return f, content
}

func TestACopyHoldsTheSameAndNoZeros(t *testing.T) {
	src, content := patchy(t)
	to := filepath.Join(t.TempDir(), "copy")
	dst, err := Create(to, size)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dst.Close() }()
	if err := disk.Copy(t.Context(), dst, src, size); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the copy differs: %d bytes, %v", len(got), err)
	}
	if got, err := Allocated(filepath.Dir(to)); err != nil || got > 1<<20 {
		t.Errorf("it takes %d bytes on disk for 20 KiB of content, %v", got, err)
	}
	of, err := disk.Sum(t.Context(), src, size)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Check(t.Context(), dst, of); err != nil {
		t.Error(err)
	}
	again, err := Create(to+".again", size)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	got, err := disk.CopyAndSum(t.Context(), again, src, size)
	if err != nil || !slices.Equal(got.Sums, of.Sums) {
		t.Errorf("CopyAndSum returned the checksums %v instead of %v, %v", got.Sums, of.Sums, err)
	}
}

func TestACopyThatHasChangedIsRefused(t *testing.T) {
	src, _ := patchy(t)
	x, err := disk.Sum(t.Context(), src, size)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]struct {
		at   int64
		want string
	}{
		"in the first page": {at: 7, want: "its disk is damaged"},
		"in a hole":         {at: 2*ChunkSize - 9, want: "its disk is damaged"},
		"among zeros":       {at: 6*ChunkSize + 9, want: "its disk is damaged"},
		"in the last byte":  {at: size - 1, want: "its disk is damaged"},
		"one byte more":     {at: size, want: "its disk has 8392805 bytes and had 8392804"},
	} {
		t.Run(name, func(t *testing.T) {
			f, content := patchy(t)
			if _, err := f.WriteAt([]byte{append(content, 0)[change.at] ^ 1}, change.at); err != nil {
				t.Fatal(err)
			}
			opened, err := disk.Open(f.Name(), x)
			if err == nil {
				err = errors.Join(disk.Check(t.Context(), opened, x), opened.Close())
			}
			if why := (*Unusable)(nil); !errors.As(err, &why) || why.Text != change.want {
				t.Errorf("got %v; want %q", err, change.want)
			}
		})
	}
}

func TestACopyStopsWithItsContext(t *testing.T) {
	src, _ := patchy(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := disk.Sum(ctx, src, size); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAFileTruncatedDuringTheCopyIsAnError(t *testing.T) {
	src, _ := patchy(t)
	if err := src.Truncate(5*ChunkSize + 4*PageSize); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Sum(t.Context(), src, size); err == nil {
		t.Error("read beyond the end")
	}
}

func TestIndexIsWrittenAndRead(t *testing.T) {
	src, _ := patchy(t)
	x, err := disk.Sum(t.Context(), src, size)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "index")
	if err := x.Write(path); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&0o777 != 0o600 {
		t.Errorf("mode %o, %v", st.Mode, err)
	}
	back, err := disk.ReadIndex(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Check(t.Context(), src, back); err != nil {
		t.Error(err)
	}
	for name, text := range map[string]string{
		"more after it":    `{"format":1,"size":1,"chunk":1048576,"sums":[1]}{}`,
		"an unknown field": `{"format":1,"size":1,"chunk":1048576,"sums":[1],"more":1}`,
		"another format":   `{"format":2,"size":1,"chunk":1048576,"sums":[1]}`,
		"other chunks":     `{"format":1,"size":1,"chunk":1048577,"sums":[1]}`,
		"a checksum less":  `{"format":1,"size":1048577,"chunk":1048576,"sums":[1]}`,
		"nothing":          ``,
	} {
		if _, err := disk.ParseIndex([]byte(text)); !errors.As(err, new(*Unusable)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseIndex(f *testing.F) {
	x := newIndex(2 * ChunkSize)
	x.Sums[0] = 1
	text, err := json.Marshal(x)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"format":1,"size":-1,"chunk":1048576,"sums":[]}`))
	f.Add([]byte(`{"format":1,"size":9223372036854775807,"chunk":1048576,"sums":[]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		x, err := disk.ParseIndex(text)
		if err == nil && (x.Size < 1 || len(x.Sums) != chunks(x.Size)) {
			t.Errorf("accepted %+v", x)
		}
		if err != nil && !errors.As(err, new(*Unusable)) {
			t.Errorf("another error: %v", err)
		}
	})
}
