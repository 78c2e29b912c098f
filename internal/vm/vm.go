// Package vm is the heart of the product: what a virtual machine is, and its
// life from create to delete.
//
// It knows no SQL, no HTTP and no Linux; the interfaces it needs of those are
// in ports.go, and internal/daemon supplies them. Start at [Service] for the
// verbs, at create.go for the list of steps that make a VM, and at adopt.go
// for what happens when the daemon starts again.
package vm

import (
	"cmp"
	"net"
	"net/netip"
	"time"

	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/vmm"
)

// State is what was last observed of a VM.
type State string

// The states. Any of stopped, snapshotted and error can be started again.
const (
	Starting    State = "starting"
	Running     State = "running"
	Stopping    State = "stopping"
	Stopped     State = "stopped"
	Snapshotted State = "snapshotted"
	Failed      State = "error"
	Paused      State = "paused"
)

// Live reports whether a VM in this state has, or may have, a VMM process.
func (s State) Live() bool {
	return s == Starting || s == Running || s == Stopping || s == Paused
}

// Intent is what the owner last asked for.
type Intent string

// The intents.
const (
	WantRunning Intent = "running"
	WantStopped Intent = "stopped"
	WantAsleep  Intent = "asleep"
	WantDeleted Intent = "deleted"
)

// VM is one virtual machine.
type VM struct {
	ID, OwnerID string
	Name        string // "" or unique per owner; also the hostname
	Labels      map[string]string
	ImageID     string
	TemplateID  string
	Boot        image.Boot // as resolved at create

	Intent      Intent
	State       State
	StateReason string
	Conditions  Conditions

	VCPUs, MemMiB, DiskMiB int
	BootArgs               string
	EnableNetwork          bool
	Lease                  Lease // what is reserved on the host
	UserData               string
	SSHKeys                []string
	RateLimits             vmm.RateLimits
	Instance               string // what cloud-init in a copied guest knows it as; "" for its own id

	Driver      string      // name of the driver that runs it
	Machine     *vmm.Handle // the live VMM process, nil when there is none
	Provisioned bool        // the VM's own disk has been made
	Copying     Copying     // its guest is a copy that has not confirmed yet that it is itself, or ""
	Sleep       *Sleep      // how its memory is kept, nil unless it sleeps
	SnapshotID  string      // the snapshot it was last put to, taken as, or made from; "" for none

	CreatedAt, UpdatedAt time.Time
	StartedAt            *time.Time

	Took []Step // of the start that returned this VM; not stored
}

// Sleep is how the memory of a sleeping VM is kept.
type Sleep struct {
	At      time.Time
	Durable bool  // on disk; until then it is in the host's RAM
	Bytes   int64 // what it takes, there
	Staged  bool  // memory and disk lie beside the VM's own and are about to take their place
}

// Copying says what a guest is a copy of that may still believe to be another.
// Nobody gets at it, and it decides what becomes of its VM if it stays so.
type Copying string

// The kinds of such copies.
const (
	OfSnapshot Copying = "snapshot" // nothing is left of the VM
	OfWarm     Copying = "warm"     // the VM could as well boot
)

// Step is how long one step of a start took.
type Step struct {
	Name string
	Took time.Duration
}

// Hostname returns the name the guest is told to have.
func (v VM) Hostname() string {
	if v.Name != "" {
		return v.Name
	}
	return "vm-" + v.ID[len(IDPrefix):]
}

// InstanceID is what cloud-init in the guest knows it as: what it does once, it
// has done for this instance.
func (v VM) InstanceID() string { return cmp.Or(v.Instance, v.ID) }

// IDPrefix starts every VM's id.
const IDPrefix = "vm_"

// Lease is what the host has reserved for one VM. Every non-zero field is
// unique among all VMs. The zero Lease reserves nothing; without a network
// only UID is set.
type Lease struct {
	Address netip.Addr
	MAC     net.HardwareAddr
	Tap     string
	SSHPort int
	UID     int // of the VMM process
}

// Status is the value of a condition.
type Status string

// Condition values.
const (
	True    Status = "true"
	False   Status = "false"
	Unknown Status = "unknown"
)

// Condition is one fact about a guest. The zero Condition is unknown.
type Condition struct {
	Status    Status    `json:"status"`
	Reason    string    `json:"reason,omitempty"`  // one stable CamelCase word
	Message   string    `json:"message,omitempty"` // in words
	ChangedAt time.Time `json:"changed_at"`
}

// Conditions are all facts known of a guest.
type Conditions struct {
	Network   Condition `json:"network"`    // the guest has its address; reason Disabled without a network
	Agent     Condition `json:"agent"`      // hatch-agent answers
	CloudInit Condition `json:"cloud_init"` // cloud-init is through; reasons Running, Done, Failed, Absent, Disabled
}

// Ready reports whether the guest is up: the agent answers, the network is
// there (when enabled), and cloud-init has ended, well or not, or is absent.
func (c Conditions) Ready() bool {
	return c.Agent.Status == True &&
		(c.Network.Status == True || c.Network.Reason == "Disabled") &&
		(c.CloudInit.Status == True || c.CloudInit.Reason == "Failed" ||
			c.CloudInit.Reason == "Absent" || c.CloudInit.Reason == "Disabled")
}
