//go:build linux

package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory that decompression takes.
const maxWindow = 16 << 20

// maxPadding bounds what follows the end of a tar file, in bytes.
const maxPadding = 64 << 10

// Contents is what an archive has.
type Contents struct {
	Head    Head
	Files   []File
	LeftOut []LeftOut
}

// Extract reads an archive to its end and writes its files below dir, which is empty.
// check is called with the head before anything is written. On error the caller removes
// dir. Errors: [ErrDamaged]; check's.
func Extract(ctx context.Context, from io.Reader, dir string, check func(Head) error) (Contents, error) {
	packed, err := zstd.NewReader(from, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return Contents{}, fmt.Errorf("cannot read the archive: %w", err)
	}
	defer packed.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Contents{}, fmt.Errorf("cannot restore: %w", err)
	}
	defer func() { _ = root.Close() }()
	x := &extraction{tar: tar.NewReader(packed), root: root, found: map[string]File{}}
	c, err := x.all(ctx, check)
	if err != nil {
		return Contents{}, err
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(packed, maxPadding+1)); err != nil || n > maxPadding {
		return Contents{}, damaged("something follows its end")
	}
	return c, nil
}

type extraction struct {
	tar   *tar.Reader
	root  *os.Root
	found map[string]File // files that were written, by name
}

func (x *extraction) all(ctx context.Context, check func(Head) error) (c Contents, err error) {
	header, err := x.next()
	if err != nil {
		return c, err
	}
	if header.Name != headName {
		return c, damaged("it does not begin with %s", headName)
	}
	if err := x.json(header, maxHead, &c.Head); err != nil {
		return c, err
	}
	if c.Head.Format != Format {
		return c, fmt.Errorf("the archive has format %d, of hatchd %.40q; this hatchd reads format %d: use that version, or a later one", c.Head.Format, c.Head.Version, Format)
	}
	if err := check(c.Head); err != nil {
		return c, err
	}
	for {
		if err := ctx.Err(); err != nil {
			return c, err
		}
		if header, err = x.next(); err != nil {
			return c, err
		}
		if header.Name == manifestName {
			break
		}
		if err := x.file(ctx, header); err != nil {
			return c, err
		}
	}
	var m manifest
	if err := x.json(header, maxManifest, &m); err != nil {
		return c, err
	}
	if _, err := x.tar.Next(); !errors.Is(err, io.EOF) {
		return c, damaged("something follows its manifest")
	}
	c.Files, c.LeftOut = m.Files, m.LeftOut
	return c, x.compare(m)
}

// next returns the next entry, of which there must be one.
func (x *extraction) next() (*tar.Header, error) {
	header, err := x.tar.Next()
	if err != nil {
		return nil, damaged("%v", err)
	}
	if header.Typeflag != tar.TypeReg {
		return nil, damaged("%.100q is not a file", header.Name)
	}
	return header, nil
}

func (x *extraction) json(header *tar.Header, limit int64, into any) error {
	if header.Size > limit {
		return damaged("%s has %d bytes", header.Name, header.Size)
	}
	text, err := io.ReadAll(x.tar)
	if err != nil {
		return damaged("%v", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(into); err != nil {
		return damaged("cannot read %s: %v", header.Name, err)
	}
	return nil
}

// file writes one file.
func (x *extraction) file(ctx context.Context, header *tar.Header) (err error) {
	name, ok := strings.CutPrefix(header.Name, filesDir)
	if !ok {
		return damaged("it has an entry %.100q", header.Name)
	}
	if err := checkName(name); err != nil {
		return err
	}
	if _, twice := x.found[name]; twice || len(x.found) >= maxFiles {
		return damaged("it has too many files, or %.100q twice", name)
	}
	if err := x.root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return fmt.Errorf("cannot restore: %w", err)
	}
	f, err := x.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("cannot restore: %w", err)
	}
	defer func() {
		if closeErr := f.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("cannot restore: %w", closeErr)
		}
	}()
	sum := sha256.New()
	stored := io.TeeReader(x.tar, sum)
	size, holes, err := sizeOf(header)
	if err != nil {
		return err
	}
	if holes {
		err = writePieces(ctx, f, stored, header.Size, size)
	} else {
		err = writeAt(ctx, f, stored, 0, size)
	}
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Chmod(fs.FileMode(header.Mode) & 0o755)
	}
	if err == nil {
		err = x.root.Chtimes(name, time.Time{}, header.ModTime)
	}
	if err != nil {
		return fmt.Errorf("cannot restore %s: %w", name, err)
	}
	x.found[name] = File{Name: name, Size: size, Stored: header.Size, Sum: "sha256:" + hex.EncodeToString(sum.Sum(nil))}
	return nil
}

func sizeOf(header *tar.Header) (size int64, holes bool, err error) {
	text, holes := header.PAXRecords[sizeRecord]
	if !holes {
		return header.Size, false, nil
	}
	size, err = strconv.ParseInt(text, 10, 64)
	if err != nil || size < 0 {
		return 0, true, damaged("%.100q has the size %.40q", header.Name, text)
	}
	return size, true, nil
}

// writePieces writes the pieces of a file of size bytes, whose holes stay holes. stored
// is how many bytes the archive has for it.
func writePieces(ctx context.Context, f *os.File, from io.Reader, stored, size int64) error {
	for at := int64(0); stored > 0; {
		var head [pieceHead]byte
		if _, err := io.ReadFull(from, head[:]); err != nil {
			return damaged("a file with holes ends early")
		}
		begin, length := int64(binary.BigEndian.Uint64(head[:])), int64(binary.BigEndian.Uint64(head[8:]))
		stored -= pieceHead
		if begin < at || length <= 0 || length > stored || begin > size-length {
			return damaged("a piece of a file is outside of it")
		}
		if err := writeAt(ctx, f, io.LimitReader(from, length), begin, length); err != nil {
			return err
		}
		at, stored = begin+length, stored-length
	}
	return nil
}

func writeAt(ctx context.Context, f *os.File, from io.Reader, at, size int64) error {
	buf := make([]byte, 1<<20)
	for done := int64(0); done < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := buf[:min(int64(len(buf)), size-done)]
		if _, err := io.ReadFull(from, part); err != nil {
			return damaged("a file ends early: %v", err)
		}
		if _, err := f.WriteAt(part, at+done); err != nil {
			return err
		}
		done += int64(len(part))
	}
	return nil
}

// compare compares what was written with the manifest, and removes what that does not
// have: what changed while it was backed up.
func (x *extraction) compare(m manifest) error {
	if len(m.Files) > maxFiles {
		return damaged("its manifest has too many files")
	}
	for _, want := range m.Files {
		got, ok := x.found[want.Name]
		if !ok || got != want {
			return damaged("%.100q is not as it was written", want.Name)
		}
		delete(x.found, want.Name)
	}
	for name := range x.found {
		if err := x.root.Remove(name); err != nil {
			return fmt.Errorf("cannot restore: %w", err)
		}
	}
	return nil
}
