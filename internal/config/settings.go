package config

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Setting is one thing the operator can decide.
type Setting struct {
	Name    string   // key in the file; the flag is the same with hyphens
	Env     string   // environment variable
	Aliases []string // other variables that mean the same
	Default string   // "" when Doc tells
	Doc     string   // one or two sentences
	Secret  bool     // never shown, nor taken by a flag: arguments can be read by everybody

	set  func(*Config, string) error // parses; the error says what would be right
	mask func(string) string         // how a value with a secret part is shown
}

// Flag returns the setting's flag without hyphens in front, "" when it has none.
func (s Setting) Flag() string {
	if s.Secret {
		return ""
	}
	return strings.ReplaceAll(s.Name, "_", "-")
}

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

// settings is the one table; nothing else knows a setting's name.
var settings = []Setting{
	{
		Name: "http_addr", Env: "HATCH_HTTP_ADDR", Default: "127.0.0.1:8080",
		Doc: "Address and port of the REST API. Give `:8080` to listen on every interface; then put TLS in front.",
		set: address(func(c *Config) *string { return &c.HTTPAddr }),
	},
	{
		Name: "data_dir", Env: "HATCH_DATA_DIR", Default: "/var/lib/hatch",
		Doc: "Directory for everything hatchd keeps: database, images, VMs' disks, the admin key. One hatchd per directory.",
		set: directory(func(c *Config) *string { return &c.DataDir }),
	},
	{
		Name: "database_url", Env: "HATCH_DATABASE_URL", Aliases: []string{"DATABASE_URL"},
		Doc: "`postgres://USER:PASSWORD@HOST:PORT/NAME`, or the path of an SQLite file. Default: `hatch.db` in the data directory.",
		set: database, mask: withoutPassword,
	},
	{
		Name: "api_key", Env: "HATCH_API_KEY", Secret: true,
		Doc: "API key to use instead of a made-up one, 16 bytes or longer. Default: the first start makes one and writes it to `admin.key` in the data directory.",
		set: apiKey,
	},
	{
		Name: "default_kernel_path", Env: "HATCH_DEFAULT_KERNEL_PATH",
		Doc: "Kernel of the image `img_default`. Default: the image that `hatch image build` makes.",
		set: absolute(func(c *Config) *string { return &c.DefaultKernelPath }),
	},
	{
		Name: "default_rootfs_path", Env: "HATCH_DEFAULT_ROOTFS_PATH",
		Doc: "Root file system of the image `img_default`; goes with the kernel.",
		set: absolute(func(c *Config) *string { return &c.DefaultRootfsPath }),
	},
	{
		Name: "default_vcpu", Env: "HATCH_DEFAULT_VCPU", Default: "1",
		Doc: "Virtual CPUs of a VM that does not say.",
		set: whole(1, 1024, func(c *Config) *int { return &c.DefaultVCPU }),
	},
	{
		Name: "default_mem_mib", Env: "HATCH_DEFAULT_MEM_MIB", Default: "512",
		Doc: "Memory in MiB of a VM that does not say.",
		set: whole(64, 16<<20, func(c *Config) *int { return &c.DefaultMemMiB }),
	},
	{
		Name: "default_disk_mib", Env: "HATCH_DEFAULT_DISK_MIB", Default: "2048",
		Aliases: []string{"HATCH_MAX_OVERLAY_SIZE_MIB", "HATCH_MAX_ROOTFS_SIZE_MIB"},
		Doc:     "Size in MiB of the own disk of a VM that does not say. It is sparse: space is taken as the guest writes.",
		set:     whole(64, 16<<20, func(c *Config) *int { return &c.DefaultDiskMiB }),
	},
	{
		Name: "default_boot_args", Env: "HATCH_DEFAULT_BOOT_ARGS", Default: "console=ttyS0 panic=1 quiet loglevel=4",
		Doc: "Kernel command line of a VM when neither it nor its image says. hatchd adds what its own initramfs needs.",
		set: bootArgs,
	},
	{
		Name: "bridge_name", Env: "HATCH_BRIDGE_NAME", Default: "hatch0",
		Doc: "Network bridge of the VMs; hatchd makes it.",
		set: bridgeName,
	},
	{
		Name: "bridge_cidr", Env: "HATCH_BRIDGE_CIDR", Default: "172.16.0.1/24",
		Doc: "The host's own address on the bridge, with the prefix length of the network that VMs get addresses from, /8 to /30.",
		set: bridgeCIDR,
	},
	{
		Name: "egress_allow_private", Env: "HATCH_EGRESS_ALLOW_PRIVATE",
		Doc: "Private IPv4 networks that VMs may reach all the same, with commas between. Default: none; VMs reach the internet only.",
		set: networks(func(c *Config) *prefixes { return (*prefixes)(&c.EgressAllowPrivate) }),
	},
	{
		Name: "ssh_port_min", Env: "HATCH_SSH_PORT_MIN", Default: "16000",
		Doc: "First host port for VMs' SSH ports.",
		set: whole(1, 65535, func(c *Config) *int { return &c.SSHPortMin }),
	},
	{
		Name: "ssh_port_max", Env: "HATCH_SSH_PORT_MAX", Default: "26000",
		Doc: "Last host port for VMs' SSH ports.",
		set: whole(1, 65535, func(c *Config) *int { return &c.SSHPortMax }),
	},
	{
		Name: "ssh_allowed_cidr", Env: "HATCH_SSH_ALLOWED_CIDR", Default: "127.0.0.1/32",
		Doc: "Networks that may connect to VMs' SSH ports, with commas between. `0.0.0.0/0` lets everybody in.",
		set: networks(func(c *Config) *prefixes { return (*prefixes)(&c.SSHAllowed) }),
	},
	{
		Name: "vmm", Env: "HATCH_VMM", Default: "auto",
		Doc: "What runs VMs that do not choose: `auto` is Firecracker where it and hardware KVM are there, and QEMU elsewhere; `qemu` or `firecracker` insists; `fake` runs nothing and is for scripts.",
		set: oneOf([]string{"auto", "qemu", "firecracker", "fake"}, func(c *Config) *string { return &c.VMM }),
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
		Doc: "The program that runs in guests. Default: `hatch-agent` beside hatchd.",
		set: absolute(func(c *Config) *string { return &c.AgentPath }),
	},
	{
		Name: "stop_timeout", Env: "HATCH_STOP_TIMEOUT", Default: "30s",
		Doc: "How long a stop waits for the guest to shut down before it is ended, 1s to 10m.",
		set: span(time.Second, 10*time.Minute, "30s", func(c *Config) *time.Duration { return &c.StopTimeout }),
	},
	{
		Name: "uid_min", Env: "HATCH_UID_MIN", Default: "900000",
		Doc: "First user id for VMM processes; each VM has its own. No other program may use these ids.",
		set: whole(1000, maxUID, func(c *Config) *int { return &c.UIDMin }),
	},
	{
		Name: "uid_max", Env: "HATCH_UID_MAX", Default: "965535",
		Doc: "Last user id for VMM processes.",
		set: whole(1000, maxUID, func(c *Config) *int { return &c.UIDMax }),
	},
	{
		Name: "mem_overcommit", Env: "HATCH_MEM_OVERCOMMIT", Default: "1.0",
		Doc: "Running VMs' memory, and what copies share, may add up to this many times the host's, 0.1 to 100.",
		set: factor(func(c *Config) *float64 { return &c.MemOver }),
	},
	{
		Name: "disk_overcommit", Env: "HATCH_DISK_OVERCOMMIT", Default: "10",
		Doc: "VMs' disks may add up to this many times the space of the data directory, 0.1 to 100. They are sparse, and mostly stay far below their size.",
		set: factor(func(c *Config) *float64 { return &c.DiskOver }),
	},
	{
		Name: "warm", Env: "HATCH_WARM", Default: "auto",
		Doc: "Whether guests are kept booted, for new VMs to begin as: `auto` boots one in the background for every shape that VMs are asked for in, `manual` only on request (`hatch image warm`), `off` none.",
		set: oneOf([]string{"auto", "manual", "off"}, func(c *Config) *string { return &c.Warm }),
	},
	{
		Name: "max_snapshots_per_vm", Env: "HATCH_MAX_SNAPSHOTS_PER_VM", Default: "10",
		Doc: "Snapshots that one VM may have, 1 to 1000. The oldest automatic ones make room for a new one; manual ones never do.",
		set: whole(1, 1000, func(c *Config) *int { return &c.MaxSnapshotsPerVM }),
	},
	{
		Name: "snapshot_max_age", Env: "HATCH_SNAPSHOT_MAX_AGE", Default: "0",
		Doc: "How long automatic snapshots are kept, such as `168h`, up to 87600h; `0` is as long as there is room. Manual ones are kept until they are deleted.",
		set: span(0, 10*365*24*time.Hour, "168h", func(c *Config) *time.Duration { return &c.SnapshotMaxAge }),
	},
	{
		Name: "snapshot_disk_mib", Env: "HATCH_SNAPSHOT_DISK_MIB", Default: "0",
		Doc: "What all snapshots together may take of the disk, in MiB; `0` is as much as it has, but for a reserve.",
		set: whole(0, 1<<40, func(c *Config) *int64 { return &c.SnapshotDiskMiB }),
	},
	{
		Name: "events_keep", Env: "HATCH_EVENTS_KEEP", Default: "720h",
		Doc: "How long events are kept, 1h to 87600h.",
		set: span(time.Hour, 10*365*24*time.Hour, "720h", func(c *Config) *time.Duration { return &c.EventsKeep }),
	},
	{
		Name: "events_per_vm", Env: "HATCH_EVENTS_PER_VM", Default: "5000",
		Doc: "Events that are kept of one VM, the newest; at most half of them are such as its guest can bring about at will.",
		set: whole(100, 1<<20, func(c *Config) *int { return &c.EventsPerVM }),
	},
	{
		Name: "events_max", Env: "HATCH_EVENTS_MAX", Default: "500000",
		Doc: "Events that are kept in all, the newest. One takes about half a kilobyte.",
		set: whole(1000, 1<<28, func(c *Config) *int { return &c.EventsMax }),
	},
	{
		Name: "webhook_allow_private", Env: "HATCH_WEBHOOK_ALLOW_PRIVATE", Default: "false",
		Doc: "`true` lets webhooks be sent to this host and to private networks, and over http. Whoever has an API key can then make hatchd speak to what is there.",
		set: truth(func(c *Config) *bool { return &c.WebhookAllowPrivate }),
	},
	{
		Name: "log_level", Env: "HATCH_LOG_LEVEL", Default: "info",
		Doc: "Least level to log: `debug`, `info`, `warn` or `error`.",
		set: logLevel,
	},
	{
		Name: "log_format", Env: "HATCH_LOG_FORMAT", Default: "text",
		Doc: "Form of the log, on standard error: `text` or `json`.",
		set: oneOf([]string{"text", "json"}, func(c *Config) *string { return &c.LogFormat }),
	},
}

// maxUID keeps clear of the ids that stand for "nobody" in 32 bits.
const maxUID = 1<<31 - 2

// withoutPassword shows a database's address with its password masked.
func withoutPassword(raw string) string {
	if !strings.Contains(raw, "://") {
		return raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return "(hidden: it cannot be read)"
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
