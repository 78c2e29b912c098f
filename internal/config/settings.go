package config

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Setting describes one setting of hatchd.
type Setting struct {
	Name    string   // key in the file; the flag is the same with hyphens
	Env     string   // environment variable
	Aliases []string // other variables that mean the same
	Default string   // "" if Doc describes the default
	Doc     string   // one or two sentences
	Secret  bool     // not shown, and without a flag: all users of the host can read arguments

	set  func(*Config, string) error // parses a value and stores it
	mask func(string) string         // masks the secret part of a value; may be nil
}

// Flag returns the setting's flag without leading hyphens, or "" if it has none.
func (s Setting) Flag() string {
	if s.Secret {
		return ""
	}
	return strings.ReplaceAll(s.Name, "_", "-")
}

// shown returns a value as it may be shown.
func (s Setting) shown(raw string) string {
	switch {
	case s.Secret && raw != "":
		return "(hidden)"
	case s.mask != nil:
		return s.mask(raw)
	}
	return raw
}

// Settings returns the table of all settings.
func Settings() []Setting { return slices.Clone(settings) }

// settings has all settings, in the order of the documentation. These tables are the only
// place with their names.
var settings = slices.Concat(apiSettings, oidcSettings, mainSettings, quotaSettings, rateSettings, routeSettings, logSettings)

