package api

// VM states. A VM that is stopped, snapshotted or in error can be started again.
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
	ConditionVMMHealthy   = "vmm_healthy"
	ConditionCloudInit    = "cloud_init_done"
)

// Condition statuses.
const (
	StatusTrue    = "true"
	StatusFalse   = "false"
	StatusUnknown = "unknown"
)

// MachineSpec is the part of a VM that a create request and a template can set. A
// nil field is not set: the value comes from the request, else from the template,
// else from hatchd's defaults.
type MachineSpec struct {
	ImageID           string            `json:"image_id,omitempty" doc:"The ID of the image to use. Defaults to img_default."`
	Description       *string           `json:"description,omitempty" maxLength:"1024" doc:"Purpose of the VM, in up to 1,024 bytes of text. Defaults to the template's."`
	Hostname          *string           `json:"hostname,omitempty" maxLength:"63" doc:"The guest's hostname: letters, digits and hyphens, with a letter or digit at both ends; several such parts may be joined by dots. Defaults to the VM's name, else vm- and the rest of its ID." example:"db-1"`
	VCPUCount         *int              `json:"vcpu_count,omitempty" minimum:"1" maximum:"4096" doc:"Number of virtual CPUs. Defaults to HATCH_DEFAULT_VCPU (1)."`
	MemMiB            *int              `json:"mem_mib,omitempty" minimum:"64" maximum:"67108864" doc:"Memory size in MiB. Defaults to HATCH_DEFAULT_MEM_MIB (512)."`
	DiskMiB           *int              `json:"disk_mib,omitempty" minimum:"64" maximum:"16777216" doc:"Size of the VM's own disk in MiB. Defaults to HATCH_DEFAULT_DISK_MIB."`
	BootArgs          *string           `json:"boot_args,omitempty" maxLength:"1536" doc:"Kernel boot arguments. Defaults to the image's, else HATCH_DEFAULT_BOOT_ARGS."`
	EnableNetwork     *bool             `json:"enable_network,omitempty" doc:"Whether to enable networking. Defaults to true. Without it the VM has no NIC and no SSH port."`
	UserData          *string           `json:"user_data,omitempty" doc:"Cloud-init user data, up to 1 MiB, passed to the guest byte for byte."`
	UserDataEncoding  string            `json:"user_data_encoding,omitempty" enum:"utf8,base64" doc:"Encoding of user_data. Defaults to utf8; base64 is for bytes that are not UTF-8, such as gzip."`
	Labels            map[string]string `json:"labels,omitempty" doc:"Labels to filter by. Those of a request are merged into those of the template."`
	SSHAuthorizedKeys []string          `json:"ssh_authorized_keys,omitempty" nullable:"false" doc:"Public keys in authorized_keys form for the image's default user, in addition to those in user_data."`
	RateLimits        *RateLimits       `json:"rate_limits,omitempty" doc:"Limits of disk and network throughput. Those of a request replace all of the template's."`
	Routes            []CreateRoute     `json:"routes,omitempty" maxItems:"32" nullable:"false" doc:"Routes to the VM, made with it or not at all. Those of a request replace all of the template's."`

	ImplicitRoutes *bool `json:"implicit_routes,omitempty" doc:"Whether PORT-VM below the proxy's domain leads to the VM's ports, for callers with a key or a signed link. Defaults to HATCH_PROXY_IMPLICIT."`

	Idle         *Idle  `json:"idle,omitempty" doc:"What happens to a VM that is not used. That of a request replaces all of the template's. Defaults to HATCH_IDLE_TIMEOUT, HATCH_IDLE_ACTION, HATCH_IDLE_CPU_PERCENT and HATCH_IDLE_NETWORK_BYTES."`
	TTLSeconds   *int64 `json:"ttl_seconds,omitempty" minimum:"0" maximum:"31536000" doc:"Seconds from the creation of a VM until its expire_action, used or not; 0 for no limit."`
	ExpireAction string `json:"expire_action,omitempty" enum:"stop,sleep,delete" doc:"What happens to a VM at expires_at. Defaults to stop."`
	Ports        []Port `json:"ports,omitempty" nullable:"false" maxItems:"64" doc:"TCP ports of the guest to publish on the host. Those of a request replace all of the template's."`
}

