package operation

import (
	"context"
	"sync"
)

// locks hands out one lock per VM. An entry exists only while it has a holder
// or a waiter.
type locks struct {
	mu sync.Mutex
	by map[string]*lockEntry
}

type lockEntry struct {
	token chan struct{} // capacity 1; full while held

	// Guarded by locks.mu.
	users  int           // holders and waiters
	urgent int           // waiters that the holder shall not let wait
	urged  chan struct{} // closed while there are any
}

func newEntry() *lockEntry {
	return &lockEntry{token: make(chan struct{}, 1), urged: make(chan struct{})}
}

func newLocks() *locks { return &locks{by: map[string]*lockEntry{}} }

// lock waits for id's lock until ctx is done. An urgent waiter cuts short what its holder
// waits for; see urged.
func (l *locks) lock(ctx context.Context, id string, urgent bool) (unlock func(), err error) {
	l.mu.Lock()
	e := l.by[id]
	if e == nil {
		e = newEntry()
		l.by[id] = e
	}
	e.users++
	if urgent {
		if e.urgent++; e.urgent == 1 {
			close(e.urged)
		}
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if e.urgent--; e.urgent == 0 {
				e.urged = make(chan struct{})
			}
		}()
	}
	l.mu.Unlock()

	select {
	case e.token <- struct{}{}:
		return func() { <-e.token; l.leave(id, e) }, nil
	case <-ctx.Done():
		l.leave(id, e)
		return nil, ctx.Err()
	}
}

// tryLock takes id's lock if it has no holder and no waiter.
func (l *locks) tryLock(id string) (unlock func(), free bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by[id] != nil {
		return nil, false
	}
	e := newEntry()
	e.users = 1
	e.token <- struct{}{}
	l.by[id] = e
	return func() { <-e.token; l.leave(id, e) }, true
}

func (l *locks) leave(id string, e *lockEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(l.by, id)
	}
}

// urged returns a channel for the holder of id's lock that is closed when another
// operation shall not wait for it.
func (l *locks) urged(id string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.by[id]; e != nil {
		return e.urged
	}
	return nil
}

func (l *locks) inUse(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.by[id] != nil
}

// changes tells waiters that a VM has changed.
type changes struct {
	mu  sync.Mutex
	by  map[string]chan struct{}
	all chan struct{} // closed at a change of any VM
}

func newChanges() *changes {
	return &changes{by: map[string]chan struct{}{}, all: make(chan struct{})}
}

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

func (c *changes) nextOfAny() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all
}

func (c *changes) announce(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.all)
	c.all = make(chan struct{})
	if ch := c.by[id]; ch != nil {
		close(ch)
		delete(c.by, id)
	}
}
