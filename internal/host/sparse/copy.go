//go:build linux

package sparse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// PageSize is what is left out when it is all zeros, in bytes.
const PageSize = 4096

// copiers is how many chunks are copied at a time: reading, adding up and
// writing keep a processor busy.
const copiers = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Copy copies what src holds, which has size bytes, to dst, which is all hole
// and as large.
func (p Part) Copy(ctx context.Context, dst, src *os.File, size int64) error {
	_, err := p.transfer(ctx, src, size, dst.WriteAt, unsummed)
	return err
}

// CopyAndSum is Copy that returns the checksums. They cost about a fifth more.
func (p Part) CopyAndSum(ctx context.Context, dst, src *os.File, size int64) (Index, error) {
	return p.transfer(ctx, src, size, dst.WriteAt, checksum)
}

// Sum returns the checksums of src, which has size bytes.
func (p Part) Sum(ctx context.Context, src *os.File, size int64) (Index, error) {
	return p.transfer(ctx, src, size, nowhere, checksum)
}

// Open opens a file that must be as large as x says. Errors: Unusable.
func (p Part) Open(path string, x Index) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, unusable(err, "its %s cannot be read", p)
	}
	st, err := f.Stat()
	if err == nil && st.Size() != x.Size {
		err = unusable(nil, "its %s has %d bytes and had %d", p, st.Size(), x.Size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// CopyChecked is Copy of what Open opened, and what must be as x says. On error
// dst may hold anything. Errors: Unusable.
func (p Part) CopyChecked(ctx context.Context, dst, src *os.File, x Index) error {
	return p.transferChecked(ctx, src, x, dst.WriteAt)
}

// Check reads what Open opened, and what must be as x says. Errors: Unusable.
func (p Part) Check(ctx context.Context, src *os.File, x Index) error {
	return p.transferChecked(ctx, src, x, nowhere)
}

// writeAt is as that of io.WriterAt.
type writeAt func(data []byte, at int64) (int, error)

func nowhere(data []byte, _ int64) (int, error) { return len(data), nil }

func checksum(data []byte) int64 { return int64(crc32.Checksum(data, castagnoli)) }

func unsummed([]byte) int64 { return 0 }

func (p Part) transferChecked(ctx context.Context, src *os.File, x Index, write writeAt) error {
	now, err := p.transfer(ctx, src, x.Size, write, checksum)
	if err == nil && !slices.Equal(now.Sums, x.Sums) {
		return unusable(nil, "its %s is damaged", p)
	}
	return err
}

// transfer hands what src holds to write, and returns what sum says of each chunk.
func (p Part) transfer(ctx context.Context, src *os.File, size int64, write writeAt, sum func([]byte) int64) (Index, error) {
	filled, err := Filled(src, size)
	if err != nil {
		return Index{}, fmt.Errorf("cannot find what %s holds: %w", p, err)
	}
	x := newIndex(size)
	buffers := sync.Pool{New: func() any { b := make([]byte, ChunkSize); return &b }}
	each, within := errgroup.WithContext(ctx)
	each.SetLimit(min(copiers, runtime.NumCPU()))
	for _, i := range filled {
		if within.Err() != nil {
			break
		}
		each.Go(func() error {
			buf := buffers.Get().(*[]byte)
			defer buffers.Put(buf)
			at := int64(i) * ChunkSize
			data := (*buf)[:min(ChunkSize, size-at)]
			empty, err := p.transferChunk(src, at, data, write)
			if !empty {
				x.Sums[i] = sum(data)
			}
			return err
		})
	}
	return x, errors.Join(each.Wait(), ctx.Err())
}

// transferChunk reads data, and hands it on but for pages of zeros. It reports
// whether there was nothing else.
func (p Part) transferChunk(src *os.File, at int64, data []byte, write writeAt) (empty bool, err error) {
	if _, err := io.ReadFull(io.NewSectionReader(src, at, int64(len(data))), data); err != nil {
		return false, fmt.Errorf("cannot read %s: %w", p, err)
	}
	empty = true
	for begin, end := range Runs(data) {
		empty = false
		if _, err := write(data[begin:end], at+int64(begin)); err != nil {
			return false, fmt.Errorf("cannot write %s: %w", p, err)
		}
	}
	return empty, nil
}

// Filled lists the chunks in which a file of size bytes is not all hole.
func Filled(f *os.File, size int64) (filled []int, err error) {
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return nil, err
		}
		end, err := unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		for i := int(begin / ChunkSize); int64(i)*ChunkSize < min(end, size); i++ {
			filled = append(filled, i)
		}
		at = int64(chunks(end)) * ChunkSize // the rest of this chunk is in the list
	}
	return filled, nil
}

var zeroPage [PageSize]byte

// Runs yields the begin and end of each run of pages that hold something.
func Runs(data []byte) iter.Seq2[int, int] {
	return func(yield func(begin, end int) bool) {
		begin := -1
		for at := 0; at < len(data); at += PageSize {
			page := data[at:min(at+PageSize, len(data))]
			switch empty := bytes.Equal(page, zeroPage[:len(page)]); {
			case !empty && begin < 0:
				begin = at
			case empty && begin >= 0:
				if !yield(begin, at) {
					return
				}
				begin = -1
			}
		}
		if begin >= 0 {
			yield(begin, len(data))
		}
	}
}
