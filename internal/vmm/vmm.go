// Package vmm is the contract between the product and the programs that run
// virtual machines: what to run ([Spec]), how to recognise it again after a
// daemon restart ([Handle]), and the few verbs every driver has ([Driver],
// [Machine]).
//
// It knows no driver, no SQL and no HTTP. Drivers live below it
// (internal/vmm/qemu); internal/vmm/vmmtest holds a fake and the one
// conformance suite that every driver passes. Start at [Driver].
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
	Dir       string // the VM's own run directory: exists, root-owned 0700
	VCPUs     int    // ≥ 1
	MemMiB    int    // ≥ 64
	Kernel    string // bzImage or ELF
	Initramfs string // cpio archive
	Cmdline   string // kernel command line, complete but for what the driver itself must add
	Disks     []Disk // in the order the guest should see them
	NIC       *NIC   // nil: no network device
	UID, GID  int    // identity of the VMM process; 0 means keep the caller's (tests only)
	Limits    RateLimits

	// Memory is the file that is the guest's memory: MemMiB large, on a tmpfs,
	// and UID's own. "" means memory of the VMM's own; such a machine cannot be
	// saved. The driver neither makes nor removes it.
	Memory string

	// Base is what the guest's memory begins as when it is woken; nil: Memory
	// itself holds it. It is as large as Memory. Nobody can change it (a sealed
	// memfd named BaseName), and many machines may have the same. The driver may
	// map it privately, or copy it into Memory, which is there and all hole:
	// Capabilities.Base says which. For Wake only. The driver does not close it.
	Base *os.File

	// Origin says what the guest was booted from, by role: digests of its kernel
	// and its root file system. A saved guest is woken with the same only.
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

// LogName is the file in a machine's run directory that a driver copies into
// what the VMM process prints. It is bounded in size, however much comes, and
// begun anew with each machine. A driver whose VMM prints nothing has none.
const LogName = "vmm.log"

