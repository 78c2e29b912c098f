//go:build linux && amd64

package qemu

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

// agentPort is the name of the virtio port of the agent's channel in the guest.
const agentPort = "hatch.agent.0"

// descriptors are the descriptor numbers, in the process, of the files passed to it.
type descriptors struct {
	qmp, console, agent int
	kernel, initramfs   int
	disks               []int
	memory, tap         int
}

// startMode is how a guest begins.
type startMode int

const (
	boot startMode = iota // at its kernel
	wake                  // in a saved state: QEMU waits for the command that loads it
)

// checkSpec returns an error if this driver cannot run the spec.
func checkSpec(s vmm.Spec) error {
	switch {
	case s.ID == "" || strings.ContainsAny(s.ID, "@/\x00"):
		return errs.New(errs.Unsupported, "bad_id", "cannot start a machine with the id %q", s.ID)
	case !filepath.IsAbs(s.Dir):
		return errs.New(errs.Unsupported, "bad_dir", "cannot start %s: its run directory is not an absolute path", s.ID)
	case s.VCPUs < 1 || s.MemMiB < 64:
		return errs.New(errs.Unsupported, "too_small", "cannot start %s: it needs at least 1 CPU and 64 MiB of memory", s.ID)
	}
	for _, d := range s.Disks {
		if len(d.Serial) > 20 {
			return errs.New(errs.Unsupported, "bad_serial", "cannot start %s: the disk serial %q is %d bytes; the limit is 20", s.ID, d.Serial, len(d.Serial))
		}
	}
	return capabilities.Limits(Name, s.Limits)
}

// arguments returns QEMU's command line. It has no secret: every user of the host
// can read it.
func arguments(s vmm.Spec, mode startMode, accel acceleration, tscKHz uint64, fd descriptors) []string {
	args := []string{"-name", marker(s.ID, s.Dir), "-no-user-config", "-nodefaults", "-display", "none", "-S"}
	args = append(args, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	args = append(args, machineArguments(s, accel)...)
	args = append(args, memoryArguments(s, fd)...)
	if mode == wake { // the saved devices have no configuration section: the manifest replaces it
		args = append(args, "-incoming", "defer", "-global", "migration.send-configuration=off")
	}
	args = append(args, "-kernel", fdPath(fd.kernel), "-initrd", fdPath(fd.initramfs), "-append", cmdline(s.Cmdline, accel, tscKHz))
	args = append(args, channelArguments(fd)...)
	for i, d := range s.Disks {
		args = append(args, diskArguments(i, d, fd.disks[i], s.Limits.Disk)...)
	}
	if s.NIC != nil {
		args = append(args, "-netdev", "tap,id=net0,vhost=off,fd="+strconv.Itoa(fd.tap),
			"-device", device("virtio-net-device", "netdev", "net0", "mac", s.NIC.MAC.String()))
	}
	// Through the balloon a guest reports free pages: QEMU punches holes for them in
	// the file of the guest's memory. It does not free pages of a base, which other
	// guests share; QEMU tries and fails each time (ignoredLines). The device is the
	// last one, so that a machine that was saved without it has all others at the same
	// addresses.
	return append(args, "-device", mustJSON(map[string]any{"driver": "virtio-balloon-device", "free-page-reporting": true}))
}

// machineArguments keeps the legacy timer and interrupt controller: without them
// kernels hang under TCG. A reset by the guest reboots it in the same process; a
// panic, which the guest reports through pvpanic, ends the process.
func machineArguments(s vmm.Spec, accel acceleration) []string {
	machine := "microvm,acpi=on,pic=on,pit=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off,dump-guest-core=off"
	if s.Memory != "" {
		machine += ",memory-backend=" + memoryName
	}
	args := []string{
		"-machine", machine,
		"-global", "virtio-mmio.force-legacy=false",
		"-smp", strconv.Itoa(s.VCPUs),
		"-action", "reboot=reset,shutdown=poweroff,panic=shutdown",
		"-device", device("pvpanic"),
		"-device", device("virtio-rng-device"),
	}
	if accel.name == AccelKVM {
		return append(args, "-accel", "kvm", "-cpu", "host")
	}
	return append(args, "-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", codeBufferMiB), "-cpu", "max")
}

// memoryName is QEMU's id of the guest's memory.
const memoryName = "memory"

// memoryArguments configures the guest's memory: anonymous, a shared mapping of a
// file, or a private mapping of an immutable base.
func memoryArguments(s vmm.Spec, fd descriptors) []string {
	args := []string{"-m", strconv.Itoa(s.MemMiB)}
	if s.Memory == "" {
		return args
	}
	return append(args, "-object", mustJSON(map[string]any{
		"qom-type": "memory-backend-file", "id": memoryName, "size": int64(s.MemMiB) << 20,
		"mem-path": fdPath(fd.memory), "share": s.Base == nil, "dump": false, "merge": false,
	}))
}

// cmdline adds the driver's kernel parameters, except those that the caller has set.
//
// reboot=t restarts by a triple fault: under TCG, Linux's restart through ACPI fails
// at times, and its next method jumps into firmware that was not reset, and hangs.
func cmdline(params string, accel acceleration, tscKHz uint64) string {
	own := []string{"reboot=t"}
	if accel.name == AccelTCG {
		own = append(own, "tsc_early_khz="+strconv.FormatUint(tscKHz, 10), "tsc=reliable")
	}
	has := map[string]bool{}
	for p := range strings.FieldsSeq(params) {
		key, _, _ := strings.Cut(p, "=")
		has[key] = true
	}
	all := []string{params}
	for _, p := range own {
		if key, _, _ := strings.Cut(p, "="); !has[key] {
			all = append(all, p)
		}
	}
	return strings.TrimSpace(strings.Join(all, " "))
}

