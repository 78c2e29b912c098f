// Package guest is the inside of a fake guest: [ProcessTable] implements
// process.Guest with goroutines, [Files] implements file.Guest in a directory.
//
// NO PROGRAM IS EVER RUN: a command is one of the few functions in programs.go,
// chosen by name. Files does what an unprivileged process can: it keeps owners
// only where the process may set them, and absolute links lead nowhere. For
// tests and cmd/hatchd-fake only.
package guest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
)

// keptOutput is the default of [ProcessTable.Keep], in bytes.
const keptOutput = 256 << 10

// stdinBuffer is the size of a process's stdin buffer, in bytes.
const stdinBuffer = 64 << 10

// ProcessTable holds the processes of one guest. It is safe for concurrent use.
type ProcessTable struct {
	Keep int // bytes of output that each process keeps; set before the first

	programs sync.WaitGroup

	mu        sync.Mutex
	changed   *sync.Cond // of anything below or in a process
	processes []*proc    // the oldest first
	made      int
	lost      bool // the agent is disconnected
	closed    bool
}

var _ process.Guest = (*ProcessTable)(nil)

// NewProcessTable returns the table of a guest without processes.
func NewProcessTable() *ProcessTable {
	g := &ProcessTable{Keep: keptOutput}
	g.changed = sync.NewCond(&g.mu)
	return g
}

// Close ends every process, and waits for it.
func (g *ProcessTable) Close() {
	g.mu.Lock()
	g.closed = true
	for _, p := range g.processes {
		p.kill("SIGKILL")
	}
	g.mu.Unlock()
	g.programs.Wait()
}

// SetLost disconnects the agent, or connects it again. Streams end with the
// connection; processes keep running.
func (g *ProcessTable) SetLost(lost bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lost = lost
	g.changed.Broadcast()
}

// Running returns how many processes run.
func (g *ProcessTable) Running() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running()
}

// AwaitRunning waits until n processes run.
func (g *ProcessTable) AwaitRunning(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.running() != n {
		g.changed.Wait()
	}
}

func (g *ProcessTable) running() (n int) {
	for _, p := range g.processes {
		if p.exit == nil {
			n++
		}
	}
	return n
}

// Exec implements process.Guest.
func (g *ProcessTable) Exec(ctx context.Context, spec process.Spec) (process.Stream, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.start(spec)
	if err != nil {
		return nil, err
	}
	return g.attach(ctx, p, 0), nil
}

// StartProcess implements process.Guest.
func (g *ProcessTable) StartProcess(_ context.Context, spec process.Spec) (process.Process, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.start(spec)
	if err != nil {
		return process.Process{}, err
	}
	return p.now(), nil
}

// Attach implements process.Guest.
func (g *ProcessTable) Attach(ctx context.Context, id string, from int64) (process.Stream, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.find(id)
	if err != nil {
		return nil, err
	}
	return g.attach(ctx, p, min(from, p.end)), nil
}

// Processes implements process.Guest.
func (g *ProcessTable) Processes(context.Context) ([]process.Process, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.lost {
		return nil, errLost
	}
	all := make([]process.Process, 0, len(g.processes))
	for _, p := range slices.Backward(g.processes) {
		all = append(all, p.now())
	}
	return all, nil
}

// Process implements process.Guest.
func (g *ProcessTable) Process(_ context.Context, id string) (process.Process, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.find(id)
	if err != nil {
		return process.Process{}, err
	}
	return p.now(), nil
}

// WriteStdin implements process.Guest.
func (g *ProcessTable) WriteStdin(ctx context.Context, id string, data []byte, end bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.find(id)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, g.wake)
	defer stop()
	if _, err := p.write(data, func() error { return ctx.Err() }); err != nil {
		return err
	}
	if end {
		p.endStdin()
	}
	return nil
}

// SignalProcess implements process.Guest.
func (g *ProcessTable) SignalProcess(_ context.Context, id, name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.find(id)
	if err != nil {
		return err
	}
	return p.signal(name)
}

// ResizeProcess implements process.Guest.
func (g *ProcessTable) ResizeProcess(_ context.Context, id string, size process.Size) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.find(id)
	if err != nil {
		return err
	}
	return p.resize(size)
}

// RemoveProcess implements process.Guest.
func (g *ProcessTable) RemoveProcess(_ context.Context, id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.find(id)
	if err != nil {
		return err
	}
	p.kill("SIGKILL")
	g.processes = slices.DeleteFunc(g.processes, func(q *proc) bool { return p == q })
	return nil
}

func (g *ProcessTable) find(id string) (*proc, error) {
	if g.lost {
		return nil, errLost
	}
	i := slices.IndexFunc(g.processes, func(p *proc) bool { return p.about.ID == id })
	if i < 0 {
		return nil, errs.New(errs.NotFound, "process_not_found", "there is no process %q in the guest", id)
	}
	return g.processes[i], nil
}

func (g *ProcessTable) wake() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.changed.Broadcast()
}

// users are the users of the guest.
var users = []string{"", "root", "0", "daemon", "user", "root:root"}

// start begins a process. The caller holds the lock.
func (g *ProcessTable) start(spec process.Spec) (*proc, error) {
	switch {
	case g.lost || g.closed:
		return nil, errLost
	case !slices.Contains(users, spec.User):
		return nil, errs.InvalidField("user", "the guest has no user %q", spec.User)
	}
	g.made++
	p := &proc{
		guest: g, spec: spec, env: maps.Clone(spec.Env), stdinOpen: spec.Stdin,
		about: process.Process{ID: cmp.Or(spec.ID, fmt.Sprintf("exec_fake%08d", g.made)), PID: 100 + g.made, State: process.Running, StartedAt: time.Now()},
	}
	if spec.TTY != nil {
		p.size = *spec.TTY
	}
	spec.Env = nil
	p.about.Spec = spec
	g.processes = append(g.processes, p)
	if spec.Timeout > 0 {
		p.alarm = time.AfterFunc(spec.Timeout, p.timeOut)
	}
	g.programs.Go(p.run)
	g.changed.Broadcast()
	return p, nil
}

var errLost = errs.New(errs.Unavailable, "agent_unavailable", "no agent answers in the guest").
	WithHint("wait until the guest has booted")