// Handle is what is stored of a running machine, so that a later daemon can
// recognise exactly this process. All of it must match before it is adopted.
type Handle struct {
	Driver    string `json:"driver"`
	ID        string `json:"id"`         // the VM's id
	PID       int    `json:"pid"`        //
	StartTime uint64 `json:"start_time"` // field 22 of /proc/PID/stat, in clock ticks since boot
	BootID    string `json:"boot_id"`    // /proc/sys/kernel/random/boot_id
	Exe       string `json:"exe"`        // target of /proc/PID/exe
	Dir       string `json:"dir"`        // Spec.Dir
	Socket    string `json:"socket"`     // control socket, a path on the host
	Version   string `json:"version"`    // of the VMM program

	// Base is the Spec.Base that the machine was woken from, if it shares that and
	// does not use its Memory. It is for whoever keeps the handle: drivers do not set it.
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

// ExitCause says how a machine ended, as far as the driver could see.
type ExitCause string

// Causes of an exit.
const (
	ExitUnknown  ExitCause = "unknown"   // seen to be gone, not seen how
	ExitShutdown ExitCause = "shutdown"  // the guest powered itself off
	ExitReset    ExitCause = "reset"     // the guest asked for a reboot
	ExitPanic    ExitCause = "panic"     // the guest's kernel panicked
	ExitKilled   ExitCause = "killed"    // we ended it (Kill, or Spec's owner asked)
	ExitCrashed  ExitCause = "vmm_crash" // the VMM died of a signal or with a failure code
)

// Exit tells how and when a machine ended.
type Exit struct {
	Cause  ExitCause
	Detail string // in words: the signal, the exit code, the VMM's last message; "" when nothing is known
	At     time.Time
}

// Info is what a driver found on this host.
type Info struct {
	Name         string // qemu, firecracker, fake
	Version      string // of the VMM program
	Accel        string // kvm or tcg; "" for the fake
	CPU          string // of the host, as far as a saved guest may have come to rely on it
	Why          string // why this acceleration, in one sentence, for doctor and the log
	Capabilities Capabilities
}

// Driver starts machines with one VMM program. Its methods may be called from
// several goroutines at once.
type Driver interface {
	// Info reports what was found when the driver was made.
	Info() Info

	// Start runs spec and returns once the machine's VMM is up and the guest's
	// CPUs run. ctx bounds the start only. On error nothing of the machine is
	// left: no process, no socket. NIC.TAP is closed in either case.
	//
	// Errors: errs.Unsupported (spec asks what this driver cannot do),
	// errs.Internal (the VMM would not start; the cause carries its last words).
	Start(ctx context.Context, spec Spec) (Machine, error)

	// Check reports whether the machine that was saved into dir could be woken here
	// as spec says, whose memory is not looked at. Errors: as Wake's.
	Check(spec Spec, dir string) error

	// Wake starts the machine that was saved into dir, from there and from
	// spec.Memory or spec.Base, which must be as they were when it was saved; spec
	// is as it was then, but for NIC.TAP and Base, and may have Limits where it had
	// none. (AdaptSaved makes another machine's of what was saved.) It returns with
	// the guest's CPUs standing where they stood: Resume lets the guest go on. From
	// then on what was saved is spent, since the guest changes its disks. ctx bounds
	// the start only.
	//
	// What does not fit together is refused before any process is started, and
	// nothing is changed by it. On error nothing of the machine is left, and it
	// can be woken again. NIC.TAP is closed in either case.
	//
	// Errors: as Start's, and errs.Conflict with code saved_unusable.
	Wake(ctx context.Context, spec Spec, dir string) (Machine, error)

	// Adopt takes over a machine that an earlier daemon started. Every field of
	// h must match the live process.
	//
	// Errors: errs.NotFound when the process is gone, is another one, or has no
	// machine yet, because its daemon ended amid the start: then it is ended.
	Adopt(ctx context.Context, h Handle) (Machine, error)

	// List returns the machines of this driver that live on this host and are
	// provably children of run directories below root. What is not provably
	// ours is not listed.
	List(ctx context.Context, root string) ([]Handle, error)
}

// Machine is one running VMM process. Its methods may be called from several
// goroutines at once; after the exit they return errs.NotFound, Kill returns nil.
type Machine interface {
	// Handle identifies the process; it does not change.
	Handle() Handle

	// Dial opens a byte stream to the guest. One connection per channel at a
	// time: a second Dial ends the first.
	Dial(ctx context.Context, ch Channel) (net.Conn, error)

	// Pause stops the guest's CPUs and returns once they stand. Pausing a
	// paused machine is no error.
	Pause(ctx context.Context) error

	// Resume lets the guest's CPUs run. Resuming a running machine is no error.
	Resume(ctx context.Context) error

	// Paused reports whether the guest's CPUs stand.
	Paused(ctx context.Context) (bool, error)

	// Stats tells what the machine has used so far. It does not wait for the
	// guest, which may be paused. Errors: errs.Unavailable when the VMM does
	// not answer before ctx is done.
	Stats(ctx context.Context) (Stats, error)

	// PowerButton presses the guest's power button and returns at once; whether
	// the guest reacts is its own affair.
	PowerButton(ctx context.Context) error

	// Save makes the guest's CPUs stand and writes into dir, which is there and
	// empty, what Driver.Wake needs beside spec.Memory. spec is what the machine
	// was started with, but for Base, which is not looked at. The process stays:
	// Kill it, and the guest can be woken; Resume it, and the guest goes on as if
	// nothing had been, but for a stream to its agent, which may have ended. On error
	// the guest runs as it did before, and dir is empty.
	//
	// Afterwards spec.Memory holds the guest's memory, also that of a machine
	// woken from a Base, which from then on is woken from Memory. Such a machine,
	// where Capabilities.Base says that it shares, does not use Memory itself:
	// what is in there before a save is of no account, and when it is resumed
	// after one, Memory is not what it goes on with and may be emptied. On error
	// its Memory may hold anything.
	//
	// Errors: errs.Unsupported when it was started without Memory.
	Save(ctx context.Context, spec Spec, dir string) error

	// Kill ends the process at once and returns when it is gone, or when ctx is done.
	Kill(ctx context.Context) error

	// Exited is closed when the process is gone.
	Exited() <-chan struct{}

	// Exit tells how it ended. Precondition: Exited is closed.
	Exit() Exit

	// Close lets go of the machine without ending it, so that a later daemon
	// can adopt it, and waits for its own goroutines.
	Close() error
}
