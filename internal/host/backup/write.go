//go:build linux

package backup

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/hatchvm/hatch/internal/host/sparse"
)

// Writer writes an archive. After an error the archive is of no use.
type Writer struct {
	packed *zstd.Encoder
	tar    *tar.Writer
	files  []File
}

// NewWriter begins an archive.
func NewWriter(to io.Writer, head Head) (*Writer, error) {
	packed, err := zstd.NewWriter(to, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return nil, fmt.Errorf("cannot begin the archive: %w", err)
	}
	w := &Writer{packed: packed, tar: tar.NewWriter(packed)}
	head.Format = Format
	return w, w.text(headName, head)
}

func (w *Writer) text(name string, content any) error {
	text, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot write the archive: %w", err)
	}
	if err := w.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(text)), ModTime: time.Now().Truncate(time.Second), Format: tar.FormatPAX}); err != nil {
		return fmt.Errorf("cannot write the archive: %w", err)
	}
	if _, err := w.tar.Write(text); err != nil {
		return fmt.Errorf("cannot write the archive: %w", err)
	}
	return nil
}

// Add adds a regular file. If the file shrinks meanwhile, the archive has zeros instead,
// and the error is [ErrChanged]: the caller drops the file, and may go on.
// Errors: fs.ErrNotExist, after which the caller may go on, too.
func (w *Writer) Add(ctx context.Context, name, path string) error {
	if err := checkName(name); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot read a file: %w", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cannot read a file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("cannot back up %s: it is not a regular file", path)
	}
	pieces, err := piecesOf(f, st.Size())
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", path, err)
	}
	header := &tar.Header{Name: filesDir + name, Mode: int64(st.Mode().Perm() &^ 0o022), Size: st.Size(), ModTime: st.ModTime(), Format: tar.FormatPAX}
	holes := len(pieces) != 1 || pieces[0].size != st.Size()
	if holes {
		header.PAXRecords = map[string]string{sizeRecord: strconv.FormatInt(st.Size(), 10)}
		header.Size = 0
		for _, p := range pieces {
			header.Size += pieceHead + p.size
		}
	}
	if err := w.tar.WriteHeader(header); err != nil {
		return fmt.Errorf("cannot write the archive: %w", err)
	}
	body := &summed{to: w.tar, sum: sha256.New()}
	changed := false
	for _, p := range pieces {
		if holes {
			p.writeHead(body)
		}
		whole, err := body.copyPiece(ctx, f, p)
		if err != nil {
			return err
		}
		changed = changed || !whole
	}
	if changed {
		return fmt.Errorf("%s: %w", path, ErrChanged)
	}
	w.files = append(w.files, File{Name: name, Size: st.Size(), Stored: header.Size, Sum: "sha256:" + hex.EncodeToString(body.sum.Sum(nil))})
	return nil
}

// ErrChanged is the error of a file that changed while it was read.
var ErrChanged = errors.New("the file changed while it was copied")

// Drop leaves out the files that were added after a mark. They stay in the archive, but
// are not restored.
func (w *Writer) Drop(mark int) { w.files = w.files[:mark] }

// Mark is for Drop.
func (w *Writer) Mark() int { return len(w.files) }

// Close ends the archive.
func (w *Writer) Close(leftOut []LeftOut) error {
	if err := w.text(manifestName, manifest{w.files, leftOut}); err != nil {
		return err
	}
	if err := errors.Join(w.tar.Close(), w.packed.Close()); err != nil {
		return fmt.Errorf("cannot end the archive: %w", err)
	}
	return nil
}

// piece is a part of a file that is not a hole.
type piece struct{ at, size int64 }

// piecesOf lists them. A file without data has none.
func piecesOf(f *os.File, size int64) (all []piece, err error) {
	filled, err := sparse.Filled(f, size)
	if err != nil {
		return nil, err
	}
	for _, i := range filled {
		at := int64(i) * sparse.ChunkSize
		length := min(sparse.ChunkSize, size-at)
		if n := len(all); n > 0 && all[n-1].at+all[n-1].size == at {
			all[n-1].size += length
			continue
		}
		all = append(all, piece{at, length})
	}
	return all, nil
}

func (p piece) writeHead(to *summed) {
	var head [pieceHead]byte
	binary.BigEndian.PutUint64(head[:], uint64(p.at))
	binary.BigEndian.PutUint64(head[8:], uint64(p.size))
	_, _ = to.Write(head[:]) // the error stays in to
}

// summed writes, and makes a checksum of what it writes.
type summed struct {
	to  io.Writer
	sum hash.Hash
	err error
}

// Write implements io.Writer.
func (s *summed) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	_, _ = s.sum.Write(p) // never fails
	var n int
	n, s.err = s.to.Write(p)
	return n, s.err
}

// copyPiece copies a piece of a file, and zeros for what the file does not have any more.
func (s *summed) copyPiece(ctx context.Context, f *os.File, p piece) (whole bool, err error) {
	buf := make([]byte, min(p.size, sparse.ChunkSize))
	whole = true
	for done := int64(0); done < p.size; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		part := buf[:min(int64(len(buf)), p.size-done)]
		n, err := f.ReadAt(part, p.at+done)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, fmt.Errorf("cannot read a file: %w", err)
		}
		if n < len(part) {
			whole = false
			clear(part[n:])
		}
		if _, err := s.Write(part); err != nil {
			return false, fmt.Errorf("cannot write the archive: %w", err)
		}
		done += int64(len(part))
	}
	return whole, s.err
}
