// Package vm has the words of the product's heart: what a virtual machine is,
// which phases its life has, and the interfaces to what keeps and runs it.
//
// It does nothing: the packages below it do. Start at [VM] and at the table in
// phase.go; go on with lifecycle for the verbs, operation for how one runs,
// transition for the steps of boot, sleep, wake and clone, recovery for what
// happens when hatchd starts again.
package vm

import (
	"cmp"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/disk"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/route"
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
	IntentRunning Intent = "running"
	IntentStopped Intent = "stopped"
	IntentAsleep  Intent = "asleep"
	IntentDeleted Intent = "deleted"
)

// VM is one virtual machine.
type VM struct {
	ID, OwnerID string
	Name        string // "" or unique per owner
	machine.Spec

	Intent      Intent
	State       State
	StateReason string
	Conditions  Conditions

	Lease    network.Lease // what is reserved on the host
	Instance string        // cloud-init's instance id in a clone that keeps its original's; "" for the VM's id

	Machine     *vmm.Handle // the live VMM process, nil when there is none
	Provisioned bool        // the VM's own disk has been made
	Unconfirmed CloneKind   // its guest is a clone that has not confirmed its own identity yet, or ""
	Sleep       *Sleep      // how its memory is saved, nil unless it sleeps
	SnapshotID  string      // the snapshot it was last restored to, saved as, or cloned from; "" for none
	Autostart   Autostart   // what it comes back to after it went down with the host, or ""

	CreatedAt, UpdatedAt time.Time
	StartedAt            *time.Time
	Revision             int64 // of the row; goes up with each change

	Took       []Step // of the start that returned this VM; not stored
	ClonedFrom Source // for the event of a new VM; not stored

	Routes []route.Route // of a new VM, stored with it; not read
}

// Source is what a clone was made from. The zero value is an image.
type Source struct {
	VMID                 string // the VM that was forked, or that the snapshot was taken of
	SnapshotID, Snapshot string // id and name; "" for a fork
}

// Sleep is how the memory of a sleeping VM is saved.
type Sleep struct {
	At      time.Time
	Durable bool  // on disk; until then it is in the host's RAM
	Bytes   int64 // that it takes there
	Staged  bool  // a snapshot's memory and disk are staged, and replace the VM's own next

	Rule Rule     // why it sleeps; "" if that is not known
	Last Activity // before; zero if none is known
}

// CloneKind says what a clone was made for. While a clone has not confirmed its
// own identity its guest still has the original's: operations are refused, and
// after a crash the kind decides between delete and cold boot.
type CloneKind string

// The kinds of clones.
const (
	FromSnapshot CloneKind = "snapshot" // on request: the VM is deleted
	FromWarm     CloneKind = "warm"     // instead of a boot: the VM can boot
)

// Autostart is what hatchd brings a VM back to when it starts the next time. A VM
// has it from the moment when it goes down with its host until it runs again, or a
// request or an error has decided otherwise.
type Autostart string

// The values. A VM whose memory is lost comes back running, by a boot.
const (
	NoAutostart      Autostart = ""
	AutostartRunning Autostart = "running"
	AutostartPaused  Autostart = "paused"
)

// Step is how long one step of a start took.
type Step struct {
	Name string
	Took time.Duration
}

// Hostname returns the guest's hostname: that of the spec, else the VM's name,
// else one made from its id.
func (v VM) Hostname() string {
	return cmp.Or(v.Spec.Hostname, v.Name, "vm-"+strings.TrimPrefix(v.ID, IDPrefix))
}

// Disks returns the VM's disks in the order in which its guest sees them.
func (v VM) Disks() []disk.Disk {
	return disk.Layout(v.Boot.DiskMode != image.DiskCopy, v.DiskMiB)
}

// InstanceID is cloud-init's instance id: what cloud-init does once per instance,
// it has done for this one.
func (v VM) InstanceID() string { return cmp.Or(v.Instance, v.ID) }

// IDPrefix starts every VM's id.
const IDPrefix = "vm_"

// Link returns the VM's link to its network.
func (v VM) Link() network.Link {
	return network.Link{
		VMID: v.ID, Hostname: v.Hostname(), Tap: v.Lease.Tap, MAC: v.Lease.MAC, Address: v.Lease.Address,
		In: v.RateLimits.NetworkIn, Out: v.RateLimits.NetworkOut, Asleep: v.Asleep(),
	}
}

// sshPort is the port of guests' SSH servers.
const sshPort = 22

// Forwards returns the listeners on the host that lead to the guest: of its SSH port and
// of its published ports. hatchd's own VMs get none: VMs of any user are cloned from
// them, so no login may reach them.
func (v VM) Forwards() (all []network.Forward) {
	if v.OwnerID == access.SystemID {
		return nil
	}
	if v.EnableNetwork && v.Lease.SSHPort != 0 {
		all = append(all, network.Forward{Kind: network.ForwardSSH, Host: v.Lease.SSHPort, Guest: sshPort, Address: v.Lease.Address})
	}
	for _, p := range v.Ports {
		if host := v.Lease.Ports[p.Guest]; host != 0 {
			all = append(all, network.Forward{Kind: network.ForwardPort, Host: host, Guest: p.Guest, Address: v.Lease.Address, Allowed: p.Allowed})
		}
	}
	return all
}

// Now is the time as rows store it: UTC, in microseconds.
func Now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
