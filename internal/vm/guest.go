package vm

import (
	"context"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/process"
)

// GuestReport is what an agent last reported about its guest.
type GuestReport struct {
	AgentVersion string
	BootID       string       // changes with each boot of the guest
	Addresses    []netip.Addr // of the guest's interfaces, loopback excluded
	CloudInit    CloudInit
	GoingDown    bool // the guest shuts down or reboots
	SSH          SSHServer
}

// SSHServer is a guest's SSH server, by its files. It may not run.
type SSHServer struct {
	Certificates bool     `json:"certificates,omitempty"` // it accepts those for this VM
	HostKeys     []string `json:"host_keys,omitempty"`    // in authorized_keys form, without comments
}

// CloudInit is cloud-init's state in a guest.
type CloudInit struct {
	Status   string   // absent, disabled, running, done, error
	Errors   []string // as cloud-init printed them, bounded
	Warnings []string // the same, of a cloud-init that has ended
}

// GuestUsage is what an agent reports of its guest's resources. Sizes are in bytes.
type GuestUsage struct {
	Uptime              time.Duration // since the guest's boot
	CPUBusy             time.Duration // of all its CPUs together, since its boot
	Load                [3]float64    // over 1, 5 and 15 minutes
	MemTotal, MemUsed   int64
	DiskTotal, DiskUsed int64 // of its root file system
}

// GuestActivity is what an agent reports that keeps its guest from being idle.
type GuestActivity struct {
	KeepAwakeUntil time.Time // as a program in the guest has asked; zero if none has, or that time is over
	Commands       int       // processes that were started through the API and still run
}

// PortConn is a connection to a port of a guest, whose directions end one by one.
type PortConn interface {
	net.Conn
	CloseWrite() error
}

// DialAgent opens a connection to a guest's agent.
type DialAgent func(ctx context.Context) (net.Conn, error)

// ObserveReport gets each report of an agent in order, and nil when the session
// is lost. It must not block.
type ObserveReport func(*GuestReport)

// Guests opens sessions with agents.
type Guests interface {
	// Connect keeps a session with the agent behind dial, across reboots of the
	// guest, until Close.
	Connect(vmID string, dial DialAgent, observe ObserveReport) Session
	// Rejoin is Connect for a guest that has slept: before anything else it tells
	// the agent so, with the time and with fresh randomness.
	Rejoin(vmID string, dial DialAgent, observe ObserveReport) Session
	// Reidentify is Rejoin for a clone: it also tells the agent who its guest is
	// now, until the agent has confirmed. Before that nothing else is asked of the
	// guest, and observe is not called.
	Reidentify(vmID string, dial DialAgent, observe ObserveReport, as Identity) Session
}

// Identity is what distinguishes a clone from its original.
type Identity struct {
	InstanceID string // for cloud-init: the VM's id
	Hostname   string
	MAC        net.HardwareAddr // nil without a network; then the two below are zero
	Address    netip.Prefix
	Gateway    netip.Addr

	Setup Setup
}

// Setup is what cloud-init does in a clone after it has confirmed.
type Setup int

// With all but the last, cloud-init takes the new instance for one that it has
// set up already, now and at later boots.
const (
	SetupNone Setup = iota
	// SetupKeys gives the image's default user the SSH keys of the VM's own seed.
	SetupKeys
	// SetupAnew does everything that is done in a new VM, with its own seed. It adds
	// to what the original's cloud-init has done and undoes nothing of that.
	SetupAnew
)

// Session is a session with one agent.
type Session interface {
	Guest
	process.Guest
	file.Guest
}

// GuestReader asks a guest about itself.
type GuestReader interface {
	// Usage returns what the guest uses. It does not wait for an agent.
	// Errors: errs.Unavailable; errs.Unsupported from an agent that is too old.
	Usage(ctx context.Context) (GuestUsage, error)
	// Activity returns what keeps the guest from being idle, zero from an agent that is
	// too old to know. It does not wait for an agent. Errors: errs.Unavailable.
	Activity(ctx context.Context) (GuestActivity, error)
}

// Guest is what hatchd itself asks of a guest.
type Guest interface {
	GuestReader
	// Confirmed waits until a clone has taken its identity; for any other guest it
	// returns nil at once. Errors: errs.Unsupported with code agent_too_old;
	// errs.Internal with code reidentify_failed and the guest's error text, after
	// which the session keeps asking; errs.Unavailable when ctx is done, or the
	// session is closed, before.
	Confirmed(ctx context.Context) error
	// Shutdown asks the guest to power off, as soon as an agent answers, and again in
	// each later session: the guest may have rebooted. It calls accepted each time. It
	// ends with ctx. With reboot it asks for a reboot, and returns once that is accepted.
	// Errors: errs.Unavailable when the agent refuses, or ctx is done.
	Shutdown(ctx context.Context, reboot bool, accepted func()) error
	// Up waits for an agent whose guest does not shut down or reboot, and returns the id
	// of that boot. Errors: errs.Unavailable.
	Up(ctx context.Context) (bootID string, err error)
	// SetClock sets the guest's clock after its CPUs were paused. It does not wait
	// for an agent: without one, or after an error, the session sets the clock once
	// an agent answers, before any request. Errors: errs.Unavailable.
	SetClock(ctx context.Context) error
	// Trim gives blocks of the VM's disk that the guest does not use back to the host.
	// It does not wait for an agent. When ctx is done, the guest continues with it.
	// Errors: errs.Unavailable; errs.Unsupported from an agent that is too old.
	Trim(ctx context.Context) error
	// Dial connects to a TCP port on the guest's own loopback, with or without
	// a network. ctx bounds the connecting. The connection has CloseWrite.
	// Errors: errs.Unavailable with code port_refused when nothing listens;
	// errs.Unsupported from an agent that is too old.
	Dial(ctx context.Context, port int) (net.Conn, error)
	// Close ends the session and waits for its goroutines.
	Close() error
}

// Consoles reads serial consoles into bounded logs, and connects users to them.
type Consoles interface {
	ConsoleReader
	ConsoleLogs
}

// ConsoleReader reads the consoles of machines.
type ConsoleReader interface {
	// Open reads the console behind dial, until Close.
	Open(vmID string, dial func(ctx context.Context) (net.Conn, error)) error
	// Close stops reading; the log stays.
	Close(vmID string)
}

// LogQuery asks for lines of a console's log.
type LogQuery struct {
	Tail       int       // lines from the end; all when negative
	Follow     bool      // go on with what comes, until the context is done or the console closes
	Since      time.Time // leave out lines that began earlier; zero: none
	Timestamps bool      // before each line, when it began: RFC 3339 with milliseconds, "-" for not known
}

// ConsoleLogs shows consoles, and the logs of VMMs.
type ConsoleLogs interface {
	// Log writes the lines that q asks for to w.
	Log(ctx context.Context, vmID string, q LogQuery, w io.Writer) error
	// VMMLog writes the last tail lines of what the VM's VMM has printed since its
	// start (all when tail < 0) to w and, with follow, what comes until ctx is
	// done or the console closes.
	VMMLog(ctx context.Context, vmID string, tail int, follow bool, w io.Writer) error
	// Attach connects a user: scrollback first, then live both ways. At most one
	// writer is attached at a time; a second gets errs.Conflict, unless readOnly.
	Attach(ctx context.Context, vmID string, readOnly bool) (io.ReadWriteCloser, error)
}
