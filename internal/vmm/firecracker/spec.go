//go:build linux && amd64

package firecracker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

// maxID is the length of the longest id that the jailer accepts, in bytes.
const maxID = 64

// checkSpec returns an error if this driver cannot run the spec.
func checkSpec(s vmm.Spec) error {
	unsupported := func(code, format string, args ...any) error {
		return errs.New(errs.Unsupported, code, "cannot start %s: %s", s.ID, fmt.Sprintf(format, args...))
	}
	switch {
	case !isID(s.ID):
		return errs.New(errs.Unsupported, "bad_id", "cannot start a machine with the id %q", s.ID)
	case !filepath.IsAbs(s.Dir):
		return unsupported("bad_dir", "its run directory is not an absolute path")
	case s.VCPUs < 1 || s.MemMiB < 64:
		return unsupported("too_small", "it needs at least 1 CPU and 64 MiB of memory")
	}
	for _, d := range s.Disks {
		if d.Serial == "" || len(d.Serial) > 20 || strings.ContainsAny(d.Serial, ", \t\n") {
			return unsupported("bad_serial", "%q is not a valid disk serial: want 1 to 20 bytes without commas and white space", d.Serial)
		}
	}
	return capabilities.VCPUs(Name, s.VCPUs)
}

// isID reports whether jailID and idOfJail can convert an id. The jailer accepts no
// underscores, so jailID replaces them by hyphens; the id itself may have none.
func isID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	return strings.IndexFunc(id, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) < 0
}

func jailID(id string) string { return strings.ReplaceAll(id, "_", "-") }

func idOfJail(jid string) string { return strings.ReplaceAll(jid, "-", "_") }

// arguments returns Firecracker's arguments.
func arguments() []string {
	return []string{"--api-sock", apiSocket, "--log-path", logPipe, "--level", "Warn", "--metrics-path", metricsPipe}
}

// jailerArguments returns the arguments of the jailer, followed by Firecracker's.
func (d *Driver) jailerArguments(s vmm.Spec) ([]string, error) {
	largest, err := largestFile(s)
	if err != nil {
		return nil, err
	}
	own := []string{
		"--id", jailID(s.ID), "--exec-file", d.binary, "--uid", strconv.Itoa(s.UID), "--gid", strconv.Itoa(s.GID),
		"--chroot-base-dir", filepath.Join(s.Dir, jailFolder), "--resource-limit", "no-file=" + strconv.Itoa(openFiles),
		"--resource-limit", "fsize=" + strconv.FormatInt(largest, 10), "--",
	}
	return append(own, arguments()...), nil
}

// largestFile returns the limit of the size, in bytes, of every file that the process
// writes, so that it cannot fill the host's disk. It is the size of the largest of
// them: the disks, the memory and the state of the devices.
func largestFile(s vmm.Spec) (int64, error) {
	most := max(int64(s.MemMiB)<<20, maxState)
	for _, d := range s.Disks {
		if d.ReadOnly {
			continue
		}
		st, err := os.Stat(d.Path)
		if err != nil {
			return 0, fmt.Errorf("cannot stat the disk %s: %w", d.Serial, err)
		}
		most = max(most, st.Size())
	}
	return most, nil
}

// cmdline adds the driver's kernel parameters, except those that the caller has set.
// hatch.disks has the serials of the disks in their order: Firecracker's API cannot set
// the serial of a disk.
func cmdline(s vmm.Spec) string {
	var serials []string
	for _, d := range s.Disks {
		serials = append(serials, d.Serial)
	}
	has := map[string]bool{}
	for p := range strings.FieldsSeq(s.Cmdline) {
		key, _, _ := strings.Cut(p, "=")
		has[key] = true
	}
	all := []string{s.Cmdline}
	for _, p := range []string{"reboot=k", "panic=1", "pci=off", "hatch.disks=" + strings.Join(serials, ",")} {
		if key, _, _ := strings.Cut(p, "="); !has[key] {
			all = append(all, p)
		}
	}
	return strings.TrimSpace(strings.Join(all, " "))
}

