package doctor

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hatchvm/hatch/internal/host/jail"
)

// Capabilities that hatchd needs, by bit, as in capabilities(7).
var needed = []struct {
	bit  uint
	name string
}{
	{0, "CAP_CHOWN"}, {6, "CAP_SETGID"}, {7, "CAP_SETUID"}, {12, "CAP_NET_ADMIN"}, {21, "CAP_SYS_ADMIN"},
}

func (e examiner) privileges(context.Context) Check {
	const name = "privileges"
	status, err := e.ReadFile("/proc/self/status")
	if err != nil {
		return warn(name, "cannot read the capabilities of this process: %v", err)
	}
	effective, ok := capabilities(string(status))
	if !ok {
		return warn(name, "cannot read the capabilities of this process")
	}
	var missing []string
	for _, c := range needed {
		if effective&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return fail(name, "this process has no %s, so it cannot set up networks, mount guests' memory and confine VMs", strings.Join(missing, ", ")).
			hint("run hatchd as root")
	}
	return pass(name, "all capabilities that hatchd needs")
}

func capabilities(status string) (uint64, bool) {
	for line := range strings.Lines(status) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return set, err == nil
		}
	}
	return 0, false
}

var kernelVersion = regexp.MustCompile(`^(\d{1,4})\.(\d{1,4})`)

// kernel requires the version of the oldest supported Debian: it has pidfds, and
// cgroups that can be killed as a whole.
func (e examiner) kernel(context.Context) Check {
	const name, major, minor = "kernel", 5, 10
	release, err := e.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return warn(name, "cannot read the kernel's version: %v", err)
	}
	text := strings.TrimSpace(string(release))
	if older(kernelVersion.FindStringSubmatch(text), major, minor) {
		return fail(name, "Linux %q is too old; %d.%d is the oldest that works", text, major, minor).
			hint("upgrade the host's kernel")
	}
	return pass(name, "Linux %s", text)
}

// older reports whether a matched version is older than major.minor, or nil.
func older(match []string, major, minor int) bool {
	if match == nil {
		return true
	}
	a, _ := strconv.Atoi(match[1])
	b, _ := strconv.Atoi(match[2])
	return a < major || a == major && b < minor
}

// kvm never fails: without KVM, VMs run in software.
func (e examiner) kvm(context.Context) Check {
	const name = "kvm"
	found := e.ProbeKVM()
	if found.Usable {
		return pass(name, "a test guest ran in hardware")
	}
	c := warn(name, "%s; VMs run in software (TCG), some ten times slower", found.Why)
	if _, err := e.Stat("/dev/kvm"); err == nil {
		return c.hint("use a host, or a VM with nested virtualization, whose KVM runs guests")
	}
	cpu, _ := e.ReadFile("/proc/cpuinfo")
	var flags []string
	for line := range strings.Lines(string(cpu)) {
		if strings.HasPrefix(line, "flags") {
			flags = strings.Fields(line)
			break
		}
	}
	switch {
	case slices.Contains(flags, "vmx"):
		return c.fix("modprobe kvm_intel")
	case slices.Contains(flags, "svm"):
		return c.fix("modprobe kvm_amd")
	}
	return c.hint("enable virtualization in the firmware, or nested virtualization in the hypervisor")
}

var qemuVersion = regexp.MustCompile(`version (\d{1,4})\.(\d{1,4})`)

func (e examiner) qemu(ctx context.Context) Check {
	const name = "qemu"
	if e.Driver == "firecracker" {
		return pass(name, "not needed with HATCH_VMM=%s", e.Driver)
	}
	if _, err := e.LookPath(e.QEMUBin); err != nil {
		if _, lack := e.firecrackerVersion(ctx); e.Driver == "auto" && lack == "" {
			return pass(name, "not installed, and not needed: Firecracker runs VMs here")
		}
		return fail(name, "%s is not installed", e.QEMUBin).fix("%s", install("qemu-system-x86"))
	}
	out, err := e.Command(ctx, e.QEMUBin, "--version")
	if err != nil {
		return fail(name, "%s does not run: %v", e.QEMUBin, err).fix("apt-get install -y --reinstall qemu-system-x86")
	}
	v := qemuVersion.FindStringSubmatch(out)
	if v == nil {
		return warn(name, "%s --version names no version", e.QEMUBin)
	}
	if older(v, 7, 2) {
		return fail(name, "QEMU %s.%s is too old; 7.2 is the oldest that works", v[1], v[2]).
			fix("%s", install("qemu-system-x86"))
	}
	return pass(name, "QEMU %s.%s", v[1], v[2])
}

// jail tries the jail in which QEMU runs. Firecracker's jailer makes its own.
func (e examiner) jail(ctx context.Context) Check {
	const name = "jail"
	path, err := e.LookPath(e.QEMUBin)
	if e.Driver == "firecracker" || err != nil {
		return pass(name, "not tried, since QEMU is not used")
	}
	err = e.TryInJail(ctx, path, "--version")
	if err == nil {
		return pass(name, "QEMU runs without access to the host's files, processes and sockets")
	}
	c := fail(name, "QEMU does not run in a jail, where it has no access to the host's files, processes and sockets: %v", err)
	if _, lack := e.firecrackerVersion(ctx); e.Driver == "auto" && lack == "" {
		c.Status = Warn
	}
	return c.hint("use Linux 5.10 or newer with seccomp, namespaces and tmpfs; in a container, let hatchd mount file systems; " +
		"install QEMU from a package, so that its libraries are in /usr or in a store of packages")
}

// cgroups never fails: without them VMs run without limits. VMs' cgroups may lie in
// one of a unit of systemd, or in one that hatchd makes itself.
func (e examiner) cgroups(context.Context) Check {
	const name, unified, legacy = "cgroups", "/sys/fs/cgroup", "/sys/fs/cgroup/memory"
	root := unified
	if _, err := e.Stat(unified + "/cgroup.controllers"); err != nil {
		root = legacy
	}
	if _, err := e.Stat(root); err != nil {
		return warn(name, "the host has no cgroups (neither v2 nor v1 is mounted); VMs run without CPU and memory limits").
			hint("boot with systemd.unified_cgroup_hierarchy=1")
	}
	where, parent := root+e.Cgroup, root+e.Cgroup
	if e.Cgroup == string(jail.DefaultCgroups) {
		parent = root // hatchd makes it
	}
	if _, err := e.Stat(parent); err != nil {
		return warn(name, "%s, for VMs' cgroups, does not exist: hatchd uses %s%s, which systemd does not know", where, root, jail.DefaultCgroups).
			hint("start the unit that owns it (systemctl start hatch-vms; if it is active already, its process has been killed: restart the host); or set HATCH_CGROUP to a cgroup that exists")
	}
	if err := e.Writable(parent); err != nil {
		return warn(name, "%s cannot be written (%v); VMs run without CPU and memory limits", parent, err).
			hint("in a container, start it with a writable cgroup file system")
	}
	if missing := e.missingControllers(parent); root == unified && len(missing) > 0 {
		return warn(name, "%s does not have the controllers %s; VMs run without CPU and memory limits", parent, strings.Join(missing, ", ")).
			hint("for the cgroup of a unit, add them to its Delegate=; in a container, delegate them to it")
	}
	return pass(name, "VMs' cgroups are in %s; limits can be set there", where)
}

// missingControllers returns those that limits of VMs need and a cgroup of v2 does not
// have.
func (e examiner) missingControllers(dir string) (missing []string) {
	text, _ := e.ReadFile(dir + "/cgroup.controllers") // all are missing
	missing = jail.MissingControllers(string(text))
	slices.Sort(missing)
	return missing
}