// CreateVM is the body of POST /vms.
type CreateVM struct {
	MachineSpec
	TemplateID string `json:"template_id,omitempty" doc:"Template to take default values from. Explicit request parameters override them."`
	GuestIP    string `json:"guest_ip,omitempty" doc:"IPv4 address to assign. Allocated from the bridge's network by default." example:"172.16.0.10"`
	GuestMAC   string `json:"guest_mac,omitempty" doc:"Unicast MAC address to assign. Derived from the address by default." example:"02:FC:00:00:00:0A"`
	Name       string `json:"name,omitempty" maxLength:"63" doc:"Lower-case letters, digits and hyphens. Unique per owner. Also the hostname if none is given."`
	VMM        string `json:"vmm,omitempty" doc:"Driver to run the VM with: auto (default), qemu or firecracker." example:"auto"`
	SnapshotID string `json:"snapshot_id,omitempty" maxLength:"63" doc:"ID or name of a snapshot to clone instead of booting an image. Only name, description, hostname, labels, user_data, ssh_authorized_keys and ports can be combined with it; the rest comes from the snapshot. With user_data, cloud-init runs again; keys alone are only added."`
	Count      *int   `json:"count,omitempty" minimum:"1" maximum:"64" doc:"Number of VMs to clone from the snapshot; requires snapshot_id. The response is then the first VM, and has all of them in vms."`

	ExpiresAt *Time `json:"expires_at,omitempty" doc:"When the VM's expire_action happens, instead of ttl_seconds; RFC 3339."`
}

// UpdateVM is the body of PATCH /vms/{id}, a JSON merge patch: absent fields stay, null
// removes one. It may also repeat fields of the VM that do not change.
type UpdateVM struct {
	Name        *string            `json:"name,omitempty" nullable:"true" maxLength:"63" doc:"Lower-case letters, digits and hyphens. Unique per owner. The guest keeps its hostname."`
	Description *string            `json:"description,omitempty" nullable:"true" maxLength:"1024" doc:"Purpose of the VM."`
	Labels      map[string]*string `json:"labels,omitempty" nullable:"true" doc:"Labels to set; a label that is null is removed, and the others stay."`
	VCPUCount   *int               `json:"vcpu_count,omitempty" minimum:"1" maximum:"4096" doc:"Number of virtual CPUs, of a stopped VM: its next start uses them."`
	MemMiB      *int               `json:"mem_mib,omitempty" minimum:"64" maximum:"67108864" doc:"Memory size in MiB, of a stopped VM: its next start uses it."`

	ImplicitRoutes *bool `json:"implicit_routes,omitempty" nullable:"true" doc:"Whether PORT-VM leads to the VM's ports; null: as HATCH_PROXY_IMPLICIT says."`

	Idle         *Idle   `json:"idle,omitempty" doc:"What happens when the VM is not used; null: nothing. Of its fields, absent ones stay."`
	TTLSeconds   *int64  `json:"ttl_seconds,omitempty" nullable:"true" minimum:"0" maximum:"31536000" doc:"Seconds from now until expire_action; 0 or null: never. With the expires_at that the VM has, the old value changes nothing."`
	ExpiresAt    *Time   `json:"expires_at,omitempty" nullable:"true" doc:"When expire_action happens, instead of ttl_seconds; null: never."`
	ExpireAction *string `json:"expire_action,omitempty" enum:"stop,sleep,delete" doc:"What happens at expires_at, which the VM must have, or get."`
	Ports        *[]Port `json:"ports,omitempty" nullable:"true" maxItems:"64" doc:"All TCP ports of the guest to publish on the host, instead of those before. One that stays keeps its host port."`
}

// CreatedVM is the response to POST /vms: the VM or, if count was given, the first
// VM and a list of all.
type CreatedVM struct {
	VM
	VMs    []VM      `json:"vms,omitempty" nullable:"false" doc:"All new VMs, if count was given."`
	Failed []Failure `json:"failed,omitempty" nullable:"false" doc:"Why each of the others could not be created. Nothing is left of them."`
}