// Bodies of requests, as Firecracker's API description names their fields.
type (
	machineConfig struct {
		VCPUs      int  `json:"vcpu_count"`
		MemMiB     int  `json:"mem_size_mib"`
		TrackDirty bool `json:"track_dirty_pages"`
	}
	bootSource struct {
		Kernel    string `json:"kernel_image_path"`
		Initramfs string `json:"initrd_path,omitempty"`
		Args      string `json:"boot_args"`
	}
	drive struct {
		ID         string `json:"drive_id"`
		Path       string `json:"path_on_host"`
		IsReadOnly bool   `json:"is_read_only"`
		IsRoot     bool   `json:"is_root_device"`
		Cache      string `json:"cache_type,omitempty"`
		driveLimit
	}
	networkInterface struct {
		ID  string `json:"iface_id"`
		TAP string `json:"host_dev_name"`
		MAC string `json:"guest_mac"`
		networkLimits
	}
	vsock struct {
		CID  int    `json:"guest_cid"`
		Path string `json:"uds_path"`
	}
	entropy struct{}
	balloon struct {
		AmountMiB     int  `json:"amount_mib"`
		DeflateOnOOM  bool `json:"deflate_on_oom"`
		StatsInterval int  `json:"stats_polling_interval_s"`
		FreePages     bool `json:"free_page_reporting,omitempty"` // Firecracker returns these pages to the host
	}
)

const networkID = "net0"

// statsInterval is how often Firecracker asks a guest for the figures of its memory, in
// seconds. Each time the guest's kernel has to wake up.
const statsInterval = 10

// guestCID is the same for all guests: each has its own socket.
const guestCID = 3

// configure sends the spec to a Firecracker of version v that was just started.
func configure(ctx context.Context, a *api, v version, s vmm.Spec, tap string) error {
	boot := bootSource{Kernel: kernelFile, Args: cmdline(s)}
	if s.Initramfs != "" {
		boot.Initramfs = initramfsFile
	}
	type request struct {
		path string
		body any
	}
	requests := []request{
		{"/machine-config", machineConfig{VCPUs: s.VCPUs, MemMiB: s.MemMiB, TrackDirty: s.Memory != ""}},
		{"/boot-source", boot},
	}
	for i, d := range s.Disks {
		name := diskFile(i)
		requests = append(requests, request{"/drives/" + name, drive{
			ID: name, Path: name, IsReadOnly: d.ReadOnly, Cache: cacheOf(d), driveLimit: limitOfDrives(s.Limits),
		}})
	}
	if s.NIC != nil {
		requests = append(requests, request{"/network-interfaces/" + networkID, networkInterface{
			ID: networkID, TAP: tap, MAC: s.NIC.MAC.String(), networkLimits: limitsOfNetwork(s.Limits),
		}})
	}
	requests = append(requests, request{"/vsock", vsock{CID: guestCID, Path: vsockSocket}}, request{"/entropy", entropy{}},
		request{"/balloon", balloon{DeflateOnOOM: true, StatsInterval: statsInterval, FreePages: v.ReportsFreePages()}})
	for _, r := range requests {
		if err := a.put(ctx, r.path, r.body); err != nil {
			return err
		}
	}
	return nil
}

// cacheOf makes Firecracker write a disk to the host's when the guest flushes it.
// Its default, Unsafe, leaves what a guest has synced in the host's page cache, which a
// power cut loses.
func cacheOf(d vmm.Disk) string {
	if d.ReadOnly {
		return ""
	}
	return "Writeback"
}

// What a Firecracker process may use in addition to its guest's memory and CPUs.
const (
	overheadMiB = 64  // Firecracker itself, and the kernel's memory for its files and pages
	extraTasks  = 32  // its threads beside the guest's CPUs
	extraCPUs   = 0.5 // device emulation, which runs beside the guest's CPUs
	openFiles   = 256 // its disks, sockets and KVM's descriptors need some 40, each agent connection one
)

// limits returns the limits of the process. While a guest with a memory file is saved,
// there are two copies of its memory.
func (d *Driver) limits(s vmm.Spec) *jail.Cgroup {
	mem := s.MemMiB
	if s.Memory != "" {
		mem *= 2
	}
	return &jail.Cgroup{
		Parent: d.cgroups, Name: s.ID, MemBytes: int64(mem+overheadMiB) << 20, CPUs: float64(s.VCPUs) + extraCPUs, Tasks: s.VCPUs + extraTasks,
	}
}
