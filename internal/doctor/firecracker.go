package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/hatchvm/hatch/internal/vmm/firecracker/release"
)

// firecracker says which VMM runs VMs, and why. It fails only if HATCH_VMM asks for
// Firecracker.
func (e examiner) firecracker(ctx context.Context) Check {
	const name = "firecracker"
	if e.Driver == "qemu" {
		return pass(name, "not needed with HATCH_VMM=%s", e.Driver)
	}
	version, lack := e.firecrackerVersion(ctx)
	if lack != "" && e.Driver == name {
		return fail(name, "%s", lack).hint("install Firecracker v%s and its jailer into /usr/local/bin, on a host with KVM; or use HATCH_VMM=auto", release.Recommended)
	}
	if lack != "" {
		return pass(name, "not used, QEMU is: %s", lack)
	}
	switch {
	case version.LosesVsock():
		return warn(name, "Firecracker v%s runs VMs, but cannot put them to sleep: the agent of a woken VM would be unreachable, as it is after a pause", version).
			hint("install Firecracker v%s and its jailer", release.Recommended)
	case !e.ProbeKVM().Usable:
		return warn(name, "Firecracker v%s runs VMs, but KVM only emulates: no Linux boots on it", version).hint("use HATCH_VMM=auto")
	case version.CorruptsLargeDiffs():
		return warn(name, "Firecracker v%s runs VMs, but its diff snapshots of more than 3 GiB are corrupt: Hatch saves such VMs in full, which is slow", version).
			hint("install Firecracker v%s and its jailer", release.Recommended)
	}
	return pass(name, "Firecracker v%s under its jailer runs VMs, since KVM works here", version)
}

// firecrackerVersion returns the version of a usable Firecracker, or what is
// missing.
func (e examiner) firecrackerVersion(ctx context.Context) (version release.Version, lack string) {
	found := e.ProbeKVM()
	if !found.Usable && (!found.Emulates || e.Driver != "firecracker") {
		return version, "Firecracker needs KVM, and " + found.Why
	}
	for _, program := range []string{e.FirecrackerBin, e.JailerBin} {
		if _, err := e.LookPath(program); err != nil {
			return version, fmt.Sprintf("%s is not installed", program)
		}
	}
	out, err := e.Command(ctx, e.FirecrackerBin, "--version")
	_, text, _ := strings.Cut(out, "Firecracker v")
	version, ok := release.Find(text)
	switch {
	case err != nil || !ok:
		return version, fmt.Sprintf("%s --version names no version", e.FirecrackerBin)
	case version.Before(release.Oldest):
		return version, fmt.Sprintf("Firecracker v%s is too old; v%s is the oldest that works", version, release.Oldest)
	}
	return version, ""
}
