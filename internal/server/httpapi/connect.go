package httpapi

import (
	"cmp"
	"context"
	"net"
	"regexp"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/sshca"
	"github.com/hatchvm/hatch/internal/vm"
)

const connectText = `Sign an SSH public key for a login to the VM within five minutes: no key has to be put into the VM. The certificate is valid for this VM only, and permits a terminal and port forwarding. ` +
	`The guest's SSH server must accept certificates; hatch-agent configures that at boot. Compare the server's key with host_keys. ` +
	`The response comes at once also if the VM sleeps: the connection to its SSH port wakes it.`

// Authority signs the keys of users. [sshca.Authority] implements it.
type Authority interface {
	// Sign signs a key for a login to a VM. Errors: errs.Invalid.
	Sign(l sshca.Login, now time.Time) (sshca.Certificate, error)
}

// connectHandlers signs keys for logins to guests.
type connectHandlers struct {
	*door
	vms       vmGetter
	authority Authority
}

func (h *connectHandlers) routes() []route {
	return []route{
		{post, "/vms/{id}/connect", access.Write(access.Exec), 200, "connect-vm", "Connect with SSH", connectText, on(h.connect)},
	}
}

type connectInput struct {
	IDPath
	Body api.Connect
	host string // that the client has named
}

// Resolve implements [huma.Resolver].
func (in *connectInput) Resolve(c huma.Context) []error {
	in.host = c.Host()
	return nil
}

// sshUserForm matches a name of a guest's user that is safe on a command line.
var sshUserForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,63}$`)

func (h *connectHandlers) connect(ctx context.Context, in *connectInput) (*answer[api.Connection], error) {
	v, err := h.vms.Get(ctx, scope(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	if in.Body.Username != "" && !sshUserForm.MatchString(in.Body.Username) {
		return nil, errs.InvalidField("username", "%q is not a user's name: want a letter or _, and then up to 63 letters, digits, dots, hyphens and underscores", errs.Brief(in.Body.Username))
	}
	c := callerOf(ctx)
	cert, err := h.authority.Sign(sshca.Login{UserID: c.OwnerID, VMID: v.ID, Key: in.Body.PublicKey, AgentForwarding: in.Body.AgentForwarding}, time.Now())
	if err != nil {
		return nil, err
	}
	if err := acceptsLogins(v); err != nil {
		return nil, err
	}
	return &answer[api.Connection]{Body: api.Connection{
		Certificate: cert.Text, Host: sshHost(c, in.host), Port: v.Lease.SSHPort, Username: cmp.Or(in.Body.Username, sshUser(v)),
		ValidUntil: cert.ValidUntil.Unix(), HostKeys: v.Conditions.SSH.HostKeys,
	}}, nil
}

// acceptsLogins returns an error unless a login with a certificate can succeed.
func acceptsLogins(v vm.VM) error {
	reported := v.Conditions.BootID != ""
	switch {
	case !v.EnableNetwork || v.Lease.SSHPort == 0:
		return errs.New(errs.Conflict, "no_ssh_port", "cannot log in to VM %s with SSH: it has no network", v.ID).
			WithHint("POST /vms/%s/exec runs commands without one", v.ID)
	case v.State != vm.Running && v.State != vm.Starting && v.State != vm.Snapshotted:
		return errs.New(errs.Conflict, "vm_not_running", "cannot log in to VM %s with SSH: it is %s", v.ID, v.State).WithHint("start or resume it first")
	case v.State != vm.Snapshotted && !reported:
		return errs.New(errs.Unavailable, "ssh_not_known", "cannot log in to VM %s with SSH yet: its guest has not reported its SSH server", v.ID).
			WithHint("GET /vms/%s/wait?for=ssh waits for it", v.ID)
	case !v.Conditions.SSH.Certificates || len(v.Conditions.SSH.HostKeys) == 0:
		return errs.New(errs.Conflict, "ssh_certificates_unsupported", "cannot log in to VM %s with a certificate: its guest has no SSH server that accepts them", v.ID).
			WithHint("a guest with OpenSSH and hatch-agent accepts them from its next boot on; ssh_authorized_keys of a new VM work without")
	}
	return nil
}

// sshUser returns the user to log in as.
func sshUser(v vm.VM) string {
	if user := v.Labels["hatch.ssh.user"]; sshUserForm.MatchString(user) {
		return user
	}
	if v.ImageID == "img_minimal" {
		return "root"
	}
	return "debian"
}

var hostForm = regexp.MustCompile(`^[A-Za-z0-9.:-]{1,255}$`)

// sshHost returns the host of SSH ports as the client knows it: the name that it has sent
// its request to, without the port, or loopback through the local socket.
func sshHost(c *caller, named string) string {
	host := named
	if name, _, err := net.SplitHostPort(named); err == nil {
		host = name
	}
	if !c.address.IsValid() || !hostForm.MatchString(host) {
		return "127.0.0.1"
	}
	return host
}
