package proc

import (
	"context"
	"sort"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Bounds of kept output, in bytes.
const (
	maxKept  = 1 << 20  // of one process
	maxAhead = 64 << 10 // a process may be ahead of its slowest reader by so much
	minChunk = 256
	maxChunk = 16 << 10
	overhead = 64 // of a chunk, beside its bytes
)

// output is the latest of what a process has written, in order. The table's
// lock guards it.
type output struct {
	chunks []chunk
	end    int64 // bytes written so far
	kept   int64 // bytes of memory
}

// chunk is a piece of output on one channel. Bytes in it never change: readers
// use them without a lock.
type chunk struct {
	stderr bool
	start  int64 // offset of its first byte
	data   []byte
}

func (c chunk) end() int64  { return c.start + int64(len(c.data)) }
func (c chunk) cost() int64 { return int64(cap(c.data)) + overhead }

// append adds bytes and returns how much memory that took.
func (o *output) append(stderr bool, data []byte) int64 {
	before := o.kept
	size := minChunk
	for len(data) > 0 {
		if len(o.chunks) > 0 {
			last := &o.chunks[len(o.chunks)-1]
			size = min(2*cap(last.data), maxChunk)
			if room := cap(last.data) - len(last.data); last.stderr == stderr && room > 0 {
				n := min(room, len(data))
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

// drop forgets the oldest chunk and returns how much memory that frees.
func (o *output) drop() int64 {
	freed := o.chunks[0].cost()
	o.chunks[0] = chunk{}
	o.chunks = o.chunks[1:]
	o.kept -= freed
	return freed
}

// read returns what is at offset at: bytes of one channel, or how many are
// lost before the first that is kept. Neither means that there is nothing yet.
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

// write keeps what the process has written. It waits for readers that are
// behind, as a full pipe would.
func (p *process) write(stderr bool, data []byte) {
	t := p.table
	t.mu.Lock()
	defer t.mu.Unlock()
	for p.out.end-p.slowest() >= maxAhead {
		p.changed.Wait()
	}
	if p.forgotten() {
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

// slowest is the offset up to which all attached readers have read.
func (p *process) slowest() int64 {
	at := p.out.end
	for r := range p.readers {
		at = min(at, r.at)
	}
	return at
}

// shrink drops the oldest output of those that keep most, until all together
// keep no more than they may. What an attached reader has still to read stays:
// there is little of it, because its process waits.
func (t *Table) shrink() {
	for t.kept > t.limit {
		var most *process
		for _, p := range t.processes {
			if (most == nil || p.out.kept > most.out.kept) && p.droppable() {
				most = p
			}
		}
		if most == nil {
			return
		}
		t.kept -= most.out.drop()
	}
}

// droppable reports whether no attached reader needs the oldest chunk.
func (p *process) droppable() bool {
	return len(p.out.chunks) > 0 && p.out.chunks[0].end() <= p.slowest()
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
	if c, ok := r.take(); ok {
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
		if c, ok := r.take(); ok {
			return c, nil
		}
		p.changed.Wait()
	}
	return wire.ProcessChunk{}, ctx.Err()
}

// take returns the next chunk if there is one.
func (r *reader) take() (wire.ProcessChunk, bool) {
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
	r.p.settle()
	t.prune()
}
