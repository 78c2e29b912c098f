package fake

import (
	"fmt"
	"sync"
)

// Calls are the calls that doubles get, by name: a test makes them fail, counts
// them, or acts before one is done. Doubles may share one. The zero value and nil
// let every call through.
type Calls struct {
	mu     sync.Mutex
	faults map[string]fault
	before map[string]func()
	counts map[string]int
}

type fault struct {
	err   error
	times int // left
}

// FailNext makes the next call of this name fail.
func (c *Calls) FailNext(name string) { c.Fail(name, 1, fmt.Errorf("injected: %s", name)) }

// Fail makes the next calls of this name fail with err.
func (c *Calls) Fail(name string, times int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.faults == nil {
		c.faults = map[string]fault{}
	}
	c.faults[name] = fault{err, times}
}

// Pending reports whether the next call of this name will fail.
func (c *Calls) Pending(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.faults[name].times > 0
}

// Withdraw lets calls of this name through again, and reports whether the next one
// would have failed.
func (c *Calls) Withdraw(name string) bool {
	pending := c.Pending(name)
	c.Fail(name, 0, nil)
	return pending
}

// Before has f called before each call of this name; nil: nothing.
func (c *Calls) Before(name string, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.before == nil {
		c.before = map[string]func(){}
	}
	c.before[name] = f
}

// Count returns how many calls of this name there were, failed ones included.
func (c *Calls) Count(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[name]
}

// Begin is called by a double at each call. It returns the error injected for it.
func (c *Calls) Begin(name string) error {
	if c == nil {
		return nil
	}
	f, err := c.begin(name)
	if f != nil {
		f()
	}
	return err
}

func (c *Calls) begin(name string) (before func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[name]++
	next := c.faults[name]
	if next.times > 0 {
		err = next.err
		next.times--
		c.faults[name] = next
	}
	return c.before[name], err
}
