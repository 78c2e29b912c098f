// Package doctor examines the host: whether it can run VMs, how well, and what
// is missing. Every check says in one sentence what is so, and a check that
// does not pass ends with the command that mends it, or with what only a person
// can do.
//
// It changes nothing by itself: [Fix] runs a check's own command, and only when
// asked. It does not know how its findings are shown; doors render [Check].
// Start at [Run]; what the checks see of the host is in [System].
package doctor

import (
	"context"
	"fmt"
	"strings"
)

// Status is the outcome of a check.
type Status string

// The outcomes.
const (
	Pass Status = "pass"
	Warn Status = "warn" // VMs run, but slower or with something missing
	Fail Status = "fail" // VMs cannot run
)

// Check is one examined fact about the host.
type Check struct {
	Name    string `json:"name"`
	Status  Status `json:"status"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`  // a shell command that mends it, safe to run as it stands
	Hint    string `json:"hint,omitempty"` // what a person has to do when no command can
}

// Settings are the parts of the configuration that the host must live up to.
type Settings struct {
	DataDir        string
	MemoryDir      string // where guests' memory is kept, below DataDir
	DiskReserveMiB int64  // what a sleep leaves free there for the host
	HTTPAddr       string // host:port; port 0 is always free
	BridgeName     string
	SSHPortMin     int
	SSHPortMax     int
	Driver         string // auto, qemu, firecracker or fake
	QEMUBin        string // a path, or a name to look up in PATH
	FirecrackerBin string // likewise
	JailerBin      string // likewise
	AgentPath      string // the program that runs in guests
	DefaultImage   string // a file that exists once the default image is built; "" skips the check
}

// examiner is one run's surroundings.
type examiner struct {
	System
	Settings
}

// Run examines the host, in an order in which a later check may depend on an
// earlier one. It returns every check, passed or not.
func Run(ctx context.Context, sys System, settings Settings) []Check {
	e := examiner{sys, settings}
	checks := []func(context.Context) Check{
		e.privileges, e.kernel,
		e.kvm, e.qemu, e.firecracker,
		e.tun, e.links, e.nftables, e.forwarding, e.firewall,
		e.httpPort, e.sshPorts,
		e.cgroups, e.memory, e.guestMemory, e.swap, e.disk, e.sleep, e.reflink,
		e.agent, e.buildTools, e.image, e.service,
	}
	found := make([]Check, 0, len(checks))
	for _, check := range checks {
		found = append(found, check(ctx))
	}
	return found
}

// Healthy reports whether no check failed.
func Healthy(checks []Check) bool {
	for _, c := range checks {
		if c.Status == Fail {
			return false
		}
	}
	return true
}

// Fix runs a check's command. The error carries what the command said.
// A check without a command is left alone.
func Fix(ctx context.Context, sys System, c Check) error {
	if c.Status == Pass || c.Fix == "" {
		return nil
	}
	out, err := sys.Command(ctx, "sh", "-c", c.Fix)
	if err != nil {
		return fmt.Errorf("cannot mend %s with %q: %w: %s", c.Name, c.Fix, err, strings.TrimSpace(out))
	}
	return nil
}

func pass(name, format string, args ...any) Check {
	return Check{Name: name, Status: Pass, Message: fmt.Sprintf(format, args...)}
}

func warn(name, format string, args ...any) Check {
	return Check{Name: name, Status: Warn, Message: fmt.Sprintf(format, args...)}
}

func fail(name, format string, args ...any) Check {
	return Check{Name: name, Status: Fail, Message: fmt.Sprintf(format, args...)}
}

// mendedBy adds the command that mends the check.
func (c Check) mendedBy(format string, args ...any) Check {
	c.Fix = fmt.Sprintf(format, args...)
	return c
}

// hint adds what only a person can do.
func (c Check) hint(format string, args ...any) Check {
	c.Hint = fmt.Sprintf(format, args...)
	return c
}

// quote makes s one word of a shell command.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// install is the command that installs Debian packages.
func install(packages ...string) string {
	return "apt-get update && apt-get install -y --no-install-recommends " + strings.Join(packages, " ")
}
