// Package console reads VMs' serial consoles: into log files of bounded size,
// into a scrollback in memory, and to attached clients.
//
// It knows neither VMMs (its caller supplies a dial function) nor HTTP. It stores
// a guest's output unchanged, escape sequences included. Start at [Consoles];
// hub.go is the life of one console.
package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
)

var _ vm.Consoles = (*Consoles)(nil)

// Names of the log files in a VM's directory; the second is the older half.
const (
	logName = "console.log"
	oldName = "console.log.1"
)

const dialTimeout = 5 * time.Second

// Consoles are the open consoles of all VMs.
type Consoles struct {
	dir      func(vmID string) string
	maxBytes int64 // of one log file
	log      *slog.Logger

	mu   sync.Mutex
	hubs map[string]*hub // by VM id
}

// New returns consoles that log into dir(vmID), in two files of up to maxBytes
// each.
func New(dir func(vmID string) string, maxBytes int64, log *slog.Logger) *Consoles {
	return &Consoles{dir: dir, maxBytes: maxBytes, log: log, hubs: map[string]*hub{}}
}

// Open implements vm.Consoles. It closes the VM's earlier console first.
func (c *Consoles) Open(vmID string, dial func(ctx context.Context) (net.Conn, error)) error {
	c.Close(vmID)
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return fmt.Errorf("cannot reach the console: %w", err)
	}
	log := c.log.With(logkey.VM, vmID)
	var once sync.Once // the guest could fill hatchd's log
	file, err := openLog(c.dir(vmID), c.maxBytes, func(err error) {
		once.Do(func() { log.Error("cannot keep the times of the console log", logkey.Error, err) })
	})
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	h := newHub(conn, file, log)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hubs[vmID] = h
	return nil
}

// Close implements vm.Consoles.
func (c *Consoles) Close(vmID string) {
	c.mu.Lock()
	h := c.hubs[vmID]
	delete(c.hubs, vmID)
	c.mu.Unlock()
	if h != nil {
		h.close()
	}
}

func (c *Consoles) hub(vmID string) *hub {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hubs[vmID]
}

// Log implements vm.Consoles. A VM that never ran has an empty log.
func (c *Consoles) Log(ctx context.Context, vmID string, q vm.LogQuery, w io.Writer) error {
	out := &lines{to: w, since: q.Since, stamps: q.Timestamps}
	h := c.hub(vmID)
	if h == nil {
		return writeTail(out, storedLog(c.dir(vmID)), q.Tail)
	}
	watch := h.subscribe()
	if watch == nil { // the console has just closed
		return writeTail(out, storedLog(c.dir(vmID)), q.Tail)
	}
	defer h.unsubscribe(watch)
	if err := writeTail(out, watch.history, q.Tail); err != nil || !q.Follow {
		return err
	}
	for {
		select {
		case output, ok := <-watch.live:
			if !ok {
				return nil
			}
			if err := out.write(output.text, output.at); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Attach implements vm.Consoles.
func (c *Consoles) Attach(_ context.Context, vmID string, readOnly bool) (io.ReadWriteCloser, error) {
	h := c.hub(vmID)
	if h == nil {
		return nil, errs.New(errs.Conflict, "console_closed", "the console of VM %s is not open", vmID).WithHint("start the VM first")
	}
	if !readOnly && !h.acquireWriter() {
		return nil, errs.New(errs.Conflict, "console_in_use", "another client is writing to the console of VM %s", vmID).
			WithHint("attach read-only, or try again when it has detached")
	}
	watch := h.subscribe()
	if watch == nil {
		if !readOnly {
			h.releaseWriter()
		}
		return nil, errs.New(errs.Conflict, "console_closed", "the console of VM %s is not open", vmID).WithHint("start the VM first")
	}
	watch.history.close()
	return &session{hub: h, watch: watch, writes: !readOnly, unread: watch.scrollback}, nil
}

// session is one client attached to a console.
type session struct {
	hub    *hub
	watch  *watcher
	writes bool
	unread []byte
	once   sync.Once
}

// Read returns the scrollback first, then new output; io.EOF when the console
// closed.
func (s *session) Read(p []byte) (int, error) {
	if len(s.unread) == 0 {
		output, ok := <-s.watch.live
		if !ok {
			return 0, io.EOF
		}
		s.unread = output.text
	}
	n := copy(p, s.unread)
	s.unread = s.unread[n:]
	return n, nil
}

// Write types into the guest's console.
func (s *session) Write(p []byte) (int, error) {
	if !s.writes {
		return 0, errs.New(errs.Forbidden, "console_read_only", "cannot write to the console: attached read-only")
	}
	return s.hub.write(p)
}

// Close detaches; a Read in progress returns.
func (s *session) Close() error {
	s.once.Do(func() {
		s.hub.unsubscribe(s.watch)
		if s.writes {
			s.hub.releaseWriter()
		}
	})
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
