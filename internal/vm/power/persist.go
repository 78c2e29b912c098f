package power

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/operation"
)

// persister keeps track of the background work that makes the memory of
// sleeping VMs durable, one VM at a time.
type persister struct {
	turn chan struct{} // capacity 1; full while memory is copied

	last     chan struct{} // closed when a failed copy is not repeated any more
	onceLast sync.Once

	mu     sync.Mutex
	by     map[string]*persisting // by VM id
	tried  chan struct{}          // closed and replaced when any attempt has ended
	closed bool
}

// persisting is the work for one VM.
type persisting struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when the work has ended
	failed bool          // before; it is repeated
}

func newPersister() *persister {
	return &persister{turn: make(chan struct{}, 1), last: make(chan struct{}), by: map[string]*persisting{}, tried: make(chan struct{})}
}

// begin registers work for a VM, unless the persister is closed.
func (p *persister) begin(id string) (ctx context.Context, work *persisting, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, false
	}
	ctx, cancel := context.WithCancel(context.Background())
	work = &persisting{cancel: cancel, done: make(chan struct{})}
	p.by[id] = work
	return ctx, work, true
}

func (p *persister) end(id string, work *persisting) {
	work.cancel()
	p.mu.Lock()
	if p.by[id] == work {
		delete(p.by, id)
	}
	p.announceLocked()
	p.mu.Unlock()
	close(work.done)
}

// announceLocked tells callers of await that an attempt has ended.
func (p *persister) announceLocked() {
	close(p.tried)
	p.tried = make(chan struct{})
}

// await waits until the memory of one more sleeping VM is on disk, or an attempt has
// failed, and reports whether any was on its way there. Memory that an attempt has failed
// for is not, nor that of the VM whose lock the caller holds: it is freed under that lock.
// The error is ctx's.
func (p *persister) await(ctx context.Context) (waited bool, err error) {
	p.mu.Lock()
	tried := p.tried
	own := operation.Held(ctx)
	for id, work := range p.by {
		waited = waited || id != own && !work.failed
	}
	p.mu.Unlock()
	if !waited {
		return false, nil
	}
	select {
	case <-tried:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// stop cancels the work for a VM, if there is any, and waits for its end.
func (p *persister) stop(id string) {
	p.mu.Lock()
	work := p.by[id]
	p.mu.Unlock()
	if work != nil {
		work.cancel()
		<-work.done
	}
}

// finish waits until all work has ended or ctx is done. Work that has failed before
// is tried once more, and from now on no work twice.
func (p *persister) finish(ctx context.Context) {
	p.onceLast.Do(func() { close(p.last) })
	p.mu.Lock()
	all := slices.Collect(maps.Values(p.by))
	p.mu.Unlock()
	for _, work := range all {
		select {
		case <-work.done:
		case <-ctx.Done():
		}
	}
}

// isLast reports whether finish was called.
func (p *persister) isLast() bool {
	select {
	case <-p.last:
		return true
	default:
		return false
	}
}

// close cancels all work and refuses more.
func (p *persister) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, work := range p.by {
		work.cancel()
	}
}

// persist makes the memory of a VM durable in the background, from the start.
// Precondition: the VM's lock is held.
func (s *Service) persist(v vm.VM) {
	s.persister.stop(v.ID)
	ctx, work, ok := s.persister.begin(v.ID)
	if !ok {
		return // the next start of hatchd does it
	}
	s.Runner.Go(func() {
		defer s.persister.end(v.ID, work)
		s.persistUntilDone(ctx, v, work)
	})
}

// persistBackoff is the wait before the next attempt after a full disk.
const persistBackoff = time.Minute

func (s *Service) persistUntilDone(ctx context.Context, v vm.VM, work *persisting) {
	for {
		began, last := time.Now(), s.persister.isLast()
		bytes, err := s.persistOnce(ctx, v)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			s.Log.Info("memory of a sleeping vm saved to disk", logkey.VM, v.ID, logkey.Bytes, bytes, logkey.Took, time.Since(began))
			s.recordDurable(ctx, v.ID, bytes)
			return
		}
		if last {
			s.Log.Error("cannot save the memory of a sleeping vm to disk before the host goes", logkey.VM, v.ID, logkey.Error, err)
			s.RecordUnsaved(ctx, v.ID, errs.Public(err))
			return
		}
		s.persister.mu.Lock()
		work.failed = true
		s.persister.announceLocked()
		s.persister.mu.Unlock()
		s.Log.Warn("cannot save the memory of a sleeping vm to disk; it stays in RAM", logkey.VM, v.ID, logkey.Error, err, logkey.RetryIn, persistBackoff)
		select {
		case <-ctx.Done():
			return
		case <-s.persister.last:
		case <-time.After(persistBackoff):
		}
	}
}

// RecordUnsaved stores why the memory of a sleeping VM is not on disk when its host
// goes down. It changes nothing if it is.
func (s *Service) RecordUnsaved(ctx context.Context, id, why string) {
	if _, err := s.Runner.Update(ctx, id, vm.ToUnsaved(why)); err != nil && !errs.Is(err, errs.NotFound) {
		s.Log.Error("cannot store that memory is not on disk", logkey.VM, id, logkey.Error, err)
	}
}

// persistOnce waits for its turn: two copies at a time would slow each other down.
func (s *Service) persistOnce(ctx context.Context, v vm.VM) (bytes int64, err error) {
	select {
	case s.persister.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-s.persister.turn }()
	err = s.Capacity.EvictFor(ctx, v.OwnerID, func() error {
		// First the disk: the guest's memory takes what was written to it for stored.
		if err = s.Files.Sync(ctx, v.ID); err == nil {
			bytes, err = s.Memories.Persist(ctx, v.ID)
		}
		return err
	})
	return bytes, err
}

// recordDurable stores that the memory of a VM is on disk, and then frees its
// RAM. A wake in the meantime has cancelled ctx.
func (s *Service) recordDurable(ctx context.Context, id string, bytes int64) {
	unlock, err := s.Runner.Lock(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	v, err := s.Runner.Update(context.WithoutCancel(ctx), id, vm.ToDurable(bytes))
	if err != nil || !v.Asleep() || v.Restoring() {
		if err != nil && !errs.Is(err, errs.NotFound) {
			s.Log.Error("cannot store that memory is on disk", logkey.VM, id, logkey.Error, err)
		}
		return
	}
	if err := s.Memories.Release(id); err != nil {
		s.Log.Error("cannot free the RAM of a sleeping vm", logkey.VM, id, logkey.Error, err)
	}
}
