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

// PageSize is the unit in bytes of what copies leave out if it is all zeros.
const PageSize = 4096

// copiers is how many chunks are copied at a time: reading, summing and writing
// one keeps a processor busy.
const copiers = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Copy copies the content of src, which has size bytes, to dst, which is one hole
// of the same size.
func (p Part) Copy(ctx context.Context, dst, src *os.File, size int64) error {
	_, err := p.transfer(ctx, src, size, dst.WriteAt, unsummed)
	return err
}

// CopyAndSum is Copy that returns the checksums. It takes about a fifth longer.
func (p Part) CopyAndSum(ctx context.Context, dst, src *os.File, size int64) (Index, error) {
	return p.transfer(ctx, src, size, dst.WriteAt, checksum)
}

// Sum returns the checksums of src, which has size bytes.
func (p Part) Sum(ctx context.Context, src *os.File, size int64) (Index, error) {
	return p.transfer(ctx, src, size, discard, checksum)
}

// Open opens a file that must have the size of x. Errors: Unusable.
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

// CopyChecked copies a file that Open opened and compares it with x. On error the
// content of dst is undefined. Errors: Unusable.
func (p Part) CopyChecked(ctx context.Context, dst, src *os.File, x Index) error {
	return p.transferChecked(ctx, src, x, dst.WriteAt)
}

// Check reads a file that Open opened and compares it with x. Errors: Unusable.
func (p Part) Check(ctx context.Context, src *os.File, x Index) error {
	return p.transferChecked(ctx, src, x, discard)
}

// writeAt is the method of io.WriterAt.
type writeAt func(data []byte, at int64) (int, error)

func discard(data []byte, _ int64) (int, error) { return len(data), nil }

func checksum(data []byte) int64 { return int64(crc32.Checksum(data, castagnoli)) }

func unsummed([]byte) int64 { return 0 }

func (p Part) transferChecked(ctx context.Context, src *os.File, x Index, write writeAt) error {
	now, err := p.transfer(ctx, src, x.Size, write, checksum)
	if err == nil && !slices.Equal(now.Sums, x.Sums) {
		return unusable(nil, "its %s is damaged", p)
	}
	return err
}

// transfer passes the content of src to write and returns the sum of each chunk.
func (p Part) transfer(ctx context.Context, src *os.File, size int64, write writeAt, sum func([]byte) int64) (Index, error) {
	filled, err := Filled(src, size)
	if err != nil {
		return Index{}, fmt.Errorf("cannot find the data of %s: %w", p, err)
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

// transferChunk reads data and passes it on without pages of zeros. It reports
// whether there were no other pages.
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

// Filled lists the chunks of a file of size bytes that are not holes.
func Filled(f *os.File, size int64) (filled []int, err error) {
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // the rest is a hole
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

// Runs yields the begin and end of each run of pages that are not all zeros.
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
