// Package proc runs the processes that the host asks for, in the guest. A
// process belongs to the agent, not to a session: it goes on when the host has
// left, its latest output is kept, and it is found again by its id.
//
// What is kept is bounded, by number and in bytes. An attached reader gets all
// output, and holds the process up while it is behind; with nobody attached
// the oldest output goes. Start at [Table], which is what the protocol's
// requests come to.
package proc

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/account"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Bounds of a table.
const (
	maxRunning = 1024
	maxEnded   = 64 // without those that are still being read
)

// Table implements [wire.ProcessHandler].
type Table struct {
	log    *slog.Logger
	root   string // whose accounts count
	spared bool   // the kernel kills the agent last when memory is short; no process is
	limit  int64  // bytes of output kept of all processes

	lastWait time.Duration // for output of a process that has ended; tests have more

	starting sync.Mutex // held while a process is started, so that all are counted

	mu        sync.Mutex
	processes map[string]*process
	running   int
	started   int64 // so many, ever
	kept      int64 // bytes of output
	closed    bool
	work      sync.WaitGroup
}

var _ wire.ProcessHandler = (*Table)(nil)

// New returns an empty table.
func New(log *slog.Logger) *Table {
	return &Table{log: log, root: "/", spared: spared(), limit: outputLimit(), lastWait: lastWait, processes: map[string]*process{}}
}

// outputLimit is a small part of the guest's memory.
func outputLimit() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 4 << 20
	}
	return min(max(int64(info.Totalram)*int64(info.Unit)/16, 4<<20), 64<<20)
}

// Close kills all processes and waits until nothing is left of them.
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
	return p.tell(), nil
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
	return p.tell(), r, nil
}

// start starts a process with a reader at its first byte, if there is one.
func (t *Table) start(spec wire.ProcessSpec, r *reader) (*process, error) {
	l, err := t.prepare(spec)
	if err != nil {
		return nil, err
	}
	t.starting.Lock()
	defer t.starting.Unlock()
	if err := t.mayStart(spec.ID); err != nil {
		return nil, err
	}
	p := newProcess(t, l)
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

func (t *Table) mayStart(id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch _, taken := t.processes[id]; {
	case t.closed:
		return wire.Refuse(wire.CodeFailed, "the agent is ending")
	case taken:
		return wire.Refuse(wire.CodeInvalid, "there is a process %s already", id)
	case t.running >= maxRunning:
		return wire.Refuse(wire.CodeManyProcesses, "%d processes that were started from outside run in the guest; more may not", maxRunning)
	}
	return nil
}

// find returns a process. The lock is held.
func (t *Table) find(id string) (*process, error) {
	p, ok := t.processes[id]
	if !ok {
		return nil, wire.Refuse(wire.CodeNoProcess, "the guest has no process %s", id)
	}
	return p, nil
}

// living is find for what only a process that has not ended can do.
func (t *Table) living(id string) (*process, error) {
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
	return p.tell(), nil
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
	told := make([]wire.Process, 0, len(all))
	for _, p := range all {
		told = append(told, p.tell())
	}
	return told
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
		return wire.Process{}, nil, wire.Refuse(wire.CodeOffset, "process %s has written %d bytes; there is no offset %d", id, p.out.end, from)
	}
	r := &reader{p: p, at: from}
	p.readers[r] = struct{}{}
	return p.tell(), r, nil
}

// SignalProcess implements [wire.ProcessHandler].
func (t *Table) SignalProcess(id, name string) error {
	signal, err := parseSignal(name)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.living(id)
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
	p, err := t.living(id)
	t.mu.Unlock()
	if err != nil {
		return err
	}
	if p.terminal == nil {
		return wire.Refuse(wire.CodeNoTerminal, "process %s has no terminal", id)
	}
	if err := resize(p.terminal, size); err != nil {
		return wire.Refuse(wire.CodeFailed, "cannot change the terminal of process %s: %v", id, err)
	}
	return nil
}

// RemoveProcess implements [wire.ProcessHandler]. Who is attached still gets
// the end.
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

// EndProcessStdin implements [wire.ProcessHandler]. What has ended already is
// no fault.
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

// prune forgets the oldest of too many processes that have ended. The lock is
// held.
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
	for _, p := range ended[:len(ended)-maxEnded] {
		p.remove()
	}
}

// prepare checks a spec as far as can be told before it runs.
func (t *Table) prepare(spec wire.ProcessSpec) (*launch, error) {
	who, err := account.Find(t.root, spec.User)
	if err != nil {
		return nil, wire.Refuse(wire.CodeUser, "%v", err)
	}
	l := &launch{spec: spec, who: who, spared: t.spared}
	return l, l.check()
}

// now is the guest's time on the wire.
func now() int64 { return time.Now().UnixNano() }
