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

// agentPort is the name under which the guest finds the agent's channel.
const agentPort = "hatch.agent.0"

// descriptors are the numbers that the process's open files have in it.
type descriptors struct {
	qmp, console, agent int
	kernel, initramfs   int
	disks               []int
	memory, tap         int
}

// origin is where a guest comes from.
type origin int

const (
	boots origin = iota // its kernel
	wakes               // what was saved of it: QEMU waits to be told from where
)

// checkSpec refuses what this driver cannot run.
func checkSpec(s vmm.Spec) error {
	switch {
	case s.ID == "" || strings.ContainsAny(s.ID, "@/\x00"):
		return errs.New(errs.Unsupported, "bad_id", "cannot start a machine with the id %q", s.ID)
	case !filepath.IsAbs(s.Dir):
		return errs.New(errs.Unsupported, "bad_dir", "cannot start %s: its run directory is not an absolute path", s.ID)
	case s.VCPUs < 1 || s.MemMiB < 64:
		return errs.New(errs.Unsupported, "too_small", "cannot start %s: it needs a CPU and 64 MiB at least", s.ID)
	}
	for _, d := range s.Disks {
		if len(d.Serial) > 20 {
			return errs.New(errs.Unsupported, "bad_serial", "cannot start %s: the disk serial %q has more than 20 bytes", s.ID, d.Serial)
		}
	}
	return capabilities.Limits(Name, s.Limits)
}

// arguments is QEMU's command line. It holds no secret: every user of the
// host can read it.
func arguments(s vmm.Spec, o origin, accel acceleration, tscKHz uint64, fd descriptors) []string {
	args := []string{"-name", marker(s.ID, s.Dir), "-no-user-config", "-nodefaults", "-display", "none", "-S"}
	args = append(args, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	args = append(args, machineArguments(s, accel)...)
	args = append(args, memoryArguments(s, fd)...)
	if o == wakes { // what is saved begins with no description of the machine: our manifest is one
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
	return append(args, balloonArguments()...)
}

// machineArguments keeps the old timer and interrupt controller: without them
// kernels hang under TCG. A guest's reset restarts the guest in place; the
// guest's panic, which it tells through pvpanic, ends the process.
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

// memoryName is the name of the guest's memory within QEMU.
const memoryName = "memory"

// memoryArguments is all that says where the guest's memory lies. It is a
// shared file, or what a file that nobody changes holds, with the guest's
// changes in the process's own memory.
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

// cmdline adds what only the driver knows. A word that the caller has set stays.
//
// Restart by triple fault: under TCG, Linux's way through ACPI fails now and
// then, and its next one jumps into a firmware that was not reset, and hangs.
func cmdline(words string, accel acceleration, tscKHz uint64) string {
	own := []string{"reboot=t"}
	if accel.name == AccelTCG {
		own = append(own, "tsc_early_khz="+strconv.FormatUint(tscKHz, 10), "tsc=reliable")
	}
	has := map[string]bool{}
	for _, w := range strings.Fields(words) {
		key, _, _ := strings.Cut(w, "=")
		has[key] = true
	}
	all := []string{words}
	for _, w := range own {
		if key, _, _ := strings.Cut(w, "="); !has[key] {
			all = append(all, w)
		}
	}
	return strings.TrimSpace(strings.Join(all, " "))
}

// channelArguments connects QMP, the serial port and the agent's port to
// sockets that listen already.
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

// balloonArguments is the device by which a guest tells what it has freed: QEMU
// makes it a hole in the file that is the guest's memory. What lies in a base is
// not given back, since that is others', too; QEMU tries and fails each time.
// The device comes last, so that a machine that was saved without it finds all
// others where they were.
func balloonArguments() []string {
	return []string{"-device", mustJSON(map[string]any{"driver": "virtio-balloon-device", "free-page-reporting": true})}
}

func diskArguments(i int, d vmm.Disk, fd int, limit vmm.DiskLimit) []string {
	set, node := i+1, "disk"+strconv.Itoa(i)
	args := []string{"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, set)}
	backend := map[string]any{
		"driver": "raw", "read-only": d.ReadOnly, "discard": "unmap",
		"file": map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", set), "read-only": d.ReadOnly, "discard": "unmap"},
	}
	if limit != (vmm.DiskLimit{}) {
		args = append(args, "-object", mustJSON(map[string]any{"qom-type": "throttle-group", "id": limitName(i), "limits": throttle(limit)}))
		backend = map[string]any{
			"driver": "throttle", "throttle-group": limitName(i), "file": backend, "read-only": d.ReadOnly, "discard": "unmap",
		}
	}
	backend["node-name"] = node
	return append(args, "-blockdev", mustJSON(backend), "-device", device("virtio-blk-device", "drive", node, "serial", d.Serial))
}

// limitName is the name within QEMU of what bounds a disk.
func limitName(disk int) string { return "limit" + strconv.Itoa(disk) }

// throttle is a limit in QEMU's words. The maximum is what may come at once; it
// would be a tenth of a second's worth if it were not given.
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

// mustJSON encodes maps of strings, bools and numbers, which cannot fail.
func mustJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

const markerStart = "guest="

// marker is the argument by which a machine's process is found again.
func marker(id, dir string) string {
	return markerStart + strings.ReplaceAll(id+"@"+dir, ",", ",,")
}

// parseMarker is marker's inverse, on a whole command line.
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

// What a process may use beyond its guest's memory.
const (
	overheadMiB   = 128 // QEMU itself, device queues, the kernel's memory for its files and pages
	codeBufferMiB = 256 // translated guest code, under TCG only
	extraTasks    = 128 // QEMU's own threads: its pool for disk requests has up to 64
	extraCPUs     = 0.5 // device emulation, which runs beside the guest's CPUs
)

// limits counts the memory of a guest with a base twice: who first touches a
// hole of the base, even to write, makes the kernel fill it beside the guest's
// own copy.
func limits(s vmm.Spec, accel acceleration) *jail.Cgroup {
	mem := int64(s.MemMiB + overheadMiB)
	if s.Base != nil {
		mem += int64(s.MemMiB)
	}
	if accel.name == AccelTCG {
		mem += codeBufferMiB
	}
	return &jail.Cgroup{Name: s.ID, MemBytes: mem << 20, CPUs: float64(s.VCPUs) + extraCPUs, Tasks: s.VCPUs + extraTasks}
}