// channelArguments connects QMP, the serial port and the agent's port to listening
// sockets.
func channelArguments(fd descriptors) []string {
	listening := func(id string, fd int) string {
		return fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", id, fd)
	}
	return []string{
		"-chardev", listening("qmp", fd.qmp), "-mon", "chardev=qmp,mode=control",
		"-chardev", listening("console", fd.console), "-serial", "chardev:console",
		"-chardev", listening("agent", fd.agent), "-device", device("virtio-serial-device"),
		"-device", device("virtserialport", "chardev", "agent", "name", agentPort),
	}
}

func diskArguments(i int, d vmm.Disk, fd int, limit vmm.DiskLimit) []string {
	set, node := i+1, "disk"+strconv.Itoa(i)
	args := []string{"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, set)}
	file := map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", set), "read-only": d.ReadOnly, "discard": "unmap"}
	if d.ReadOnly { // other machines have it, too, and the lock of a compromised one would keep them from it
		file["locking"] = "off"
	}
	backend := map[string]any{"driver": "raw", "read-only": d.ReadOnly, "discard": "unmap", "file": file}
	if !d.ReadOnly { // zeros that a guest writes become holes of the file, too
		backend["detect-zeroes"] = "unmap"
	}
	if limit != (vmm.DiskLimit{}) {
		args = append(args, "-object", mustJSON(map[string]any{"qom-type": "throttle-group", "id": limitName(i), "limits": throttle(limit)}))
		// Blocks that the guest gives back would count as written ones, up to the size of the
		// disk at a time, and its writes would wait for them.
		backend = map[string]any{
			"driver": "throttle", "throttle-group": limitName(i), "file": backend, "read-only": d.ReadOnly, "discard": "ignore",
		}
	}
	backend["node-name"] = node
	// A guest whose write finds no space on the host stands still, and the write is
	// repeated when it is resumed; of any other error it is told.
	return append(args, "-blockdev", mustJSON(backend),
		"-device", device("virtio-blk-device", "drive", node, "serial", d.Serial, "werror", "enospc", "rerror", "report"))
}

// limitName is QEMU's id of the throttle group of a disk.
func limitName(disk int) string { return "limit" + strconv.Itoa(disk) }

// throttle returns the limits of a throttle group. The values with -max allow a burst
// of one second's worth; QEMU's default is a tenth of that.
func throttle(l vmm.DiskLimit) map[string]any {
	limits := map[string]any{}
	if n := l.BytesPerSecond; n != 0 {
		limits["bps-total"], limits["bps-total-max"] = n, n
	}
	if n := l.OpsPerSecond; n != 0 {
		limits["iops-total"], limits["iops-total-max"] = n, n
	}
	return limits
}

// device writes a -device argument from names and values.
func device(driver string, pairs ...string) string {
	properties := map[string]any{"driver": driver}
	for i := 0; i+1 < len(pairs); i += 2 {
		properties[pairs[i]] = pairs[i+1]
	}
	return mustJSON(properties)
}

// mustJSON encodes v, which has only maps, strings, bools and numbers: that cannot
// fail.
func mustJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

const markerStart = "guest="

// marker returns the argument that identifies the process of a machine to List.
func marker(id, dir string) string {
	return markerStart + strings.ReplaceAll(id+"@"+dir, ",", ",,")
}

// parseMarker reads the marker from a whole command line.
func parseMarker(args []string) (id, dir string, ok bool) {
	if len(args) < 2 || args[0] != "-name" {
		return "", "", false
	}
	value, ok := strings.CutPrefix(args[1], markerStart)
	if !ok {
		return "", "", false
	}
	id, dir, ok = strings.Cut(strings.ReplaceAll(value, ",,", ","), "@")
	return id, dir, ok && id != "" && filepath.IsAbs(dir) && filepath.Clean(dir) == dir
}

// What a QEMU process may use in addition to its guest's memory and CPUs.
const (
	overheadMiB   = 128 // QEMU itself, device queues, the kernel's memory for its files and pages
	codeBufferMiB = 256 // translated guest code, under TCG only
	extraTasks    = 128 // QEMU's own threads: its pool for disk requests has up to 64
	extraCPUs     = 0.5 // device emulation, which runs beside the guest's CPUs
)

// limits returns the limits of the process. It counts the memory of a guest with a
// base twice: the first access to a hole of the base, even a write, makes the host's
// kernel allocate a page of the base in addition to the guest's copy.
func limits(s vmm.Spec, accel acceleration, parent jail.Cgroups) *jail.Cgroup {
	mem := int64(s.MemMiB + overheadMiB)
	if s.Base != nil {
		mem += int64(s.MemMiB)
	}
	if accel.name == AccelTCG {
		mem += codeBufferMiB
	}
	return &jail.Cgroup{Parent: parent, Name: s.ID, MemBytes: mem << 20, CPUs: float64(s.VCPUs) + extraCPUs, Tasks: s.VCPUs + extraTasks}
}
