package config

import "strings"

// quotaSettings are the limits of users that have none of their own.
var quotaSettings = []Setting{
	quotaSetting("vms", "VMs", func(c *Config) *int64 { return &c.Quota.VMs }),
	quotaSetting("vcpus", "CPUs of VMs that run or are paused", func(c *Config) *int64 { return &c.Quota.VCPUs }),
	quotaSetting("memory_mib", "memory of VMs that run or are paused, in MiB", func(c *Config) *int64 { return &c.Quota.MemoryMiB }),
	quotaSetting("disk_mib", "disks of VMs, as large as their guests see them, in MiB", func(c *Config) *int64 { return &c.Quota.DiskMiB }),
	quotaSetting("snapshots", "snapshots", func(c *Config) *int64 { return &c.Quota.Snapshots }),
	quotaSetting("snapshot_mib", "what snapshots take of the host's disk, in MiB", func(c *Config) *int64 { return &c.Quota.SnapshotMiB }),
	quotaSetting("image_mib", "kernels and root file systems of images, in MiB", func(c *Config) *int64 { return &c.Quota.ImageMiB }),
	quotaSetting("routes", "routes", func(c *Config) *int64 { return &c.Quota.Routes }),
	quotaSetting("webhooks", "webhooks", func(c *Config) *int64 { return &c.Quota.Webhooks }),
}

// rateSettings are how often a key may call the REST API.
var rateSettings = []Setting{
	rateSetting("read", "1000/5000", "that read", func(c *Config) *Rate { return &c.RateRead }),
	rateSetting("write", "200/1000", "that change something", func(c *Config) *Rate { return &c.RateWrite }),
	rateSetting("create", "50/500", "that make something, such as VMs", func(c *Config) *Rate { return &c.RateCreate }),
}

func rateSetting(class, value, what string, field func(*Config) *Rate) Setting {
	return Setting{
		Name: "rate_" + class, Env: "HATCH_RATE_" + strings.ToUpper(class), Default: value,
		Doc: "How often one API key may send requests " + what + ": how many per second, a slash, and how many at once. `0` means no limit.",
		set: rate(field),
	}
}

// Quota has the limits of users that have none of their own; 0 means no limit.
type Quota struct {
	VMs, VCPUs, MemoryMiB, DiskMiB, Snapshots, SnapshotMiB, ImageMiB, Routes, Webhooks int64
}

// mostQuota is the highest limit.
const mostQuota = 1 << 40

func quotaSetting(name, what string, field func(*Config) *int64) Setting {
	return Setting{
		Name: "quota_" + name, Env: "HATCH_QUOTA_" + strings.ToUpper(name), Default: "0",
		Doc: "What one user may own at a time: " + what + ". `hatch quota` sets other limits for one user. `0` means no limit.",
		set: integer(0, mostQuota, field),
	}
}
