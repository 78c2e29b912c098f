//go:build linux

package mapping

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/host/sparse"
)

const (
	pageSize  = sparse.PageSize
	chunkSize = sparse.ChunkSize // what is copied at a time
	copiers   = 4                // chunks copied at a time, at most
)

// Copied is how much was copied, in bytes.
type Copied struct {
	Changed int64 // pages that the process has changed
	Written int64 // pages that are not all zeros
}

// CopyTo replaces the content of dst with the memory; pages of zeros become holes.
// No other process may write to dst meanwhile. On error the content of dst is
// undefined.
func (m *Mapping) CopyTo(ctx context.Context, dst *os.File) (Copied, error) {
	from, err := m.open()
	if err != nil {
		return Copied{}, fmt.Errorf("cannot read the memory of process %d: %w", m.pid, err)
	}
	defer from.close()
	if err := errors.Join(dst.Truncate(0), dst.Truncate(m.size)); err != nil {
		return Copied{}, fmt.Errorf("cannot empty the file for the memory: %w", err)
	}
	c := copier{source: from, dst: dst, filled: make([]bool, (m.size+chunkSize-1)/chunkSize)}
	filled, err := sparse.Filled(from.file, m.size)
	if err != nil {
		return Copied{}, fmt.Errorf("cannot find the data of the file: %w", err)
	}
	for _, i := range filled {
		c.filled[i] = true
	}
	return c.copyAll(ctx, m.chunks())
}

// span is a range of the file, within one part, and its address in the process.
type span struct {
	offset  int64
	address uint64
	length  int // bytes, chunkSize at most
}

func (m *Mapping) chunks() (all []span) {
	for _, p := range m.parts {
		for done := uint64(0); done < p.end-p.begin; {
			at := p.offset + int64(done)
			n := min(chunkSize-uint64(at%chunkSize), p.end-p.begin-done)
			all = append(all, span{offset: at, address: p.begin + done, length: int(n)})
			done += n
		}
	}
	return all
}

// source is the files that memory is read from.
type source struct {
	file  *os.File // the mapped file
	pages *os.File // /proc/PID/pagemap
	mem   *os.File // /proc/PID/mem
}

func (m *Mapping) open() (s source, err error) {
	first := m.parts[0]
	for _, open := range []struct {
		to   **os.File
		name string
	}{
		{&s.file, fmt.Sprintf("map_files/%x-%x", first.begin, first.end)},
		{&s.pages, "pagemap"},
		{&s.mem, "mem"},
	} {
		f, openErr := os.Open(procPath(m.pid, open.name))
		if openErr != nil {
			s.close()
			return source{}, openErr
		}
		*open.to = f
	}
	st, err := s.file.Stat()
	if err == nil && (!st.Mode().IsRegular() || st.Size() != m.size) {
		err = fmt.Errorf("the file has %d bytes instead of %d", st.Size(), m.size)
	}
	if err != nil {
		s.close()
		return source{}, err
	}
	return s, nil
}

func (s source) close() {
	for _, f := range []*os.File{s.file, s.pages, s.mem} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// copier copies many chunks at a time.
type copier struct {
	source
	dst              *os.File
	filled           []bool // for each chunk of the file: whether it has data
	changed, written atomic.Int64
}

func (c *copier) copyAll(ctx context.Context, chunks []span) (Copied, error) {
	buffers := sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}
	each, within := errgroup.WithContext(ctx)
	each.SetLimit(min(copiers, runtime.NumCPU()))
	for _, s := range chunks {
		if within.Err() != nil {
			break
		}
		each.Go(func() error {
			buf := buffers.Get().(*[]byte)
			defer buffers.Put(buf)
			return c.copy(s, (*buf)[:s.length])
		})
	}
	if err := each.Wait(); err != nil {
		return Copied{}, err
	}
	return Copied{Changed: c.changed.Load(), Written: c.written.Load()}, ctx.Err()
}

// copy assembles a chunk from the file and from the process's own pages, and
// writes it without pages of zeros.
func (c *copier) copy(s span, data []byte) error {
	changed, err := c.changedPages(s)
	if err != nil {
		return err
	}
	inFile := c.filled[s.offset/chunkSize]
	if !inFile && len(changed) == 0 {
		return nil
	}
	if inFile {
		if _, err := c.file.ReadAt(data, s.offset); err != nil {
			return fmt.Errorf("cannot read the mapped file: %w", err)
		}
	} else {
		clear(data)
	}
	for _, r := range changed {
		if _, err := c.mem.ReadAt(data[r.begin:r.end], int64(s.address)+int64(r.begin)); err != nil {
			return fmt.Errorf("cannot read a changed page: %w", err)
		}
		c.changed.Add(int64(r.end - r.begin))
	}
	return c.write(s.offset, data)
}

func (c *copier) write(offset int64, data []byte) error {
	for begin, end := range sparse.Runs(data) {
		if _, err := c.dst.WriteAt(data[begin:end], offset+int64(begin)); err != nil {
			return fmt.Errorf("cannot write memory: %w", err)
		}
		c.written.Add(int64(end - begin))
	}
	return nil
}

// Flags of an entry of /proc/PID/pagemap.
const (
	pageIsFiles = 1 << 61 // it is the file's, or shared
	pageSwapped = 1 << 62
	pagePresent = 1 << 63
	entrySize   = 8
)

// changedPages returns the runs of the span's pages that the process has changed.
func (c *copier) changedPages(s span) (changed []run, err error) {
	entries := make([]byte, s.length/pageSize*entrySize)
	if _, err := io.ReadFull(io.NewSectionReader(c.pages, int64(s.address/pageSize*entrySize), int64(len(entries))), entries); err != nil {
		return nil, fmt.Errorf("cannot find the changed pages: %w", err)
	}
	for page := range s.length / pageSize {
		entry := binary.NativeEndian.Uint64(entries[page*entrySize:])
		if !isOwn(entry) {
			continue
		}
		at := page * pageSize
		if last := len(changed) - 1; last >= 0 && changed[last].end == at {
			changed[last].end += pageSize
		} else {
			changed = append(changed, run{at, at + pageSize})
		}
	}
	return changed, nil
}

func isOwn(entry uint64) bool { return entry&(pagePresent|pageSwapped) != 0 && entry&pageIsFiles == 0 }

// run is a run of pages; begin and end are offsets in a chunk, in bytes.
type run struct{ begin, end int }
