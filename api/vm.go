package api

import "time"

// VM states. Stopped, snapshotted and error are no dead ends: such a VM can be
// started again.
const (
	StateStarting    = "starting"
	StateRunning     = "running"
	StateStopping    = "stopping"
	StateStopped     = "stopped"
	StateSnapshotted = "snapshotted"
	StateError       = "error"
	StatePaused      = "paused"
)

// Condition types of a VM.
const (
	ConditionNetworkReady = "network_ready"
	ConditionAgentReady   = "agent_ready"
	ConditionCloudInit    = "cloud_init_done"
)

// Condition statuses.
const (
	StatusTrue    = "true"
	StatusFalse   = "false"
	StatusUnknown = "unknown"
)

// CreateVM is the body of POST /vms. A nil field takes the template's value,
// else the daemon's default.
type CreateVM struct {
	ImageID           string            `json:"image_id,omitempty" doc:"The ID of the image to use. Defaults to the template's image, else img_default."`
	TemplateID        string            `json:"template_id,omitempty" doc:"Template to take default values from. Explicit request parameters override them."`
	VCPUCount         *int              `json:"vcpu_count,omitempty" minimum:"1" maximum:"4096" doc:"Number of virtual CPUs. Defaults to HATCH_DEFAULT_VCPU (1)."`
	MemMiB            *int              `json:"mem_mib,omitempty" minimum:"64" maximum:"67108864" doc:"Memory size in MiB. Defaults to HATCH_DEFAULT_MEM_MIB (512)."`
	BootArgs          *string           `json:"boot_args,omitempty" maxLength:"1536" doc:"Kernel boot arguments. Defaults to the image's, else HATCH_DEFAULT_BOOT_ARGS."`
	EnableNetwork     *bool             `json:"enable_network,omitempty" doc:"Whether to enable networking. Defaults to true. Without it the VM has no NIC and no SSH port."`
	GuestIP           string            `json:"guest_ip,omitempty" doc:"IPv4 address to assign. Allocated from the bridge's network when absent." example:"172.16.0.10"`
	GuestMAC          string            `json:"guest_mac,omitempty" doc:"Unicast MAC address to assign. Derived from the address when absent." example:"02:FC:00:00:00:0A"`
	UserData          *string           `json:"user_data,omitempty" doc:"Cloud-init user data, passed to the guest byte for byte."`
	Name              string            `json:"name,omitempty" maxLength:"63" doc:"Name and hostname: lower-case letters, digits and hyphens. Unique per owner."`
	Labels            map[string]string `json:"labels,omitempty" doc:"Free labels to filter by."`
	DiskMiB           *int              `json:"disk_mib,omitempty" minimum:"64" maximum:"16777216" doc:"Size of the VM's own disk in MiB. Defaults to HATCH_DEFAULT_DISK_MIB."`
	SSHAuthorizedKeys []string          `json:"ssh_authorized_keys,omitempty" nullable:"false" doc:"Public keys, authorized_keys form, for the image's default user, beside those that user_data gives it."`
	VMM               string            `json:"vmm,omitempty" doc:"Driver to run the VM with: auto (default), qemu or firecracker." example:"auto"`
	RateLimits        *RateLimits       `json:"rate_limits,omitempty" doc:"How fast the VM may move data at most. Given, it takes the place of all of the template's."`
	SnapshotID        string            `json:"snapshot_id,omitempty" maxLength:"63" doc:"ID or name of a snapshot to go on from, in place of booting an image. Only name, labels, user_data and ssh_authorized_keys can be given beside it; all else comes with the snapshot. With user_data cloud-init does all its work once more; keys alone are added, and nothing else is done again."`
	Count             *int              `json:"count,omitempty" minimum:"1" maximum:"64" doc:"How many VMs to make of the snapshot; goes with snapshot_id only. The answer then has all of them in vms, and is itself the first."`
}

// CreatedVM is the answer to POST /vms: the VM or, when count was given, all of
// them, and the first in front.
type CreatedVM struct {
	VM
	VMs    []VM      `json:"vms,omitempty" nullable:"false" doc:"All new VMs, when count was given."`
	Failed []Failure `json:"failed,omitempty" nullable:"false" doc:"Why each of the others was not made. Nothing is left of those."`
}

