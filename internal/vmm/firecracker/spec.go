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

// maxID is what the jailer takes, in bytes.
const maxID = 64

// checkSpec refuses what this driver cannot run.
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
		return unsupported("too_small", "it needs a CPU and 64 MiB at least")
	}
	for _, d := range s.Disks {
		if d.Serial == "" || len(d.Serial) > 20 || strings.ContainsAny(d.Serial, ", \t\n") {
			return unsupported("bad_serial", "the disk serial %q cannot stand in a list", d.Serial)
		}
	}
	return capabilities.VCPUs(Name, s.VCPUs)
}

// isID reports whether an id can be a jail's, which takes no underscores: jailID
// writes hyphens for them, so that there may be none.
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

// arguments are Firecracker's own.
func arguments() []string {
	return []string{"--api-sock", apiSocket, "--log-path", logPipe, "--level", "Warn", "--metrics-path", metricsPipe}
}

// jailerArguments are those of the jailer, which ends by running Firecracker.
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

// largestFile is the size in bytes beyond which the process can let no file grow,
// so that it cannot fill the host's disk: what it writes to are its disks, its
// memory and its state, which have a size.
func largestFile(s vmm.Spec) (int64, error) {
	most := max(int64(s.MemMiB)<<20, maxState)
	for _, d := range s.Disks {
		if d.ReadOnly {
			continue
		}
		st, err := os.Stat(d.Path)
		if err != nil {
			return 0, fmt.Errorf("cannot look at the disk %s: %w", d.Serial, err)
		}
		most = max(most, st.Size())
	}
	return most, nil
}

// cmdline adds what only the driver knows: the disks' serials in their order,
// since Firecracker's disks have none that we could choose.
func cmdline(s vmm.Spec) string {
	var serials []string
	for _, d := range s.Disks {
		serials = append(serials, d.Serial)
	}
	words := s.Cmdline
	for _, w := range []string{"reboot=k", "panic=1", "pci=off", "hatch.disks=" + strings.Join(serials, ",")} {
		if key, _, _ := strings.Cut(w, "="); !hasWord(s.Cmdline, key) {
			words += " " + w
		}
	}
	return strings.TrimSpace(words)
}

func hasWord(words, key string) bool {
	for _, w := range strings.Fields(words) {
		if k, _, _ := strings.Cut(w, "="); k == key {
			return true
		}
	}
	return false
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
		AmountMiB    int  `json:"amount_mib"`
		DeflateOnOOM bool `json:"deflate_on_oom"`
		AskEvery     int  `json:"stats_polling_interval_s"`
		ReportsFree  bool `json:"free_page_reporting,omitempty"` // and these pages are given back to the host
	}
)

const networkID = "net0"

// askMemoryEvery is how often a guest is asked for figures of its memory, in
// seconds: each time its kernel has to wake up.
const askMemoryEvery = 10

// guestCID may be the same for all: each has its own socket.
const guestCID = 3

// configure tells a Firecracker of version v that was just started what its
// machine is.
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
			ID: name, Path: name, IsReadOnly: d.ReadOnly, driveLimit: limitOfDrives(s.Limits),
		}})
	}
	if s.NIC != nil {
		requests = append(requests, request{"/network-interfaces/" + networkID, networkInterface{
			ID: networkID, TAP: tap, MAC: s.NIC.MAC.String(), networkLimits: limitsOfNetwork(s.Limits),
		}})
	}
	requests = append(requests, request{"/vsock", vsock{CID: guestCID, Path: vsockSocket}}, request{"/entropy", entropy{}},
		request{"/balloon", balloon{DeflateOnOOM: true, AskEvery: askMemoryEvery, ReportsFree: v.ReportsFreePages()}})
	for _, r := range requests {
		if err := a.put(ctx, r.path, r.body); err != nil {
			return err
		}
	}
	return nil
}

// What a process may use beyond its guest's memory.
const (
	overheadMiB = 64  // Firecracker itself, and the kernel's memory for its files and pages
	extraTasks  = 32  // its threads beside the guest's CPUs
	extraCPUs   = 0.5 // device emulation, which runs beside the guest's CPUs
	openFiles   = 256 // its disks, sockets and KVM's descriptors need some 40, each agent connection one
)

// limits says what a process may use. Of a guest whose memory is kept in a file
// there are two copies while it is saved.
func limits(s vmm.Spec) *jail.Cgroup {
	mem := s.MemMiB
	if s.Memory != "" {
		mem *= 2
	}
	return &jail.Cgroup{
		Name: s.ID, MemBytes: int64(mem+overheadMiB) << 20, CPUs: float64(s.VCPUs) + extraCPUs, Tasks: s.VCPUs + extraTasks,
	}
}