var mainSettings = []Setting{
	{
		Name: "memory_limit_mib", Env: "HATCH_MEMORY_LIMIT_MIB", Default: "0",
		Doc: "Memory that hatchd itself, without VMs, tries to stay within, in MiB: above it, it collects garbage more often. `0` means an eighth of the host's memory, 256 at least and 4096 at most, and never more than nine tenths of the limit of its cgroup. The variable `GOMEMLIMIT` takes precedence.",
		set: integer(0, 1<<24, func(c *Config) *int64 { return &c.MemoryLimitMiB }),
	},
	{
		Name: "data_dir", Env: "HATCH_DATA_DIR", Default: defaultDataDir,
		Doc: "Directory of hatchd's data: database, images, VMs' disks, the admin key. One hatchd per directory. No other user may be able to write to it, or to replace it.",
		set: directory(func(c *Config) *string { return &c.DataDir }),
	},
	{
		Name: "trust_data_dir_parents", Env: "HATCH_TRUST_DATA_DIR_PARENTS", Default: "false",
		Doc: "Accept a data directory below directories that other users can change, such as a user's home or a shared volume. They can replace the data directory, and so get the rights of `hatchd`. The data directory itself, and what is in it, must still be safe from them.",
		set: boolean(func(c *Config) *bool { return &c.TrustDataDirParents }),
	},
	{
		Name: "database_url", Env: "HATCH_DATABASE_URL", Aliases: []string{"DATABASE_URL"},
		Doc: "`postgres://USER:PASSWORD@HOST:PORT/NAME`, or the path of an SQLite file; one hatchd at a time. Default: `hatch.db` in the data directory.",
		set: database, mask: withoutPassword,
	},
	{
		Name: "secrets_key_file", Env: "HATCH_SECRETS_KEY_FILE",
		Doc: "File with the key that opens the secrets in the database, made at the first start; keep a copy. On another volume than the database, neither opens them alone. Default: `secrets.key` in the data directory.",
		set: absolute(func(c *Config) *string { return &c.SecretsKeyFile }),
	},
	{
		Name: "api_key", Env: "HATCH_API_KEY", Secret: true,
		Doc: "API key to use instead of a generated one, 16 bytes or longer. Default: the first start generates one and writes it to `admin.key` in the data directory.",
		set: apiKey,
	},
	{
		Name: "default_kernel_path", Env: "HATCH_DEFAULT_KERNEL_PATH",
		Doc: "Kernel of the image `img_default`. Default: the image that `hatch image build` builds.",
		set: absolute(func(c *Config) *string { return &c.DefaultKernelPath }),
	},
	{
		Name: "default_rootfs_path", Env: "HATCH_DEFAULT_ROOTFS_PATH",
		Doc: "Root file system of the image `img_default`; set it together with the kernel.",
		set: absolute(func(c *Config) *string { return &c.DefaultRootfsPath }),
	},
	{
		Name: "default_vcpu", Env: "HATCH_DEFAULT_VCPU", Default: "1",
		Doc: "Virtual CPUs of a VM, unless its request sets them.",
		set: integer(1, 1024, func(c *Config) *int { return &c.DefaultVCPU }),
	},
	{
		Name: "default_mem_mib", Env: "HATCH_DEFAULT_MEM_MIB", Default: "512",
		Doc: "Memory of a VM in MiB, unless its request sets it.",
		set: integer(64, 16<<20, func(c *Config) *int { return &c.DefaultMemMiB }),
	},
	{
		Name: "default_disk_mib", Env: "HATCH_DEFAULT_DISK_MIB", Default: "2048",
		Aliases: []string{"HATCH_MAX_OVERLAY_SIZE_MIB", "HATCH_MAX_ROOTFS_SIZE_MIB"},
		Doc:     "Size of a VM's own disk in MiB, unless its request sets it. The disk is sparse: it uses space as the guest writes.",
		set:     integer(64, 16<<20, func(c *Config) *int { return &c.DefaultDiskMiB }),
	},
	{
		Name: "default_boot_args", Env: "HATCH_DEFAULT_BOOT_ARGS", Default: "console=ttyS0 panic=1 quiet loglevel=4",
		Doc: "Kernel command line of a VM, unless its request or its image sets one. hatchd adds the parameters of its initramfs.",
		set: bootArgs,
	},
	{
		Name: "image_dirs", Env: "HATCH_IMAGE_DIRS",
		Doc: "Directories whose files clients with the scope admin may register as images, separated by `:`. Only root may be able to write to them and to the directories above; none may be in the data directory, or the reverse. Default: none; images that `hatch image build` builds, and `img_default`, need none.",
		set: directories(func(c *Config) *[]string { return &c.ImageDirs }),
	},
	{
		Name: "debian_mirror", Env: "HATCH_DEBIAN_MIRROR",
		Doc: "URL of the Debian mirror that `hatch image build` uses, and, after a comma, of one of its security archive. Default: the mirrors in the host's package sources.",
		set: mirrors(func(c *Config) *[]string { return &c.DebianMirrors }),
	},
	{
		Name: "bridge_name", Env: "HATCH_BRIDGE_NAME", Default: "hatch0",
		Doc: "Network bridge of the VMs; hatchd creates it.",
		set: bridgeName,
	},
	{
		Name: "bridge_cidr", Env: "HATCH_BRIDGE_CIDR", Default: "172.16.0.1/24",
		Doc: "The host's own address on the bridge, with the prefix length of the network that VMs get addresses from, /8 to /30.",
		set: bridgeCIDR,
	},
	{
		Name: "egress_allow_private", Env: "HATCH_EGRESS_ALLOW_PRIVATE",
		Doc: "Private IPv4 networks that VMs may reach, separated by commas. Default: none; VMs reach only the internet.",
		set: networks(func(c *Config) *prefixes { return (*prefixes)(&c.EgressAllowPrivate) }),
	},
	{
		Name: "ssh_port_min", Env: "HATCH_SSH_PORT_MIN", Default: "16000",
		Doc: "First host port for VMs' SSH ports.",
		set: integer(1, 65535, func(c *Config) *int { return &c.SSHPortMin }),
	},
	{
		Name: "ssh_port_max", Env: "HATCH_SSH_PORT_MAX", Default: "26000",
		Doc: "Last host port for VMs' SSH ports.",
		set: integer(1, 65535, func(c *Config) *int { return &c.SSHPortMax }),
	},
	{
		Name: "ssh_allowed_cidr", Env: "HATCH_SSH_ALLOWED_CIDR", Default: "127.0.0.1/32",
		Doc: "Networks that may connect to VMs' SSH ports, separated by commas. `0.0.0.0/0` allows all.",
		set: networks(func(c *Config) *prefixes { return (*prefixes)(&c.SSHAllowed) }),
	},
	{
		Name: "ssh_max_connections", Env: "HATCH_SSH_MAX_CONNECTIONS", Default: "4096",
		Doc: "Connections to all VMs' SSH ports at a time, 16 to 1048576. For an eighth of them guests may be woken or dialled at a time.",
		set: integer(16, 1<<20, func(c *Config) *int { return &c.SSHMaxConns }),
	},
	{
		Name: "ssh_max_client_connections", Env: "HATCH_SSH_MAX_CLIENT_CONNECTIONS", Default: "512",
		Doc: "Connections to all VMs' SSH ports at a time from one IPv4 address, or one IPv6 /64, of another host, 1 to 1048576. For a quarter of them guests may be woken or dialled at a time.",
		set: integer(1, 1<<20, func(c *Config) *int { return &c.SSHMaxClientConns }),
	},
	{
		Name: "ssh_max_vm_connections", Env: "HATCH_SSH_MAX_VM_CONNECTIONS", Default: "64",
		Doc: "Connections to the SSH port of one VM at a time, 2 to 65536; one client may have half.",
		set: integer(2, 1<<16, func(c *Config) *int { return &c.SSHMaxVMConns }),
	},
	{
		Name: "port_min", Env: "HATCH_PORT_MIN", Default: "26001",
		Doc: "First host port for published ports of VMs that name none.",
		set: integer(1, 65535, func(c *Config) *int { return &c.PortMin }),
	},
	{
		Name: "port_max", Env: "HATCH_PORT_MAX", Default: "32000",
		Doc: "Last host port for published ports of VMs that name none.",
		set: integer(1, 65535, func(c *Config) *int { return &c.PortMax }),
	},
	{
		Name: "port_allowed_cidr", Env: "HATCH_PORT_ALLOWED_CIDR", Default: "127.0.0.1/32",
		Doc: "Networks that may connect to published ports of VMs that name none, separated by commas. `0.0.0.0/0` allows all.",
		set: networks(func(c *Config) *prefixes { return (*prefixes)(&c.PortAllowed) }),
	},
	{
		Name: "vmm", Env: "HATCH_VMM", Default: "auto",
		Doc: "VMM of a VM, unless its request chooses one: `auto` is Firecracker on a host that has it and hardware KVM, and QEMU otherwise; `qemu` and `firecracker` require that VMM.",
		set: oneOf([]string{"auto", "qemu", "firecracker"}, func(c *Config) *string { return &c.VMM }),
	},
	{
		Name: "qemu_bin", Env: "HATCH_QEMU_BIN", Default: "qemu-system-x86_64",
		Doc: "QEMU's program: a path, or a name to look up in PATH.",
		set: program(func(c *Config) *string { return &c.QEMUBin }),
	},
	{
		Name: "firecracker_bin", Env: "HATCH_FIRECRACKER_BIN", Default: "firecracker",
		Doc: "Firecracker's program: a path, or a name to look up in PATH.",
		set: program(func(c *Config) *string { return &c.FirecrackerBin }),
	},
	{
		Name: "jailer_bin", Env: "HATCH_JAILER_BIN", Default: "jailer",
		Doc: "The jailer of the same Firecracker release: a path, or a name to look up in PATH.",
		set: program(func(c *Config) *string { return &c.JailerBin }),
	},
	{
		Name: "agent_path", Env: "HATCH_AGENT_PATH",
		Doc: "The agent, which runs in guests. Default: `hatch-agent` in the directory of hatchd.",
		set: absolute(func(c *Config) *string { return &c.AgentPath }),
	},
	{
		Name: "stop_timeout", Env: "HATCH_STOP_TIMEOUT", Default: "30s",
		Doc: "How long a stop waits for the guest to shut down before hatchd kills it, 1s to 10m.",
		set: duration(time.Second, 10*time.Minute, "30s", func(c *Config) *time.Duration { return &c.StopTimeout }),
	},
	{
		Name: "cgroup", Env: "HATCH_CGROUP", Default: "/hatch",
		Doc: "Cgroup in which hatchd makes one for each VM, as a path below `/sys/fs/cgroup`. hatchd makes `/hatch` itself; any other must exist, as that of the unit `hatch-vms.service` does. The unit of hatchd sets it.",
		set: cgroup,
	},
	{
		Name: "host_shutdown", Env: "HATCH_HOST_SHUTDOWN", Default: "sleep",
		Doc: "What happens to running VMs when systemd shuts the host down: `sleep` puts them to sleep, and stops those that cannot sleep; `stop` stops them. A stop of hatchd alone leaves them running.",
		set: oneOf([]string{"sleep", "stop"}, func(c *Config) *string { return &c.HostShutdown }),
	},
	{
		Name: "host_shutdown_timeout", Env: "HATCH_HOST_SHUTDOWN_TIMEOUT", Default: "90s",
		Doc: "How long a shutdown of the host waits until all VMs are asleep, with their memory on disk, or stopped, before hatchd kills the others, 5s to 30m. `TimeoutStopSec` of hatchd's unit must be 90 s longer.",
		set: duration(5*time.Second, 30*time.Minute, "90s", func(c *Config) *time.Duration { return &c.HostShutdownTimeout }),
	},
	{
		Name: "autostart", Env: "HATCH_AUTOSTART", Default: "restore",
		Doc: "Whether VMs that ran when the host went down run again once hatchd has started: `restore` wakes those that were put to sleep for it and boots the others, `none` leaves them as they are.",
		set: oneOf([]string{"restore", "none"}, func(c *Config) *string { return &c.Autostart }),
	},
	{
		Name: "uid_min", Env: "HATCH_UID_MIN", Default: "900000",
		Doc: "First user id for VMM processes; each VM has its own. No other program may use these ids.",
		set: integer(1000, maxUID, func(c *Config) *int { return &c.UIDMin }),
	},
	{
		Name: "uid_max", Env: "HATCH_UID_MAX", Default: "965535",
		Doc: "Last user id for VMM processes.",
		set: integer(1000, maxUID, func(c *Config) *int { return &c.UIDMax }),
	},
	{
		Name: "mem_overcommit", Env: "HATCH_MEM_OVERCOMMIT", Default: "1.0",
		Doc: "Memory of running VMs, and of the bases that clones share, may add up to this many times the host's, 0.1 to 100. VMs do not use the host's swap.",
		set: factor(func(c *Config) *float64 { return &c.MemOver }),
	},
	{
		Name: "disk_overcommit", Env: "HATCH_DISK_OVERCOMMIT", Default: "10",
		Doc: "VMs' disks may add up to this many times the space of the data directory, 0.1 to 100. Disks are sparse, and most use far less than their size.",
		set: factor(func(c *Config) *float64 { return &c.DiskOver }),
	},
	{
		Name: "warm", Env: "HATCH_WARM", Default: "auto",
		Doc: "Whether hatchd keeps warm snapshots, from which it clones new VMs instead of booting them: `auto` takes one in the background for every shape of requested VMs, `manual` only on request (`hatch image warm`), `off` none.",
		set: oneOf([]string{"auto", "manual", "off"}, func(c *Config) *string { return &c.Warm }),
	},
	{
		Name: "idle_timeout", Env: "HATCH_IDLE_TIMEOUT", Default: "0",
		Doc: "How long a new VM may be without activity before hatchd puts it to sleep, unless its request or template sets `idle`, such as `10m`, up to 8760h; `0` means no limit. What counts as activity is in the how-to on sleep.",
		set: duration(0, 365*24*time.Hour, "10m", func(c *Config) *time.Duration { return &c.IdleTimeout }),
	},
	{
		Name: "idle_action", Env: "HATCH_IDLE_ACTION", Default: "sleep",
		Doc: "What becomes of an idle VM, unless its request or template sets it: `sleep`, `stop` or `none`.",
		set: oneOf([]string{"sleep", "stop", "none"}, func(c *Config) *string { return &c.IdleAction }),
	},
	{
		Name: "idle_cpu_percent", Env: "HATCH_IDLE_CPU_PERCENT", Default: "10",
		Doc: "CPU use from which a guest counts as active, on average over the idle time, in percent of one CPU, up to 409600, unless the VM's request or template sets it; `0`: at no use.",
		set: integer(0, 100*4096, func(c *Config) *int { return &c.IdleCPUPercent }),
	},
	{
		Name: "idle_network_bytes", Env: "HATCH_IDLE_NETWORK_BYTES", Default: "1048576",
		Doc: "Bytes that a guest receives and sends within the idle time from which it counts as active, up to 2^50, unless the VM's request or template sets it; `0`: at no number.",
		set: integer(0, 1<<50, func(c *Config) *int64 { return &c.IdleNetworkBytes }),
	},
	{
		Name: "max_snapshots_per_vm", Env: "HATCH_MAX_SNAPSHOTS_PER_VM", Default: "10",
		Doc: "Snapshots that one VM may have, 1 to 1000. hatchd evicts the oldest automatic ones for a new one, and never a manual one.",
		set: integer(1, 1000, func(c *Config) *int { return &c.MaxSnapshotsPerVM }),
	},
	{
		Name: "snapshot_max_age", Env: "HATCH_SNAPSHOT_MAX_AGE", Default: "0",
		Doc: "How long automatic snapshots are kept, such as `168h`, up to 87600h; `0` means until their space is needed. Manual ones are kept until a client deletes them.",
		set: duration(0, 10*365*24*time.Hour, "168h", func(c *Config) *time.Duration { return &c.SnapshotMaxAge }),
	},
	{
		Name: "snapshot_disk_mib", Env: "HATCH_SNAPSHOT_DISK_MIB", Default: "0",
		Doc: "Disk space for all snapshots together, in MiB; `0` means all space except a reserve.",
		set: integer(0, 1<<40, func(c *Config) *int64 { return &c.SnapshotDiskMiB }),
	},
	{
		Name: "events_keep", Env: "HATCH_EVENTS_KEEP", Default: "720h",
		Doc: "How long events are kept, 1h to 87600h.",
		set: duration(time.Hour, 10*365*24*time.Hour, "720h", func(c *Config) *time.Duration { return &c.EventsKeep }),
	},
	{
		Name: "events_per_vm", Env: "HATCH_EVENTS_PER_VM", Default: "5000",
		Doc: "Events that are kept of one VM, the newest; at most half of them are of kinds that its guest can cause.",
		set: integer(100, 1<<20, func(c *Config) *int { return &c.EventsPerVM }),
	},
	{
		Name: "events_max", Env: "HATCH_EVENTS_MAX", Default: "500000",
		Doc: "Events that are kept in total, the newest. One needs about half a kilobyte.",
		set: integer(1000, 1<<28, func(c *Config) *int { return &c.EventsMax }),
	},
	{
		Name: "audit_keep", Env: "HATCH_AUDIT_KEEP", Default: "2160h",
		Doc: "How long audit records are kept, 1h to 87600h.",
		set: duration(time.Hour, 10*365*24*time.Hour, "2160h", func(c *Config) *time.Duration { return &c.AuditKeep }),
	},
	{
		Name: "audit_max", Env: "HATCH_AUDIT_MAX", Default: "1000000",
		Doc: "Audit records that are kept in total, the newest. One needs about a quarter of a kilobyte.",
		set: integer(1000, 1<<28, func(c *Config) *int { return &c.AuditMax }),
	},
	{
		Name: "webhook_allow_private", Env: "HATCH_WEBHOOK_ALLOW_PRIVATE", Default: "false",
		Doc: "`true` allows webhooks to this host, to private networks, and over http. Clients with an API key can then make hatchd send requests to services there.",
		set: boolean(func(c *Config) *bool { return &c.WebhookAllowPrivate }),
	},
}

