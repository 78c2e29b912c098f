// Package processtest is a pretended guest for tests and demonstrations:
// [Guest] keeps the whole contract of a process.Guest with processes that are
// goroutines.
//
// NOTHING IS EVER RUN. A command is looked up by its name among the few that
// programs.go pretends, and there is no way from it to the machine that this
// runs on. hatchd shows it under HATCH_VMM=fake. Start at [New].
package processtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
)

// keptOutput is how much output a process keeps, in bytes, unless [Guest.Keep]
// says otherwise.
const keptOutput = 256 << 10

// stdinRoom is how much may wait on a process's stdin, in bytes.
const stdinRoom = 64 << 10

// Guest pretends to be the agent of one guest. It is safe for concurrent use.
type Guest struct {
	Keep int // bytes of output that each process keeps; set before the first

	programs sync.WaitGroup

	mu        sync.Mutex
	changed   *sync.Cond // anything below, or in a process
	processes []*proc    // the oldest first
	made      int
	lost      bool // the agent does not answer
	closed    bool
}

var _ process.Guest = (*Guest)(nil)

// New returns a guest in which nothing runs.
func New() *Guest {
	g := &Guest{Keep: keptOutput}
	g.changed = sync.NewCond(&g.mu)
	return g
}

// Close ends every process, and waits for it.
func (g *Guest) Close() {
	g.mu.Lock()
	g.closed = true
	for _, p := range g.processes {
		p.kill("SIGKILL")
	}
	g.mu.Unlock()
	g.programs.Wait()
}

// SetLost makes the agent answer no more, or again. Streams end as when the
// connection to a guest is lost; processes go on.
func (g *Guest) SetLost(lost bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lost = lost
	g.changed.Broadcast()
}

// AwaitRunning waits until n processes run.
func (g *Guest) AwaitRunning(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.running() != n {
		g.changed.Wait()
	}
}

func (g *Guest) running() (n int) {
	for _, p := range g.processes {
		if p.exit == nil {
			n++
		}
	}
	return n
}

// Exec implements process.Guest.
func (g *Guest) Exec(ctx context.Context, spec process.Spec) (process.Stream, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.start(spec)
	if err != nil {
		return nil, err
	}
	return g.attach(ctx, p, 0), nil
}

// StartProcess implements process.Guest.
func (g *Guest) StartProcess(_ context.Context, spec process.Spec) (process.Process, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.start(spec)
	if err != nil {
		return process.Process{}, err
	}
	return p.now(), nil
}

// Attach implements process.Guest.
func (g *Guest) Attach(ctx context.Context, id string, from int64) (process.Stream, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.find(id)
	if err != nil {
		return nil, err
	}
	return g.attach(ctx, p, min(from, p.end)), nil
}

// Processes implements process.Guest.
func (g *Guest) Processes(context.Context) ([]process.Process, error) {
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
func (g *Guest) Process(_ context.Context, id string) (process.Process, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.find(id)
	if err != nil {
		return process.Process{}, err
	}
	return p.now(), nil
}

// WriteStdin implements process.Guest.
func (g *Guest) WriteStdin(ctx context.Context, id string, data []byte, end bool) error {
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
func (g *Guest) SignalProcess(_ context.Context, id, name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.find(id)
	if err != nil {
		return err
	}
	return p.signal(name)
}

// ResizeProcess implements process.Guest.
func (g *Guest) ResizeProcess(_ context.Context, id string, size process.Size) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.find(id)
	if err != nil {
		return err
	}
	return p.resize(size)
}

// RemoveProcess implements process.Guest.
func (g *Guest) RemoveProcess(_ context.Context, id string) error {
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

func (g *Guest) find(id string) (*proc, error) {
	if g.lost {
		return nil, errLost
	}
	i := slices.IndexFunc(g.processes, func(p *proc) bool { return p.about.ID == id })
	if i < 0 {
		return nil, errs.New(errs.NotFound, "process_not_found", "there is no process %q in the guest", id)
	}
	return g.processes[i], nil
}

func (g *Guest) wake() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.changed.Broadcast()
}

// users are those that the guest has.
var users = []string{"", "root", "0", "nobody", "root:root"}

// start begins a process. The caller holds the lock.
func (g *Guest) start(spec process.Spec) (*proc, error) {
	switch {
	case g.lost || g.closed:
		return nil, errLost
	case !slices.Contains(users, spec.User):
		return nil, errs.InvalidField("user", "the guest has no user %q", spec.User)
	}
	g.made++
	p := &proc{
		guest: g, spec: spec, env: maps.Clone(spec.Env), stdinOpen: spec.Stdin,
		about: process.Process{ID: fmt.Sprintf("exec_fake%08d", g.made), PID: 100 + g.made, State: process.Running, StartedAt: time.Now()},
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
