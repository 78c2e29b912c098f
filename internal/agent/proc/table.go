// Package proc runs processes in the guest for the host. A process belongs to the
// agent, not to a session: it continues after hatchd has disconnected, and the agent
// keeps its id and latest output.
//
// Processes and output are limited. An attached reader gets all output, and its process
// waits while the reader is behind; without a reader the oldest output is dropped.
// internal/guest/wire has the protocol. Start at [Table].
package proc

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/account"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Limits of a table.
const (
	maxRunning = 1024 // running processes
	maxEnded   = 64   // ended processes without readers
	maxRecent  = 512  // the same, with those that have ended within recentAge
	recentAge  = 30 * time.Second
)

// Table implements [wire.ProcessHandler].
type Table struct {
	log      *slog.Logger
	root     string // directory with etc/passwd and etc/group
	resetOOM bool   // the agent has an out-of-memory score that processes must not inherit
	limit    int64  // of all output, in bytes

	lastTimeout time.Duration // tests set a longer one
	recentAge   time.Duration // for which an ended process is kept for a late reader

	starting sync.Mutex // held during a start, so that concurrent ones cannot exceed maxRunning

	mu        sync.Mutex
	processes map[string]*process
	running   int
	started   int64 // number of all starts
	kept      int64 // memory of all output, in bytes
	closed    bool
	work      sync.WaitGroup
}

var _ wire.ProcessHandler = (*Table)(nil)

// New returns an empty table.
func New(log *slog.Logger) *Table {
	limit := int64(minOutput)
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		limit = min(max(int64(info.Totalram)*int64(info.Unit)/16, minOutput), maxOutput)
	}
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	resetOOM := err == nil && strings.TrimSpace(string(score)) != "0"
	return &Table{log: log, root: "/", resetOOM: resetOOM, limit: limit, lastTimeout: lastTimeout, recentAge: recentAge, processes: map[string]*process{}}
}

// Limits of Table.limit in bytes, which is a sixteenth of the guest's memory.
const (
	minOutput = 4 << 20
	maxOutput = 64 << 20
)

// Close kills all processes and waits for their goroutines.
func (t *Table) Close() error {
	t.mu.Lock()
	t.closed = true
	for _, p := range t.processes {
		p.remove()
	}
	t.mu.Unlock()
	t.work.Wait()
	return nil
}

// StartProcess implements [wire.ProcessHandler].
func (t *Table) StartProcess(spec wire.ProcessSpec) (wire.Process, error) {
	p, err := t.start(spec, nil)
	if err != nil {
		return wire.Process{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return p.describe(), nil
}

// ExecProcess implements [wire.ProcessHandler].
func (t *Table) ExecProcess(spec wire.ProcessSpec) (wire.Process, wire.ProcessAttachment, error) {
	r := &reader{}
	p, err := t.start(spec, r)
	if err != nil {
		return wire.Process{}, nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return p.describe(), r, nil
}

// start starts a process, and attaches r at its first byte unless r is nil.
func (t *Table) start(spec wire.ProcessSpec, r *reader) (*process, error) {
	l, err := t.prepare(spec)
	if err != nil {
		return nil, err
	}
	t.starting.Lock()
	defer t.starting.Unlock()
	if err := t.checkStart(spec.ID); err != nil {
		return nil, err
	}
	p := &process{table: t, spec: l.description(), background: r == nil, begun: now(), changed: sync.NewCond(&t.mu), readers: map[*reader]struct{}{}}
	if r != nil {
		r.p = p
		p.readers[r] = struct{}{}
	}
	files, err := l.start()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.started++
	p.number = t.started
	if err != nil {
		if err = p.neverRan(err); err != nil {
			return nil, err
		}
		t.processes[spec.ID] = p
		t.prune()
		return p, nil
	}
	t.processes[spec.ID] = p
	t.running++
	p.run(l, files)
	if t.closed {
		p.remove()
	}
	return p, nil
}

// checkStart refuses a start if the id is in use or too many processes run.
func (t *Table) checkStart(id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch _, exists := t.processes[id]; {
	case t.closed:
		return wire.Refuse(wire.CodeFailed, "the agent is shutting down")
	case exists:
		return wire.Refuse(wire.CodeInvalid, "a process %s exists already", id)
	case t.running >= maxRunning:
		return wire.Refuse(wire.CodeManyProcesses, "%d processes that the host has started are running in the guest; that is the limit", maxRunning)
	}
	return nil
}

// Commands returns how many processes run, except those with a terminal that began with a
// reader: the host knows of its readers, and without one a terminal has no user.
func (t *Table) Commands() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.processes {
		if p.exit == nil && (p.spec.TTY == nil || p.background) {
			n++
		}
	}
	return n
}

// find returns a process. The caller holds the mutex.
func (t *Table) find(id string) (*process, error) {
	p, ok := t.processes[id]
	if !ok {
		return nil, wire.Refuse(wire.CodeNoProcess, "the guest has no process %s", id)
	}
	return p, nil
}

// findRunning returns a process that has not ended. The caller holds the mutex.
func (t *Table) findRunning(id string) (*process, error) {
	p, err := t.find(id)
	if err == nil && p.exit != nil {
		err = wire.Refuse(wire.CodeEnded, "process %s has ended", id)
	}
	return p, err
}

// Process implements [wire.ProcessHandler].
func (t *Table) Process(id string) (wire.Process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.find(id)
	if err != nil {
		return wire.Process{}, err
	}
	return p.describe(), nil
}

// Processes implements [wire.ProcessHandler].
func (t *Table) Processes() []wire.Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*process
	for _, p := range t.processes {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *process) int { return cmp.Compare(b.number, a.number) })
	list := make([]wire.Process, 0, len(all))
	for _, p := range all {
		list = append(list, p.describe())
	}
	return list
}

