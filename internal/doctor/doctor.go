// Package doctor examines the host: whether it can run VMs, how well, and what is
// missing. Every check gives its result in one sentence; a check that fails also
// has the command that fixes it, or a hint for the operator.
//
// It changes nothing by itself: [Fix] runs the command of a check. Its callers
// render [Check]. Start at [Run]; the checks see the host through [System].
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
	Fix     string `json:"fix,omitempty"`  // a shell command that fixes it, safe to run
	Hint    string `json:"hint,omitempty"` // what the operator has to do when no command can
}

// Settings are the parts of the configuration that the host is examined for.
type Settings struct {
	DataDir string

	TrustDataDirParents bool // other users may change the directories above

	MemoryDir      string   // of guests' memory, below DataDir
	DiskReserveMiB int64    // the space that a sleep leaves free there
	HTTPAddr       string   // host:port; port 0 is always free
	HTTPTLS        bool     // the API is served over TLS there
	ExposesHTTP    bool     // other hosts can reach the API without TLS
	Sockets        []string // where hatchd may have its local socket
	BridgeName     string
	Cgroup         string // in which VMs have theirs, below the root of the hierarchy
	ProxyAddr      string // host:port of routes; "" for none
	TLSAddr        string // host:port of routes over TLS; "" for none
	ProxyDomain    string // that routes are below
	SSHPortMin     int
	SSHPortMax     int
	PortMin        int // of published ports
	PortMax        int
	Driver         string   // auto, qemu or firecracker
	QEMUBin        string   // a path, or a name to look up in PATH
	FirecrackerBin string   // likewise
	JailerBin      string   // likewise
	AgentPath      string   // the program that runs in guests
	DebianMirrors  []string // of the configuration; empty means the host's
	DefaultImage   string   // a file that exists once the default image is built; "" skips the check
}

// examiner is the input of all checks.
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
		e.kvm, e.qemu, e.jail, e.firecracker,
		e.tun, e.links, e.nftables, e.forwarding, e.firewall,
		e.httpPort, e.apiTLS, e.proxyPorts, e.proxyDomain, e.sshPorts, e.publishedPorts, e.portRanges,
		e.cgroups, e.memory, e.guestMemory, e.swap, e.dataDir, e.disk, e.sleep, e.reflink,
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

// Fix runs the command of a check, if it has one. An error quotes the command's
// output.
func Fix(ctx context.Context, sys System, c Check) error {
	if c.Status == Pass || c.Fix == "" {
		return nil
	}
	out, err := sys.Command(ctx, "sh", "-c", c.Fix)
	if err != nil {
		return fmt.Errorf("cannot fix %s with %q: %w: %s", c.Name, c.Fix, err, strings.TrimSpace(out))
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

// fix adds the command that fixes the check.
func (c Check) fix(format string, args ...any) Check {
	c.Fix = fmt.Sprintf(format, args...)
	return c
}

// hint adds what the operator has to do.
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