// VM is a virtual machine. Lists omit UserData, SocketPath, SSHHostKeys and BootArgs.
type VM struct {
	ID                string            `json:"id" doc:"Unique VM identifier." example:"vm_abc123def456"`
	Name              string            `json:"name,omitempty" doc:"Unique among its owner's VMs."`
	Description       string            `json:"description,omitempty" doc:"Purpose of the VM."`
	Hostname          string            `json:"hostname,omitempty" doc:"The guest's hostname." example:"db-1"`
	ImageID           string            `json:"image_id" doc:"The image ID used for this VM." example:"img_default"`
	TemplateID        string            `json:"template_id,omitempty" doc:"The template ID used, if any."`
	State             string            `json:"state" enum:"starting,running,stopping,stopped,snapshotted,error,paused" doc:"Current state."`
	StateReason       string            `json:"state_reason,omitempty" doc:"Why the VM is in this state, as text for people."`
	Conditions        []Condition       `json:"conditions,omitempty" nullable:"false" doc:"Conditions of the guest."`
	VCPUCount         int               `json:"vcpu_count" doc:"Number of virtual CPUs."`
	MemMiB            int               `json:"mem_mib" doc:"Memory size in MiB."`
	DiskMiB           int               `json:"disk_mib" doc:"Size of the VM's own disk in MiB."`
	BootArgs          string            `json:"boot_args,omitempty" doc:"Kernel boot arguments."`
	GuestIP           string            `json:"guest_ip,omitempty" doc:"The guest's IP address."`
	GuestMAC          string            `json:"guest_mac,omitempty" doc:"The guest's MAC address."`
	TapName           string            `json:"tap_name,omitempty" doc:"The TAP interface on the host."`
	SSHPort           int               `json:"ssh_port,omitempty" doc:"The host port forwarded to the guest's port 22."`
	SSHHostKeys       []string          `json:"ssh_host_keys,omitempty" nullable:"false" doc:"Public keys of the guest's SSH server in authorized_keys form, as its agent reports them."`
	SocketPath        string            `json:"socket_path,omitempty" doc:"Path of the VMM's control socket on the host."`
	Sleep             *Sleep            `json:"sleep,omitempty" doc:"Saved memory of a sleeping VM; absent if it does not sleep."`
	SnapshotID        string            `json:"snapshot_id,omitempty" doc:"Snapshot that the VM was last restored to, cloned from, or saved as."`
	UserData          string            `json:"user_data,omitempty" doc:"The cloud-init user data."`
	UserDataEncoding  string            `json:"user_data_encoding,omitempty" enum:"utf8,base64" doc:"base64 if user_data is not UTF-8; otherwise absent."`
	EnableNetwork     bool              `json:"enable_network" doc:"Whether networking is enabled."`
	Labels            map[string]string `json:"labels,omitempty" doc:"Labels."`
	SSHAuthorizedKeys []string          `json:"ssh_authorized_keys,omitempty" nullable:"false" doc:"Public keys given at create."`
	RateLimits        *RateLimits       `json:"rate_limits,omitempty" doc:"Limits of disk and network throughput; absent if there are none."`
	VMM               string            `json:"vmm,omitempty" doc:"The driver that runs the VM." example:"qemu"`
	CreatedAt         Time              `json:"created_at" doc:"When the VM was created, RFC 3339, UTC."`
	UpdatedAt         Time              `json:"updated_at" doc:"When the VM was last updated, RFC 3339, UTC."`
	StartedAt         *Time             `json:"started_at,omitempty" doc:"When the VM was last started, RFC 3339, UTC."`
	Ports             []Port            `json:"ports,omitempty" nullable:"false" doc:"TCP ports of the guest that are published on the host."`
	Routes            []Route           `json:"routes,omitempty" nullable:"false" doc:"Routes to the VM, in the responses to POST /vms, and to GET and PATCH of the VM."`

	ImplicitRoutes *bool `json:"implicit_routes,omitempty" doc:"Whether PORT-VM leads to the VM's ports; absent if that is as HATCH_PROXY_IMPLICIT says."`

	Idle         *Idle  `json:"idle,omitempty" doc:"What happens when the VM is not used; absent if nothing does."`
	TTLSeconds   *int64 `json:"ttl_seconds,omitempty" doc:"The time from its begin to expires_at, if the VM was given one; clones get it anew."`
	ExpiresAt    *Time  `json:"expires_at,omitempty" doc:"When expire_action happens, RFC 3339, UTC; absent for never."`
	ExpireAction string `json:"expire_action,omitempty" enum:"stop,sleep,delete" doc:"What happens at expires_at."`
	Use
}

// Use is how a VM is used. GET of one VM and lists show it; it is no part of the ETag.
type Use struct {
	LastActivity *Activity `json:"last_activity,omitempty" doc:"What the VM was last used for, as far as it is known; of a sleeping VM, before it fell asleep."`
	InUse        bool      `json:"in_use,omitempty" doc:"Whether that goes on."`
	SleepsAt     *Time     `json:"sleeps_at,omitempty" doc:"When the idle policy takes the VM down if nothing happens before, RFC 3339, UTC. The guest's own work is only looked at then."`
}

// Activity is one use of a VM.
type Activity struct {
	At    Time   `json:"at" doc:"When it was, RFC 3339, UTC."`
	Cause string `json:"cause" doc:"What it was: exec, files, console, ssh, route, port, tunnel, wait; of the guest itself keep-awake, command, cpu, network; or start."`
	Peer  string `json:"peer,omitempty" doc:"Who it was, if that is known: an address, a route, an API key."`
}