// AttachProcess implements [wire.ProcessHandler].
func (t *Table) AttachProcess(id string, from int64) (wire.Process, wire.ProcessAttachment, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.find(id)
	if err != nil {
		return wire.Process{}, nil, err
	}
	if from < 0 || from > p.out.end {
		return wire.Process{}, nil, wire.Refuse(wire.CodeOffset, "process %s has written %d bytes; the offset %d is not among them", id, p.out.end, from)
	}
	r := &reader{p: p, at: from}
	p.readers[r] = struct{}{}
	return p.describe(), r, nil
}

// SignalProcess implements [wire.ProcessHandler].
func (t *Table) SignalProcess(id, name string) error {
	signal := unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG"))
	if signal == 0 {
		return wire.Refuse(wire.CodeSignal, "%q is not the name of a signal", name)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.findRunning(id)
	if err != nil {
		return err
	}
	if err := p.signal(signal); err != nil {
		return wire.Refuse(wire.CodeFailed, "cannot signal process %s: %v", id, err)
	}
	return nil
}

// ResizeProcess implements [wire.ProcessHandler].
func (t *Table) ResizeProcess(id string, size wire.Terminal) error {
	t.mu.Lock()
	p, err := t.findRunning(id)
	t.mu.Unlock()
	if err != nil {
		return err
	}
	if p.terminal == nil {
		return wire.Refuse(wire.CodeNoTerminal, "process %s has no terminal", id)
	}
	if err := resize(p.terminal, size); err != nil {
		return wire.Refuse(wire.CodeFailed, "cannot resize the terminal of process %s: %v", id, err)
	}
	return nil
}

// CloseProcessOutput implements [wire.ProcessHandler]. pump notices it, and ends.
func (t *Table) CloseProcessOutput(id string, stderr bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.find(id)
	if err != nil {
		return err
	}
	which := 0
	if stderr {
		which = 1
	}
	if which < len(p.streams) { // a terminal has no stderr of its own
		_ = p.streams[which].Close() // fails if it is closed already
	}
	return nil
}

// RemoveProcess implements [wire.ProcessHandler]. Attached readers still get all
// output.
func (t *Table) RemoveProcess(id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.find(id)
	if err != nil {
		return err
	}
	p.remove()
	return nil
}

// WriteProcess implements [wire.ProcessHandler].
func (t *Table) WriteProcess(ctx context.Context, id string, b []byte) (int, error) {
	in, err := t.inputOf(id)
	if err != nil {
		return 0, err
	}
	return in.write(ctx, b)
}

// EndProcessStdin implements [wire.ProcessHandler]. It is no error if stdin is closed
// already.
func (t *Table) EndProcessStdin(ctx context.Context, id string) error {
	in, err := t.inputOf(id)
	if err == nil {
		err = in.end(ctx)
	}
	if errors.Is(err, errStdinClosed) {
		return nil
	}
	return err
}

func (t *Table) inputOf(id string) (*input, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.find(id)
	if err != nil {
		return nil, err
	}
	if p.in == nil || p.exit != nil {
		return nil, errStdinClosed
	}
	return p.in, nil
}

// prune removes the oldest ended processes beyond maxEnded, unless they are recent, and
// those beyond maxRecent. The caller holds the mutex.
func (t *Table) prune() {
	var ended []*process
	for _, p := range t.processes {
		if p.complete() && len(p.readers) == 0 {
			ended = append(ended, p)
		}
	}
	if len(ended) <= maxEnded {
		return
	}
	slices.SortFunc(ended, func(a, b *process) int { return cmp.Compare(a.exit.At, b.exit.At) })
	old := now() - t.recentAge.Nanoseconds()
	for i, p := range ended[:len(ended)-maxEnded] {
		if len(ended)-i > maxRecent || p.exit.At <= old {
			p.remove()
		}
	}
}

// prepare validates a spec before the start.
func (t *Table) prepare(spec wire.ProcessSpec) (*launch, error) {
	user, err := account.Find(t.root, spec.User)
	if err != nil {
		return nil, wire.Refuse(wire.CodeUser, "%v", err)
	}
	l := &launch{spec: spec, user: user, resetOOM: t.resetOOM}
	return l, l.check()
}

// now returns the guest's time as in the protocol.
func now() int64 { return time.Now().UnixNano() }
