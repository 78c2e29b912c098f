package proc

import (
	"context"
	"sort"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Limits of output, in bytes.
const (
	maxKept  = 1 << 20  // memory of one process's output
	maxAhead = 64 << 10 // how far a process may be ahead of its slowest reader
	minChunk = 256
	maxChunk = 16 << 10
	overhead = 64 // memory of a chunk, without its bytes
)

// output is the latest output of a process, in order. The table's mutex guards it.
type output struct {
	chunks []chunk
	end    int64 // bytes written so far
	kept   int64 // memory of the chunks, in bytes
}

// chunk is output of one stream. Its bytes never change, so that readers can use them
// without the mutex.
type chunk struct {
	stderr bool
	start  int64 // offset of its first byte
	data   []byte
}

func (c chunk) end() int64  { return c.start + int64(len(c.data)) }
func (c chunk) cost() int64 { return int64(cap(c.data)) + overhead }

// append adds bytes, and returns the memory that it has allocated.
func (o *output) append(stderr bool, data []byte) int64 {
	before := o.kept
	size := minChunk
	for len(data) > 0 {
		if len(o.chunks) > 0 {
			last := &o.chunks[len(o.chunks)-1]
			size = min(2*cap(last.data), maxChunk)
			if free := cap(last.data) - len(last.data); last.stderr == stderr && free > 0 {
				n := min(free, len(data))
				last.data = append(last.data, data[:n]...)
				o.end += int64(n)
				data = data[n:]
				continue
			}
		}
		size = min(max(size, len(data)), maxChunk)
		c := chunk{stderr: stderr, start: o.end, data: make([]byte, 0, size)}
		o.chunks = append(o.chunks, c)
		o.kept += c.cost()
	}
	return o.kept - before
}

// drop drops the oldest chunk, and returns the memory that it has freed.
func (o *output) drop() int64 {
	freed := o.chunks[0].cost()
	o.chunks[0] = chunk{}
	o.chunks = o.chunks[1:]
	o.kept -= freed
	return freed
}

// read returns the output at an offset: bytes of one stream, or how many bytes were
// dropped. Neither means that the process has not written more.
func (o *output) read(at int64) (stderr bool, data []byte, lost int64) {
	i := sort.Search(len(o.chunks), func(i int) bool { return o.chunks[i].end() > at })
	if i == len(o.chunks) {
		return false, nil, o.end - at
	}
	c := o.chunks[i]
	if c.start > at {
		return false, nil, c.start - at
	}
	return c.stderr, c.data[at-c.start:], 0
}

// write adds output of the process. It waits for readers that are maxAhead behind: then
// the pipe fills up, and blocks the process.
func (p *process) write(stderr bool, data []byte) {
	t := p.table
	t.mu.Lock()
	defer t.mu.Unlock()
	for p.out.end-p.slowest() >= maxAhead {
		p.changed.Wait()
	}
	if p.unreadable() {
		p.out.end += int64(len(data))
		return
	}
	t.kept += p.out.append(stderr, data)
	for p.out.kept > maxKept {
		t.kept -= p.out.drop()
	}
	t.shrink()
	p.changed.Broadcast()
}

// slowest returns the offset of the slowest reader.
func (p *process) slowest() int64 {
	at := p.out.end
	for r := range p.readers {
		at = min(at, r.at)
	}
	return at
}

// shrink drops the oldest output of the process with the most, until the output of all
// processes is within the limit. It keeps output that readers have not read yet, which
// maxAhead limits.
func (t *Table) shrink() {
	for t.kept > t.limit {
		var most *process
		for _, p := range t.processes {
			read := len(p.out.chunks) > 0 && p.out.chunks[0].end() <= p.slowest()
			if read && (most == nil || p.out.kept > most.out.kept) {
				most = p
			}
		}
		if most == nil {
			return
		}
		t.kept -= most.out.drop()
	}
}

// reader implements [wire.ProcessAttachment].
type reader struct {
	p  *process
	at int64 // offset
}

// Next implements [wire.ProcessAttachment].
func (r *reader) Next(ctx context.Context, idle func() error) (wire.ProcessChunk, error) {
	p := r.p
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if c, ok := r.poll(); ok {
		return c, nil
	}
	p.table.mu.Unlock()
	err := idle()
	p.table.mu.Lock()
	if err != nil {
		return wire.ProcessChunk{}, err
	}
	stop := context.AfterFunc(ctx, p.wake)
	defer stop()
	for ctx.Err() == nil {
		if c, ok := r.poll(); ok {
			return c, nil
		}
		p.changed.Wait()
	}
	return wire.ProcessChunk{}, ctx.Err()
}

// poll returns the next chunk, if any.
func (r *reader) poll() (wire.ProcessChunk, bool) {
	p := r.p
	if r.at == p.out.end {
		if !p.complete() {
			return wire.ProcessChunk{}, false
		}
		return wire.ProcessChunk{Exit: p.exit}, true
	}
	stderr, data, lost := p.out.read(r.at)
	r.at += int64(len(data)) + lost
	p.changed.Broadcast() // the process may have waited for this reader
	return wire.ProcessChunk{Stderr: stderr, Data: data, Lost: lost}, true
}

// Close implements [wire.ProcessAttachment].
func (r *reader) Close() {
	t := r.p.table
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(r.p.readers, r)
	r.p.changed.Broadcast()
	r.p.free()
	t.prune()
}
