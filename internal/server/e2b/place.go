package e2b

import (
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/vm"
)

// agentPort is the port that clients know agents at. No port of the guest is behind it.
const agentPort = 49983

// Headers that name a sandbox where its host name does not.
const (
	sandboxHeader = "E2b-Sandbox-Id"
	portHeader    = "E2b-Sandbox-Port"
)

// placeKind is the plane of a request.
type placeKind int

const (
	nowhere   placeKind = iota // a path of sandboxes, without one
	atControl                  // the control plane
	atAgent                    // an agent
	atPort                     // another port of a guest
)

// place is where a request leads.
type place struct {
	kind placeKind
	id   string // of the sandbox, as the client names it, without a client's id
	port int
}

var (
	hostForm = regexp.MustCompile(`^([0-9]{1,5})-([a-z0-9]+)(-[a-z0-9]+)?$`)
	idForm   = regexp.MustCompile(`^i[a-z0-9]{12}$`)
)

// controlPaths are first segments of the control plane, after an optional version.
var controlPaths = []string{"sandboxes", "templates", "snapshots", "volumes", "volumecontent", "secrets", "teams", "default-templates", "upload"}

var agentPaths = []string{"health", "files", "envs", "metrics", "process.Process", "filesystem.Filesystem"}

// placeOf decides by the host name if it has one of the door's forms. Otherwise, on a host
// that all share, the path comes before headers: clients of one generation send the
// headers of a sandbox to the control plane, too.
func (d *Door) placeOf(r *http.Request) place {
	host := hostname(r.Host)
	if p, ok := placeAt(host); ok {
		return p
	}
	if d.cfg.APIHost != "" && host == d.cfg.APIHost || isControl(r.URL.Path) {
		return place{kind: atControl}
	}
	id, port := withoutClient(r.Header.Get(sandboxHeader)), agentPort
	if text := r.Header.Get(portHeader); text != "" {
		port = portNumber(text)
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case id != "":
		return sandboxPlace(id, port)
	case slices.Contains(agentPaths, first):
		return place{kind: nowhere}
	}
	return place{kind: atControl} // which says that there is no such route
}

// placeAt returns where a host name of the form PORT-SANDBOX and a domain leads.
func placeAt(host string) (place, bool) {
	label, _, _ := strings.Cut(host, ".")
	match := hostForm.FindStringSubmatch(label)
	if match == nil {
		return place{}, false
	}
	return sandboxPlace(match[2], portNumber(match[1])), true
}

func sandboxPlace(id string, port int) place {
	if port == agentPort {
		return place{atAgent, id, port}
	}
	return place{atPort, id, port}
}

// portNumber returns 0, at which nothing listens, for what is none.
func portNumber(text string) int {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0
	}
	return int(n)
}

// isControl reports whether a path is of the control plane.
func isControl(path string) bool {
	first, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if len(first) > 1 && first[0] == 'v' && strings.Trim(first[1:], "0123456789") == "" {
		first, _, _ = strings.Cut(rest, "/")
	}
	return slices.Contains(controlPaths, first)
}

// Claims reports whether a request to a host name that Hatch's own API has, too, is for
// this door: by a path that only it has, or else by the form of the key.
func Claims(r *http.Request) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	shared := first == "templates" || first == "snapshots"
	return isControl(r.URL.Path) && (!shared || strings.HasPrefix(r.Header.Get(keyHeader), access.E2BPrefix))
}

// IsSandboxHost reports whether a host name has the form of one of a sandbox.
func IsSandboxHost(host string) bool {
	p, ok := placeAt(hostname(host))
	return ok && idForm.MatchString(p.id)
}

func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// withoutClient cuts the id of a client off that old clients append to a sandbox's.
func withoutClient(id string) string {
	id, _, _ = strings.Cut(id, "-")
	return id
}

// sandboxID is the id of a VM as clients see it: they allow neither "_" nor "-" in it.
func sandboxID(vmID string) string { return "i" + strings.TrimPrefix(vmID, vm.IDPrefix) }

// vmIDOf is the reverse of sandboxID, "" for what is no id.
func vmIDOf(id string) string {
	id = withoutClient(id)
	if !idForm.MatchString(id) {
		return ""
	}
	return vm.IDPrefix + id[1:]
}
