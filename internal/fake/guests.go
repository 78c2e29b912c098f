package fake

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/fake/guest"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/vm"
)

var (
	_ vm.Guests     = (*Guests)(nil)
	_ vm.Session    = (*Guest)(nil)
	_ process.Guest = (*Guest)(nil)
	_ file.Guest    = (*Guest)(nil)
)

// noAgent is the answer to calls that a fake agent does not serve.
func noAgent() error {
	return errs.New(errs.Unavailable, "agent_unavailable", "the fake guest has no agent")
}

// Guests makes sessions with guests that need no agent. Calls: Reidentify, Shutdown.
type Guests struct {
	Calls *Calls

	// Dir returns a VM's directory, which holds the guest's files. nil: guests
	// have no files.
	Dir func(vmID string) string

	// Report is what each agent reports when its session starts, a clone's when it
	// confirms; nil: nothing.
	Report func(vmID string) *vm.GuestReport

	// Usage and DialPort answer for all guests; nil: there is no usage, and nothing
	// listens.
	Usage    func(context.Context) (vm.GuestUsage, error)
	DialPort func(ctx context.Context, port int) (net.Conn, error)

	// Activity answers for all guests; nil: they report the processes that run.
	Activity func(context.Context) (vm.GuestActivity, error)

	// Up returns the id of the boot that is up; nil: "".
	Up func(context.Context) (bootID string, err error)

	mu   sync.Mutex
	open map[string]*Guest // by VM id
}

// Session returns the open session with a VM's guest, nil if there is none.
func (s *Guests) Session(vmID string) *Guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[vmID]
}

// Sessions returns the ids of VMs with an open session, sorted.
func (s *Guests) Sessions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.open))
}

// Connect implements vm.Guests.
func (s *Guests) Connect(vmID string, _ vm.DialAgent, observe vm.ObserveReport) vm.Session {
	return s.connect(&Guest{VMID: vmID, Observe: observe})
}

// Rejoin implements vm.Guests.
func (s *Guests) Rejoin(vmID string, _ vm.DialAgent, observe vm.ObserveReport) vm.Session {
	return s.connect(&Guest{VMID: vmID, Observe: observe, Woken: true})
}

// Reidentify implements vm.Guests.
func (s *Guests) Reidentify(vmID string, _ vm.DialAgent, observe vm.ObserveReport, as vm.Identity) vm.Session {
	return s.connect(&Guest{VMID: vmID, Observe: observe, Woken: true, Identity: &as})
}

func (s *Guests) connect(g *Guest) *Guest {
	g.guests, g.ProcessTable = s, guest.NewProcessTable()
	if s.Dir != nil {
		g.Files = openFiles(filepath.Join(s.Dir(g.VMID), "files"))
	}
	s.mu.Lock()
	if s.open == nil {
		s.open = map[string]*Guest{}
	}
	s.open[g.VMID] = g
	s.mu.Unlock()
	if g.Identity == nil {
		g.report()
	}
	return g
}

// openFiles makes the guest's root directory. It panics if it cannot: a
// session has no way to report it.
func openFiles(root string) *guest.Files {
	for _, dir := range []string{"etc", "root", "tmp", "var/log"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			panic(fmt.Sprintf("fake: cannot make the guest's files: %v", err))
		}
	}
	files, err := guest.OpenFiles(root)
	if err != nil {
		panic(fmt.Sprintf("fake: cannot open the guest's files: %v", err))
	}
	return files
}

// Guest is a session with one guest. It leaves shutting down to the power
// button. ITS PROCESSES ARE PRETENDED: package fake/guest knows a few commands
// by name, and nothing is run on this machine.
type Guest struct {
	*guest.ProcessTable
	*guest.Files // nil if Guests.Dir is

	VMID     string
	Observe  vm.ObserveReport
	Woken    bool         // the agent was told that the guest has slept
	Identity *vm.Identity // the identity that a clone was given; nil for any other guest

	guests    *Guests
	confirmed sync.Once

	mu     sync.Mutex
	clocks int
}

// ClocksSet returns how often the guest was told the time.
func (g *Guest) ClocksSet() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.clocks
}

func (g *Guest) report() {
	if g.guests.Report != nil {
		g.Observe(g.guests.Report(g.VMID))
	}
}

// Confirmed implements vm.Guest: a clone confirms at once.
func (g *Guest) Confirmed(context.Context) error {
	if g.Identity == nil {
		return nil
	}
	if err := g.guests.Calls.Begin("Reidentify"); err != nil {
		return err
	}
	g.confirmed.Do(g.report)
	return nil
}

// Shutdown implements vm.Guest.
func (g *Guest) Shutdown(context.Context, bool, func()) error {
	if err := g.guests.Calls.Begin("Shutdown"); err != nil {
		return err
	}
	return noAgent()
}

// Up implements vm.Guest.
func (g *Guest) Up(ctx context.Context) (bootID string, err error) {
	if g.guests.Up == nil {
		return "", nil
	}
	return g.guests.Up(ctx)
}

// SetClock implements vm.Guest.
func (g *Guest) SetClock(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clocks++
	return nil
}

// Trim implements vm.Guest.
func (g *Guest) Trim(context.Context) error { return g.guests.Calls.Begin("Trim") }

// Usage implements vm.Guest.
func (g *Guest) Usage(ctx context.Context) (vm.GuestUsage, error) {
	if g.guests.Usage == nil {
		return vm.GuestUsage{}, noAgent()
	}
	return g.guests.Usage(ctx)
}

// Activity implements vm.Guest.
func (g *Guest) Activity(ctx context.Context) (vm.GuestActivity, error) {
	if g.guests.Activity == nil {
		return vm.GuestActivity{Commands: g.Running()}, nil
	}
	return g.guests.Activity(ctx)
}

// Dial implements vm.Guest.
func (g *Guest) Dial(ctx context.Context, port int) (net.Conn, error) {
	if g.guests.DialPort == nil {
		return nil, errs.New(errs.Unavailable, "port_refused", "nothing listens on port %d of the fake guest", port)
	}
	return g.guests.DialPort(ctx, port)
}

// Close implements vm.Guest. A later session of the VM stays open.
func (g *Guest) Close() error {
	g.guests.mu.Lock()
	if g.guests.open[g.VMID] == g {
		delete(g.guests.open, g.VMID)
	}
	g.guests.mu.Unlock()
	g.ProcessTable.Close()
	if g.Files == nil {
		return nil
	}
	return g.Files.Close()
}
