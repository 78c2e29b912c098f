// Package vmm is the contract between the product and the programs that run
// virtual machines: what to run ([Spec]), how to recognise it again after a
// daemon restart ([Handle]), and the few verbs every driver has ([Driver],
// [Machine]).
//
// It knows no driver, no SQL and no HTTP. Drivers are packages below it
// (internal/vmm/qemu); every driver passes the conformance suite in
// internal/vmm/vmmtest. Start at [Driver].
package vmm

import (
	"context"
	"net"
	"os"
	"time"
)

// Spec is everything a driver needs to start one machine. Paths are absolute.
// A driver never changes a file named here, other than the disks that are not
// read-only.
type Spec struct {
	ID        string // the VM's id; unique on this host
	Dir       string // the VM's run directory: exists, root-owned 0700
	VCPUs     int    // ≥ 1
	MemMiB    int    // ≥ 64
	Kernel    string // bzImage or ELF
	Initramfs string // cpio archive
	Cmdline   string // kernel command line; the driver appends what it needs
	Disks     []Disk // in the order the guest should see them
	NIC       *NIC   // nil: no network device
	UID, GID  int    // of the VMM process; 0 means keep the caller's (tests only)
	Limits    RateLimits

	// Memory is the file that backs the guest's memory: MemMiB large, on a tmpfs,
	// owned by UID. "" means the VMM's anonymous memory; such a machine cannot be
	// saved. The driver neither makes nor removes it.
	Memory string

	// Base is the initial memory of a guest that is woken; nil: Memory has it. It
	// is as large as Memory, immutable (a sealed memfd named BaseName), and several
	// machines may share one. The driver maps it privately or copies it into
	// Memory, which is then an empty sparse file: Capabilities.Base says which. For
	// Wake only. The driver does not close it.
	Base *os.File

	// Origin has the digests of what the guest was booted from, kernel and root
	// file system, by role. A saved guest can only be woken with the same.
	Origin map[string]string
}

// Disk is a raw disk image.
type Disk struct {
	Serial   string // ≤ 20 bytes; the guest sees it as the device's serial
	Path     string
	ReadOnly bool
}

// NIC is the one network device of a machine. The driver hands TAP to the VMM
// process and closes its own copy, also when Start fails.
type NIC struct {
	MAC net.HardwareAddr
	TAP *os.File // opened TAP with IFF_NO_PI | IFF_VNET_HDR; frames go in and out of it
}

// LogName is the file in a machine's run directory with the output of the VMM
// process. Its size is bounded, and each machine starts a new one. A driver whose
// VMM prints nothing has none.
const LogName = "vmm.log"

// Handle identifies a running machine, so that a later daemon can recognise
// exactly this process. All of it must match before the machine is adopted.
type Handle struct {
	Driver    string `json:"driver"`
	ID        string `json:"id"`         // the VM's id
	PID       int    `json:"pid"`        // of the VMM process
	StartTime uint64 `json:"start_time"` // field 22 of /proc/PID/stat, in clock ticks since boot
	BootID    string `json:"boot_id"`    // /proc/sys/kernel/random/boot_id
	Exe       string `json:"exe"`        // target of /proc/PID/exe
	Dir       string `json:"dir"`        // Spec.Dir
	Socket    string `json:"socket"`     // control socket, a path on the host
	Version   string `json:"version"`    // of the VMM program

	// Base is the Spec.Base that the machine was woken from, if it shares that and
	// does not use its Memory. The caller of Wake sets it; drivers ignore it.
	Base Shared `json:"base,omitzero"`
}

// IsBased reports whether the machine shares memory.
func (h Handle) IsBased() bool { return h.Base != Shared{} }

// Channel names one of a machine's byte streams.
type Channel string

// The channels of a machine.
const (
	ChannelAgent   Channel = "agent"   // to hatch-agent in the guest
	ChannelConsole Channel = "console" // the serial console, both ways
)

// ExitCause says how a machine ended, as far as the driver knows.
type ExitCause string

// Causes of an exit.
const (
	ExitUnknown  ExitCause = "unknown"   // it ended while no daemon ran
	ExitShutdown ExitCause = "shutdown"  // the guest powered itself off
	ExitReset    ExitCause = "reset"     // the guest asked for a reboot
	ExitPanic    ExitCause = "panic"     // the guest's kernel panicked
	ExitKilled   ExitCause = "killed"    // by Kill
	ExitCrashed  ExitCause = "vmm_crash" // the VMM died of a signal or with a failure code
)

// Exit is how and when a machine ended.
type Exit struct {
	Cause  ExitCause
	Detail string // for people: the signal, the exit code, the last line of stderr; "" if not known
	At     time.Time
}

// Info describes a driver on this host.
type Info struct {
	Name         string // qemu, firecracker
	Version      string // of the VMM program
	Accel        string // kvm or tcg
	CPU          string // the host's features that a saved guest may rely on
	Why          string // the reason for Accel, one sentence for doctor and the log
	Capabilities Capabilities
}

