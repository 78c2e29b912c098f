package fake

import (
	"context"
	"io"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

var _ vm.Consoles = (*Consoles)(nil)

// Consoles records which consoles are open; logs are empty. Calls: Console.
type Consoles struct {
	Calls *Calls

	mu   sync.Mutex
	open map[string]*console // by VM id
}

type console struct{ written bool } // a client may write

// VMs returns the ids of VMs whose console is open, sorted.
func (c *Consoles) VMs() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.open))
}

// Open implements vm.Consoles.
func (c *Consoles) Open(vmID string, _ func(context.Context) (net.Conn, error)) error {
	if err := c.Calls.Begin("Console"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[string]*console{}
	}
	c.open[vmID] = &console{}
	return nil
}

// Close implements vm.Consoles.
func (c *Consoles) Close(vmID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, vmID)
}

// Log implements vm.Consoles.
func (*Consoles) Log(context.Context, string, vm.LogQuery, io.Writer) error { return nil }

// VMMLog implements vm.Consoles.
func (*Consoles) VMMLog(context.Context, string, int, bool, io.Writer) error { return nil }

// Attach implements vm.Consoles: the console prints nothing and ignores input.
func (c *Consoles) Attach(_ context.Context, vmID string, readOnly bool) (io.ReadWriteCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	open := c.open[vmID]
	switch {
	case open == nil:
		return nil, errs.New(errs.Conflict, "console_closed", "the console of VM %s is not open", vmID)
	case readOnly:
		return &attached{}, nil
	case open.written:
		return nil, errs.New(errs.Conflict, "console_in_use", "another client is writing to the console of VM %s", vmID)
	}
	open.written = true
	return &attached{release: sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		open.written = false
	})}, nil
}

// attached is a client of a silent console.
type attached struct{ release func() } // nil: read-only

func (*attached) Read([]byte) (int, error) { return 0, io.EOF }

func (a *attached) Write(p []byte) (int, error) {
	if a.release == nil {
		return 0, errs.New(errs.Forbidden, "console_read_only", "cannot write to the console: attached read-only")
	}
	return len(p), nil
}

func (a *attached) Close() error {
	if a.release != nil {
		a.release()
	}
	return nil
}