// logSettings are those of the log.
var logSettings = []Setting{
	{
		Name: "log_level", Env: "HATCH_LOG_LEVEL", Default: "info",
		Doc: "Lowest level to log: `debug`, `info`, `warn` or `error`.",
		set: logLevel,
	},
	{
		Name: "log_format", Env: "HATCH_LOG_FORMAT", Default: "text",
		Doc: "Format of the log, on standard error: `text` or `json`.",
		set: oneOf([]string{"text", "json"}, func(c *Config) *string { return &c.LogFormat }),
	},
}

// maxUID is below the ids that mean "no user" in 32 bits.
const maxUID = 1<<31 - 2

// withoutPassword masks the password in a database's address.
func withoutPassword(raw string) string {
	if !strings.Contains(raw, "://") {
		return raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return "(hidden: it cannot be parsed)"
	}
	query := u.Query()
	if query.Has("password") {
		query.Set("password", "xxxxx")
		u.RawQuery = query.Encode()
	}
	return u.Redacted()
}

// Reference returns the table of settings in Markdown.
func Reference() string {
	var b strings.Builder
	b.WriteString("| Variable | Key in the file | Flag | Default | Meaning |\n|---|---|---|---|---|\n")
	for _, s := range settings {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", s.Env, s.Name, code("--", s.Flag()), code("", s.Default), s.Doc+aliasDoc(s))
	}
	return b.String()
}

func code(prefix, text string) string {
	if text == "" {
		return ""
	}
	return "`" + prefix + text + "`"
}

func aliasDoc(s Setting) string {
	if len(s.Aliases) == 0 {
		return ""
	}
	return " Also read from `" + strings.Join(s.Aliases, "`, `") + "`."
}
