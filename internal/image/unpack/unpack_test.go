package unpack

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

var writers = map[Format]func(io.Writer) (io.WriteCloser, error){
	Gzip: func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
	Xz:   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
	Zstd: func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	Lz4:  func(w io.Writer) (io.WriteCloser, error) { return lz4.NewWriter(w), nil },
}

func pack(t testing.TB, f Format, content []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w, err := writers[f](&packed)
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

func TestOutputIsBounded(t *testing.T) {
	const limit = 1 << 20
	zeros := make([]byte, limit+1)
	for f := range writers {
		packed := pack(t, f, zeros[:limit])
		if got := Detect(packed); got != f {
			t.Errorf("%s is detected as %q", f, got)
		}
		content, err := All(bytes.NewReader(packed), f, limit)
		if err != nil || !bytes.Equal(content, zeros[:limit]) {
			t.Errorf("%s: %d bytes, %v", f, len(content), err)
		}
		if _, err := All(bytes.NewReader(pack(t, f, zeros)), f, limit); err == nil || !strings.Contains(err.Error(), "more than 1 MiB") {
			t.Errorf("%s: more than %d bytes: %v", f, limit, err)
		}
		if _, err := All(bytes.NewReader(packed[:len(packed)-1]), f, limit); err == nil && f != Lz4 { // whose end mark is optional
			t.Errorf("%s: a cut-off stream was decompressed", f)
		}
	}
}

func TestWindowIsBounded(t *testing.T) {
	var packed bytes.Buffer
	w, err := xz.WriterConfig{DictCap: 2 * maxWindow}.NewWriter(&packed)
	if err == nil {
		_, err = w.Write([]byte("x"))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := All(&packed, Xz, 1<<20); err == nil {
		t.Error("a dictionary of 256 MiB was allocated")
	}
}

// TestFirstStopsAfterOneStream is for kernels, whose size follows the stream.
func TestFirstStopsAfterOneStream(t *testing.T) {
	for _, f := range []Format{Gzip, Xz} {
		two := append(pack(t, f, []byte("one ")), pack(t, f, []byte("two"))...)
		if got, err := First(bytes.NewReader(two), f, 100); err != nil || string(got) != "one " {
			t.Errorf("%s: First: %q, %v", f, got, err)
		}
		if got, err := All(bytes.NewReader(two), f, 100); err != nil || string(got) != "one two" {
			t.Errorf("%s: All: %q, %v", f, got, err)
		}
	}
}

func TestOtherFormatsAreRefused(t *testing.T) {
	for head, want := range map[string]Format{"BZh9": Bzip2, "\x5d\x00\x00\x80": Lzma, "\x89LZO\x00": Lzo, "": "", "\x7fELF": ""} {
		got := Detect([]byte(head))
		if got != want {
			t.Errorf("%q is detected as %q", head, got)
		}
		if _, err := All(strings.NewReader(head), got, 100); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%q: %v", head, err)
		}
	}
}

func FuzzAll(f *testing.F) {
	for format := range writers {
		f.Add(pack(f, format, []byte("some content, some content")))
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		const limit = 1 << 20
		content, err := All(bytes.NewReader(packed), Detect(packed), limit)
		if err == nil && len(content) > limit {
			t.Errorf("%d bytes", len(content))
		}
		_, _ = First(bytes.NewReader(packed), Detect(packed), limit)
	})
}
