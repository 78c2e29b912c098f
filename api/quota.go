package api

// QuotaLimits is the body of PUT /users/{id}/quota: the limits of one user. An absent one
// is the server's, 0 allows none, and -1 any amount.
type QuotaLimits struct {
	VMs         *int64 `json:"vms,omitempty" minimum:"-1" maximum:"1099511627776" doc:"VMs. Absent: the server's limit; -1: no limit."`
	VCPUs       *int64 `json:"vcpus,omitempty" minimum:"-1" maximum:"1099511627776" doc:"CPUs of VMs that run or are paused."`
	MemoryMiB   *int64 `json:"memory_mib,omitempty" minimum:"-1" maximum:"1099511627776" doc:"Memory of VMs that run or are paused, in MiB."`
	DiskMiB     *int64 `json:"disk_mib,omitempty" minimum:"-1" maximum:"1099511627776" doc:"Disks of VMs, as large as their guests see them, in MiB."`
	Snapshots   *int64 `json:"snapshots,omitempty" minimum:"-1" maximum:"1099511627776" doc:"Snapshots."`
	SnapshotMiB *int64 `json:"snapshot_mib,omitempty" minimum:"-1" maximum:"1099511627776" doc:"What snapshots take of the host's disk, in MiB."`
	ImageMiB    *int64 `json:"image_mib,omitempty" minimum:"-1" maximum:"1099511627776" doc:"Kernels and root file systems of images, in MiB."`
	Routes      *int64 `json:"routes,omitempty" minimum:"-1" maximum:"1099511627776" doc:"Routes."`
	Webhooks    *int64 `json:"webhooks,omitempty" minimum:"-1" maximum:"1099511627776" doc:"Webhooks."`
}

// Quota is what an admin has set for one user.
type Quota struct {
	UserID string      `json:"user_id" example:"acc_admin"`
	Limits QuotaLimits `json:"limits" doc:"The user's own limits. An absent one is the server's."`
}

// Usage is what one user owns, and may own.
type Usage struct {
	UserID      string `json:"user_id" example:"acc_admin"`
	VMs         Amount `json:"vms"`
	VCPUs       Amount `json:"vcpus" doc:"Of VMs that run or are paused."`
	MemoryMiB   Amount `json:"memory_mib" doc:"Of VMs that run or are paused."`
	DiskMiB     Amount `json:"disk_mib" doc:"Of VMs, as large as their guests see them."`
	Snapshots   Amount `json:"snapshots"`
	SnapshotMiB Amount `json:"snapshot_mib" doc:"On the host's disk. A snapshot that is being taken counts with an estimate."`
	ImageMiB    Amount `json:"image_mib"`
	Routes      Amount `json:"routes"`
	Webhooks    Amount `json:"webhooks"`
}

// Amount is how much of one resource a user owns.
type Amount struct {
	Used  int64  `json:"used"`
	Limit *int64 `json:"limit,omitempty" doc:"The highest amount allowed. Absent: no limit."`
}
