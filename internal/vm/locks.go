package vm

import (
	"context"
	"sync"
)

// locks hands out one lock per VM. Entries exist only while somebody holds or
// awaits them.
type locks struct {
	mu sync.Mutex
	by map[string]*lockEntry
}

type lockEntry struct {
	token chan struct{} // capacity 1; full while held
	users int           // holders and waiters, guarded by locks.mu
}

func newLocks() *locks { return &locks{by: map[string]*lockEntry{}} }

// lock waits for id's lock until ctx is done. The returned function gives it back.
func (l *locks) lock(ctx context.Context, id string) (unlock func(), err error) {
	l.mu.Lock()
	e := l.by[id]
	if e == nil {
		e = &lockEntry{token: make(chan struct{}, 1)}
		l.by[id] = e
	}
	e.users++
	l.mu.Unlock()

	select {
	case e.token <- struct{}{}:
		return func() { <-e.token; l.leave(id, e) }, nil
	case <-ctx.Done():
		l.leave(id, e)
		return nil, ctx.Err()
	}
}

func (l *locks) leave(id string, e *lockEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(l.by, id)
	}
}

// changes wakes whoever waits for a VM to change.
type changes struct {
	mu sync.Mutex
	by map[string]chan struct{}
}

func newChanges() *changes { return &changes{by: map[string]chan struct{}{}} }

// next returns a channel that is closed at the VM's next change. Take it
// before reading the VM, so that no change falls between.
func (c *changes) next(id string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.by[id]
	if ch == nil {
		ch = make(chan struct{})
		c.by[id] = ch
	}
	return ch
}

func (c *changes) announce(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.by[id]; ch != nil {
		close(ch)
		delete(c.by, id)
	}
}