// Idle is what happens to a VM that is not used.
type Idle struct {
	TimeoutSeconds *int64 `json:"timeout_seconds,omitempty" minimum:"0" maximum:"31536000" doc:"Seconds without activity; 0 for no limit, which is the default. Status reads are no activity."`
	Action         string `json:"action,omitempty" enum:"sleep,stop,none" doc:"What happens then. Defaults to HATCH_IDLE_ACTION (sleep)."`
	CPUPercent     *int   `json:"cpu_percent,omitempty" minimum:"0" maximum:"409600" doc:"CPU use from which the guest counts as active, on average over the timeout, in percent of one CPU; 0: at no use. Defaults to HATCH_IDLE_CPU_PERCENT (10)."`
	NetworkBytes   *int64 `json:"network_bytes,omitempty" minimum:"0" doc:"Bytes received and sent within the timeout from which the guest counts as active; 0: at no number. Defaults to HATCH_IDLE_NETWORK_BYTES (1048576)."`
}

// Port is a TCP port of the guest that is published on the host: a listener there wakes a
// sleeping VM and connects its clients with the guest.
type Port struct {
	Guest        int      `json:"guest" minimum:"1" maximum:"65535" doc:"Port in the guest. Each can be published once." example:"80"`
	Host         int      `json:"host,omitempty" minimum:"1" maximum:"65535" doc:"Port of the host, which no other VM may have. Without it a free one from HATCH_PORT_MIN to HATCH_PORT_MAX is chosen. To choose one requires the scope admin." example:"8080"`
	AllowedCIDRs []string `json:"allowed_cidrs,omitempty" nullable:"false" minItems:"1" maxItems:"32" doc:"Networks that may connect; 0.0.0.0/0 and ::/0 allow all. Without it HATCH_PORT_ALLOWED_CIDR holds (127.0.0.1/32). If all are loopback, the host listens on loopback only." example:"[\"192.0.2.0/24\"]"`
	Name         string   `json:"name,omitempty" maxLength:"63" doc:"What it is for: lower-case letters, digits and hyphens. Unique in the VM." example:"web"`
}

// RateLimits limit disk and network throughput. What is absent is not limited.
// The burst is what the limit allows in one second.
type RateLimits struct {
	Disk       *DiskRateLimit    `json:"disk,omitempty" doc:"Limit of each disk, including that of the image; reads and writes together."`
	NetworkIn  *NetworkRateLimit `json:"network_in,omitempty" doc:"Limit of received data."`
	NetworkOut *NetworkRateLimit `json:"network_out,omitempty" doc:"Limit of sent data."`
}

// DiskRateLimit limits the throughput of a disk.
type DiskRateLimit struct {
	BytesPerSecond int64 `json:"bytes_per_second,omitempty" minimum:"65536" maximum:"10000000000" doc:"Bytes read and written per second."`
	OpsPerSecond   int64 `json:"ops_per_second,omitempty" minimum:"10" maximum:"1000000" doc:"Read and write operations per second."`
}

// NetworkRateLimit limits one direction of a VM's network device.
type NetworkRateLimit struct {
	BytesPerSecond int64 `json:"bytes_per_second,omitempty" minimum:"65536" maximum:"10000000000" doc:"Bytes per second."`
}

// Sleep describes the saved memory of a sleeping VM.
type Sleep struct {
	TakenAt   Time  `json:"taken_at" doc:"Time at which the guest was paused, RFC 3339, UTC."`
	Durable   bool  `json:"durable" doc:"Whether the memory is on disk. Until then, for some seconds, it is in the host's RAM, and lost if the host restarts."`
	SizeBytes int64 `json:"size_bytes" doc:"Size of the saved memory in bytes."`
}

// Condition is one condition of a guest.
type Condition struct {
	Type      string `json:"type" enum:"network_ready,agent_ready,vmm_healthy,cloud_init_done" doc:"Type of the condition."`
	Status    string `json:"status" enum:"true,false,unknown" doc:"Whether the condition is true."`
	Reason    string `json:"reason,omitempty" doc:"Why, as a stable word."`
	Message   string `json:"message,omitempty" doc:"Why, as text for people."`
	ChangedAt Time   `json:"changed_at" doc:"Time of the last change of the status."`
}

// Deleted is the response to a successful DELETE.
type Deleted struct {
	Status string `json:"status" enum:"deleted" doc:"Always deleted."`
}
