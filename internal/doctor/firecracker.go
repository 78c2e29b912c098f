package doctor

import (
	"context"
	"fmt"
	"regexp"
	"slices"
)

var firecrackerVersion = regexp.MustCompile(`v(\d{1,4})\.(\d{1,4})\.(\d{1,4})`)

// losingVsock are the releases of Firecracker in which nobody reaches the agent
// of a guest that was woken.
var losingVsock = []string{"v1.16.0", "v1.16.1"}

// firecracker tells what runs VMs, and why. It fails only if nothing but
// Firecracker will do.
func (e examiner) firecracker(ctx context.Context) Check {
	const name = "firecracker"
	if e.Driver == "qemu" || e.Driver == "fake" {
		return pass(name, "not needed with HATCH_VMM=%s", e.Driver)
	}
	version, lack := e.firecrackerVersion(ctx)
	if lack != "" && e.Driver == name {
		return fail(name, "%s", lack).hint("install Firecracker and its jailer, of one release, into /usr/local/bin, on a host with KVM; or use HATCH_VMM=auto")
	}
	if lack != "" {
		return pass(name, "not used, QEMU is: %s", lack)
	}
	v := firecrackerVersion.FindStringSubmatch(version)
	switch {
	case slices.Contains(losingVsock, version):
		return warn(name, "Firecracker %s runs VMs, but cannot put them to sleep: nobody would reach the agent of one that was woken", version).
			hint("install Firecracker v1.15, or v1.16.2 or newer, and its jailer")
	case !e.ProbeKVM().Usable:
		return warn(name, "Firecracker %s runs VMs, but KVM only emulates: no Linux boots on it", version).hint("use HATCH_VMM=auto")
	case older(v, 1, 15):
		return warn(name, "Firecracker %s runs VMs, but snapshots of more than 3 GiB by their changes are corrupt in it: Hatch saves such VMs whole, which is slow", version).
			hint("install Firecracker v1.15, or v1.16.2 or newer, and its jailer")
	}
	return pass(name, "Firecracker %s under its jailer runs VMs, since KVM works here", version)
}

// firecrackerVersion returns the version of a Firecracker that can be used, or
// what it lacks.
func (e examiner) firecrackerVersion(ctx context.Context) (version, lack string) {
	found := e.ProbeKVM()
	if !found.Usable && (!found.Emulates || e.Driver != "firecracker") {
		return "", "Firecracker needs KVM, and " + found.Why
	}
	for _, program := range []string{e.FirecrackerBin, e.JailerBin} {
		if _, err := e.LookPath(program); err != nil {
			return "", fmt.Sprintf("%s is not installed", program)
		}
	}
	out, err := e.Command(ctx, e.FirecrackerBin, "--version")
	v := firecrackerVersion.FindStringSubmatch(out)
	switch {
	case err != nil || v == nil:
		return "", fmt.Sprintf("%s does not tell its version", e.FirecrackerBin)
	case older(v, 1, 12):
		return "", fmt.Sprintf("Firecracker %s is too old; v1.12 is the oldest that works", v[0])
	}
	return v[0], ""
}