// Driver runs machines with one VMM program. Its methods may be called from
// several goroutines at once.
type Driver interface {
	// Info returns what New has found.
	Info() Info

	// Start boots the machine of spec and returns once the guest's CPUs run. ctx
	// bounds the start only. On error nothing of the machine is left: no process,
	// no socket. NIC.TAP is closed in either case.
	//
	// Errors: errs.Unsupported (the driver cannot run this spec), errs.Internal
	// (the VMM did not start; the cause has the last line of its stderr).
	Start(ctx context.Context, spec Spec) (Machine, error)

	// Check returns an error if the machine that was saved into dir cannot be woken
	// here as spec; it does not look at the memory. Errors: Wake's.
	Check(spec Spec, dir string) error

	// Wake starts the machine that was saved into dir, with the memory in
	// spec.Memory or spec.Base, which must be unchanged since the save; spec may
	// differ from the saved one in NIC.TAP and Base, and may add Limits. (AdaptSaved
	// rewrites a saved machine for another spec.) The guest is paused when Wake
	// returns. Once it is resumed it changes its disks, so that the machine cannot
	// be woken from dir again. ctx bounds the start only.
	//
	// Wake checks all of this before it starts a process or changes anything. On
	// error nothing of the machine is left, and it can be woken again. NIC.TAP is
	// closed in either case.
	//
	// Errors: Start's, and errs.Conflict with code saved_unusable.
	Wake(ctx context.Context, spec Spec, dir string) (Machine, error)

	// Adopt returns the machine of h, which an earlier daemon started. Every field
	// of h must match the live process. A process whose VMM does not answer is
	// adopted, too, after a few seconds: it can be killed, Health waits until it
	// answers, and only then its identity and Version are compared.
	//
	// Errors: errs.NotFound when the process is gone, is another one, or has no
	// machine because its daemon ended during the start; such a process is killed.
	Adopt(ctx context.Context, h Handle) (Machine, error)

	// List returns the live machines of this driver whose run directories are below
	// root. It leaves out a process that only claims to be such a machine.
	List(ctx context.Context, root string) ([]Handle, error)
}

// Machine is one running VMM process with its guest. Its methods may be called
// from several goroutines at once; after the exit they return errs.NotFound,
// Kill returns nil.
type Machine interface {
	Process
	CPUs
	Reporter

	// Dial opens a byte stream to the guest. One connection per channel at a
	// time: a second Dial ends the first.
	Dial(ctx context.Context, ch Channel) (net.Conn, error)

	// PowerButton presses the guest's power button and returns at once, whether
	// the guest reacts or not.
	PowerButton(ctx context.Context) error

	// Stats returns what the machine has used so far. It does not wait for the
	// guest, which may be paused. Errors: errs.Unavailable when the VMM does
	// not answer before ctx is done.
	Stats(ctx context.Context) (Stats, error)

	// Save pauses the guest and writes into dir, which is an empty directory, what
	// Driver.Wake needs beside spec.Memory. spec is what the machine was started
	// with; its Base is ignored. The process stays: after Kill the guest can be
	// woken; after Resume it continues as if it had only been paused, except that
	// a connection to its agent may have ended. On error the guest runs or is
	// paused as before, and dir is empty.
	//
	// After a save spec.Memory holds the guest's memory, also if the machine was
	// woken from a Base; from then on it is woken from Memory. While a machine
	// shares a Base (Capabilities.Base) it does not use Memory: any content from
	// before the save is ignored, and if the guest resumes after the save, Memory
	// may be emptied. On error the content of Memory is undefined.
	//
	// Errors: errs.Unsupported when it was started without Memory.
	Save(ctx context.Context, spec Spec, dir string) error
}

// Reporter is a VMM that says how its guest is.
type Reporter interface {
	// Health asks the VMM. It waits for the answer until ctx is done, however long
	// that is: one call at a time is enough to see that a VMM hangs, and when it has
	// recovered. Errors: errs.NotFound after the exit; one for IsSilent if the VMM
	// does not answer; any other does not say whether it would.
	Health(ctx context.Context) (Health, error)

	// HealthChanged has a value after the VMM has reported something that Health may
	// show. A driver whose VMM reports nothing never sends.
	HealthChanged() <-chan struct{}
}

// CPUs are the virtual CPUs of a machine, all together.
type CPUs interface {
	// Pause halts the CPUs and returns once they are halted. It is no error if
	// they are halted already.
	Pause(ctx context.Context) error

	// Resume lets the CPUs run. It is no error if they run already.
	Resume(ctx context.Context) error

	// Paused reports whether the CPUs are halted.
	Paused(ctx context.Context) (bool, error)
}

// Process is the VMM process of a machine.
type Process interface {
	// Handle identifies the process; it does not change.
	Handle() Handle

	// Kill ends the process at once and returns when it is gone, or when ctx is done.
	Kill(ctx context.Context) error

	// Exited is closed when the process is gone.
	Exited() <-chan struct{}

	// Exit returns how it ended. Precondition: Exited is closed.
	Exit() Exit

	// Close releases the machine without ending it, so that a later daemon can
	// adopt it, and waits for its own goroutines.
	Close() error
}
