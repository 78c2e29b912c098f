package vm

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// canSleep reports whether the VM's driver can save machines.
func (s *Service) canSleep(v VM) bool {
	d, ok := s.deps.Drivers[v.Driver]
	return ok && d.Info().Capabilities.Save
}

// uid is the user that the VM's VMM runs as; 0 means hatchd's own.
func (s *Service) uid(v VM) int {
	if s.settings.OwnUser {
		return v.Lease.UID
	}
	return 0
}

func (s *Service) makeMemory(_ context.Context, b *boot) error {
	if !s.canSleep(b.vm) {
		return nil
	}
	return s.deps.Memories.Make(b.vm.ID, b.vm.MemMiB, s.uid(b.vm))
}

func (s *Service) releaseMemory(_ context.Context, b *boot) {
	if !b.stuck {
		s.dropMemory(b.vm.ID)
	}
}

// dropMemory drops all memory of a VM that has no machine, in RAM and on disk.
func (s *Service) dropMemory(id string) {
	if err := errors.Join(s.deps.Memories.Release(id), s.deps.Memories.Forget(id)); err != nil {
		s.deps.Log.Error("cannot drop the memory of a VM", "vm", id, "err", err)
	}
}

// persister makes the memory of sleeping VMs durable, one at a time.
type persister struct {
	turn chan struct{} // capacity 1; full while one is at work

	mu     sync.Mutex
	by     map[string]*persisting // by VM id
	closed bool
}

// persisting is the work for one VM.
type persisting struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when the work has ended
}

func newPersister() persister {
	return persister{turn: make(chan struct{}, 1), by: map[string]*persisting{}}
}

// begin registers work for a VM, unless the service closes.
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
	p.mu.Unlock()
	close(work.done)
}

// stop ends the work for a VM, if there is any, and waits for its end.
func (p *persister) stop(id string) {
	p.mu.Lock()
	work := p.by[id]
	p.mu.Unlock()
	if work != nil {
		work.cancel()
		<-work.done
	}
}

// close tells all work to end, and lets none begin any more.
func (p *persister) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, work := range p.by {
		work.cancel()
	}
}

// persist makes the memory of a VM that has just gone to sleep durable, in the
// background. Precondition: the VM's lock is held.
func (s *Service) persist(id string) {
	s.persister.stop(id)
	ctx, work, ok := s.persister.begin(id)
	if !ok {
		return // the next start of the daemon does it
	}
	s.work.Go(func() {
		defer s.persister.end(id, work)
		s.persistUntilDone(ctx, id)
	})
}

// stopPersisting keeps the memory of a sleeping VM as it is, where it is.
func (s *Service) stopPersisting(id string) { s.persister.stop(id) }

// persistRetry is the pause after a disk was full.
const persistRetry = time.Minute

func (s *Service) persistUntilDone(ctx context.Context, id string) {
	for {
		began := time.Now()
		bytes, err := s.persistOnce(ctx, id)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			s.deps.Log.Info("the memory of a sleeping vm is on disk", "vm", id, "bytes", bytes, "took", time.Since(began))
			s.madeDurable(ctx, id, bytes)
			return
		}
		s.deps.Log.Warn("the memory of a sleeping vm stays in RAM", "vm", id, "err", err, "retry_in", persistRetry)
		select {
		case <-ctx.Done():
			return
		case <-time.After(persistRetry):
		}
	}
}

// persistOnce waits for its turn: two copies at a time would only disturb each other.
func (s *Service) persistOnce(ctx context.Context, id string) (bytes int64, err error) {
	select {
	case s.persister.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-s.persister.turn }()
	err = s.withRoom(ctx, "", func() error {
		bytes, err = s.deps.Memories.Persist(ctx, id)
		return err
	})
	return bytes, err
}

// madeDurable stores that the memory of a VM is on disk, and then gives its
// RAM back. Whoever wakes the VM meanwhile has cancelled ctx.
func (s *Service) madeDurable(ctx context.Context, id string, bytes int64) {
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	ctx = context.WithoutCancel(ctx)
	v, err := s.update(ctx, id, func(v *VM) {
		if v.Sleep != nil && !v.Sleep.Staged {
			v.Sleep = &Sleep{At: v.Sleep.At, Durable: true, Bytes: bytes}
		}
	})
	if err != nil || v.Sleep == nil || v.Sleep.Staged {
		if err != nil && !errs.Is(err, errs.NotFound) {
			s.deps.Log.Error("cannot store that memory is on disk", "vm", id, "err", err)
		}
		return
	}
	if err := s.deps.Memories.Release(id); err != nil {
		s.deps.Log.Error("cannot give the RAM of a sleeping vm back", "vm", id, "err", err)
	}
}

// releaseUnused gives RAM back that no VM uses any more: a machine or a daemon
// ended without doing so.
func (s *Service) releaseUnused(ctx context.Context) error {
	held, err := s.deps.Memories.Held()
	if err != nil {
		return err
	}
	faults := []error{}
	for _, id := range held {
		if !s.busy(id) {
			faults = append(faults, s.releaseIfUnused(ctx, id))
		}
	}
	return errors.Join(faults...)
}

func (s *Service) releaseIfUnused(ctx context.Context, id string) error {
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	v, err := s.deps.Store.VM(ctx, "", id) // the zero VM when there is none
	if err := ignoreNotFound(err); err != nil {
		return err
	}
	if v.Machine != nil || v.State.Live() || (v.Sleep != nil && !v.Sleep.Durable) {
		return nil
	}
	s.deps.Log.Warn("releasing memory that no vm uses", "vm", id)
	return s.deps.Memories.Release(id)
}