// VM is a virtual machine as the API shows it. Lists leave out UserData,
// SocketPath and BootArgs.
type VM struct {
	ID                string            `json:"id" doc:"Unique VM identifier." example:"vm_abc123def456"`
	Name              string            `json:"name,omitempty" doc:"Name and hostname."`
	ImageID           string            `json:"image_id" doc:"The image ID used for this VM." example:"img_default"`
	TemplateID        string            `json:"template_id,omitempty" doc:"The template ID used, if any."`
	State             string            `json:"state" enum:"starting,running,stopping,stopped,snapshotted,error,paused" doc:"Current state."`
	StateReason       string            `json:"state_reason,omitempty" doc:"Why the VM is in this state, in words."`
	Conditions        []Condition       `json:"conditions,omitempty" nullable:"false" doc:"What is known of the guest."`
	VCPUCount         int               `json:"vcpu_count" doc:"Number of virtual CPUs."`
	MemMiB            int               `json:"mem_mib" doc:"Memory size in MiB."`
	DiskMiB           int               `json:"disk_mib" doc:"Size of the VM's own disk in MiB."`
	BootArgs          string            `json:"boot_args,omitempty" doc:"Kernel boot arguments."`
	GuestIP           string            `json:"guest_ip,omitempty" doc:"The guest's IP address."`
	GuestMAC          string            `json:"guest_mac,omitempty" doc:"The guest's MAC address."`
	TapName           string            `json:"tap_name,omitempty" doc:"The TAP interface on the host."`
	SSHPort           int               `json:"ssh_port,omitempty" doc:"The host port forwarded to the guest's port 22."`
	SocketPath        string            `json:"socket_path,omitempty" doc:"Path of the VMM's control socket on the host."`
	Sleep             *Sleep            `json:"sleep,omitempty" doc:"How the memory of a sleeping VM is kept; absent unless it sleeps."`
	SnapshotID        string            `json:"snapshot_id,omitempty" doc:"The snapshot that the VM was last put to, made from, or kept in."`
	UserData          string            `json:"user_data,omitempty" doc:"The cloud-init user data."`
	EnableNetwork     bool              `json:"enable_network" doc:"Whether networking is enabled."`
	Labels            map[string]string `json:"labels,omitempty" doc:"Labels."`
	SSHAuthorizedKeys []string          `json:"ssh_authorized_keys,omitempty" nullable:"false" doc:"Public keys given at create."`
	RateLimits        *RateLimits       `json:"rate_limits,omitempty" doc:"How fast the VM may move data at most; absent when nothing bounds it."`
	VMM               string            `json:"vmm,omitempty" doc:"The driver that runs the VM." example:"qemu"`
	CreatedAt         time.Time         `json:"created_at" doc:"When the VM was created, RFC 3339, UTC."`
	UpdatedAt         time.Time         `json:"updated_at" doc:"When the VM was last updated, RFC 3339, UTC."`
	StartedAt         *time.Time        `json:"started_at,omitempty" doc:"When the VM was last started, RFC 3339, UTC."`
}

// RateLimits bound how fast a VM may move data. What is absent is not bounded.
// After a rest up to a second's worth may pass at once.
type RateLimits struct {
	Disk       *DiskRateLimit    `json:"disk,omitempty" doc:"Of each of its disks by itself, the image's among them; reads and writes together."`
	NetworkIn  *NetworkRateLimit `json:"network_in,omitempty" doc:"What the guest receives."`
	NetworkOut *NetworkRateLimit `json:"network_out,omitempty" doc:"What the guest sends."`
}

// DiskRateLimit bounds the use of a disk.
type DiskRateLimit struct {
	BytesPerSecond int64 `json:"bytes_per_second,omitempty" minimum:"65536" maximum:"10000000000" doc:"Bytes read and written in a second."`
	OpsPerSecond   int64 `json:"ops_per_second,omitempty" minimum:"10" maximum:"1000000" doc:"Reads and writes in a second."`
}

// NetworkRateLimit bounds one direction of a VM's network device.
type NetworkRateLimit struct {
	BytesPerSecond int64 `json:"bytes_per_second,omitempty" minimum:"65536" maximum:"10000000000" doc:"Bytes in a second."`
}

// Sleep is how the memory of a sleeping VM is kept.
type Sleep struct {
	TakenAt   time.Time `json:"taken_at" doc:"When the guest stood still, RFC 3339, UTC."`
	Durable   bool      `json:"durable" doc:"Whether the memory is on disk. Until then, for some seconds, it is in the host's RAM, and would be lost if the host were restarted."`
	SizeBytes int64     `json:"size_bytes" doc:"What the memory takes, there."`
}

// Condition is one fact about a guest.
type Condition struct {
	Type      string    `json:"type" enum:"network_ready,agent_ready,cloud_init_done" doc:"What the condition is about."`
	Status    string    `json:"status" enum:"true,false,unknown" doc:"Whether it holds."`
	Reason    string    `json:"reason,omitempty" doc:"Why, as one stable word."`
	Message   string    `json:"message,omitempty" doc:"Why, in words."`
	ChangedAt time.Time `json:"changed_at" doc:"When the status last changed."`
}

// Deleted is the body of a successful DELETE.
type Deleted struct {
	Status string `json:"status" enum:"deleted" doc:"Always deleted."`
}
