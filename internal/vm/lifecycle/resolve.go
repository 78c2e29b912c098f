package lifecycle

import (
	"bytes"
	"cmp"
	"context"
	"regexp"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
)

// resolve turns a request into a vm.VM that could be stored: template and
// defaults filled in, everything checked that can be checked without
// reserving anything.
func (s *Service) resolve(ctx context.Context, ownerID string, req vm.CreateRequest) (vm.VM, error) {
	tpl, err := s.template(ctx, access.Owner(ownerID), req.TemplateID)
	if err != nil {
		return vm.VM{}, err
	}
	img, err := s.deps.Images.Image(ctx, access.Owner(ownerID), cmp.Or(req.ImageID, tpl.ImageID, image.DefaultID))
	if err != nil {
		return vm.VM{}, imageError(err)
	}
	spec := machine.Merge(machine.Spec{
		VCPUs: s.settings.VCPUs, MemMiB: s.settings.MemMiB, DiskMiB: s.settings.DiskMiB,
		BootArgs: cmp.Or(img.BootArgs, s.settings.BootArgs), EnableNetwork: true,
		Idle: s.settings.Idle,
	}, tpl.Overrides, req.Overrides)
	spec.ImageID, spec.Boot, spec.TemplateID = img.ID, img.Boot(), tpl.ID
	if spec.Driver, err = s.driverFor(spec.Driver); err != nil {
		return vm.VM{}, err
	}
	now := vm.Now()
	if spec.Expiry.At.IsZero() {
		spec.Expiry = spec.Expiry.Begun(now)
	} else if !spec.Expiry.At.After(now) {
		return vm.VM{}, errs.InvalidField("expires_at", "%s has passed already", spec.Expiry.At.UTC().Format(time.RFC3339))
	}
	s.completeIdle(&spec)
	v := vm.VM{
		ID: id.New(vm.IDPrefix), OwnerID: ownerID, Name: req.Name, Spec: spec,
		Intent: vm.IntentRunning, State: vm.Starting, CreatedAt: now, UpdatedAt: now,
	}
	routes := req.Routes
	if routes == nil {
		routes = tpl.Routes
	}
	for _, spec := range routes {
		r := route.New(ownerID, v.ID, spec)
		if req.Routes != nil && req.Rights.Include(access.Admin) { // not what the author of a template has chosen
			r = r.Proved()
		}
		v.Routes = append(v.Routes, r)
	}
	if err := checkRights(v, req.Rights); err != nil {
		return vm.VM{}, err
	}
	return v, s.check(v, req)
}

// checkRights refuses what a VM has, also by its template, that its creator could not add
// to it afterwards.
func checkRights(v vm.VM, rights access.Rights) error {
	if needs := access.Write(access.Routes); len(v.Routes) > 0 && !rights.Include(needs) {
		return errs.New(errs.Forbidden, "forbidden", "cannot make the routes to this VM with this API key: it lacks the scope %q", needs).
			WithField("routes").WithHint("use a key with the scope %q, or give routes: []", needs)
	}
	for _, p := range v.Ports {
		if p.Host != 0 && !rights.Include(access.Admin) {
			return errs.New(errs.Forbidden, "forbidden", "cannot publish on host port %d with this API key: to choose a host port needs the scope %q", p.Host, access.Admin).
				WithField("ports").WithHint("give ports without host to get free ones")
		}
	}
	return nil
}

// completeIdle gives an idle policy without an action the server's.
func (s *Service) completeIdle(spec *machine.Spec) {
	if spec.Idle != (machine.IdlePolicy{}) {
		spec.Idle.Action = cmp.Or(spec.Idle.Action, s.settings.Idle.Action, machine.ActionSleep)
	}
}

func (s *Service) template(ctx context.Context, scope access.Scope, id string) (template.Template, error) {
	if id == "" {
		return template.Template{}, nil
	}
	tpl, err := s.deps.Templates.Template(ctx, scope, id)
	if errs.Is(err, errs.NotFound) {
		return tpl, errs.InvalidField("template_id", "there is no template %q", id).
			WithHint("GET /templates lists them").WithCause(err)
	}
	return tpl, err
}

// imageError turns "no such image" into an error of the request.
func imageError(err error) error {
	if e, ok := errs.As(err); ok && e.Kind == errs.NotFound {
		return errs.New(errs.Invalid, "invalid_image_id", "image_id: %s", e.Message).
			WithField("image_id").WithHint("%s", cmp.Or(e.Hint, "GET /images lists them; hatch image build makes the default one"))
	}
	return err
}

func (s *Service) driverFor(name string) (string, error) {
	if name == "" || name == "auto" {
		return s.settings.DefaultDriver, nil
	}
	if _, ok := s.deps.Drivers[name]; ok {
		return name, nil
	}
	if name == "qemu" || name == "firecracker" {
		return "", errs.New(errs.Unsupported, "vmm_unavailable", "vmm: %s cannot be used on this host", name).
			WithField("vmm").WithHint("leave vmm out, or use %q", s.settings.DefaultDriver)
	}
	return "", errs.InvalidField("vmm", "%q is not a driver; auto, qemu or firecracker can be given", name)
}

// check refuses what is out of range. Nothing is clamped.
func (s *Service) check(v vm.VM, req vm.CreateRequest) error {
	if err := v.Spec.Check(machine.Host{CPUs: s.deps.Host.CPUs(), MemMiB: s.deps.Host.MemMiB()}); err != nil {
		return err
	}
	for _, check := range []func(vm.VM, vm.CreateRequest) error{s.checkAddress, checkNetworkLimits, s.checkDriver, checkName} {
		if err := check(v, req); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) checkAddress(v vm.VM, req vm.CreateRequest) error {
	if !v.EnableNetwork {
		if req.Address.IsValid() {
			return errs.InvalidField("guest_ip", "cannot be given when enable_network is false")
		}
		if req.MAC != nil {
			return errs.InvalidField("guest_mac", "cannot be given when enable_network is false")
		}
		return nil
	}
	if req.Address.IsValid() {
		if why, ok := s.settings.Pools.Network.Usable(req.Address); !ok {
			return errs.InvalidField("guest_ip", "%s; give a free address of %s", why, s.settings.Pools.Network.Prefix)
		}
	}
	return s.checkMAC(req)
}

func (s *Service) checkMAC(req vm.CreateRequest) error {
	bridge := s.settings.Pools.Network
	switch {
	case req.MAC == nil:
		return nil
	case len(req.MAC) != 6:
		return errs.InvalidField("guest_mac", "%q is not a MAC address of six bytes, such as 02:FC:00:00:00:0A", req.MAC)
	case req.MAC[0]&1 == 1:
		return errs.InvalidField("guest_mac", "%s is a multicast address; the lowest bit of the first byte must be 0, as in 02:FC:00:00:00:0A", req.MAC)
	case bytes.Equal(req.MAC, bridge.MAC(bridge.Gateway)):
		return errs.InvalidField("guest_mac", "%s is the host's own on the bridge; give another, or none", req.MAC)
	case slices.Max(req.MAC) == 0:
		return errs.InvalidField("guest_mac", "%s is the all-zero address; use a unicast MAC such as 02:FC:00:00:00:0A", req.MAC)
	}
	return nil
}

// checkNetworkLimits refuses limits of a network that the vm.VM does not have. A
// template's apply to its other VMs.
func checkNetworkLimits(v vm.VM, req vm.CreateRequest) error {
	if !v.EnableNetwork && req.RateLimits != nil && req.RateLimits.Network() {
		return errs.InvalidField("rate_limits", "the network's cannot be given when enable_network is false")
	}
	return nil
}

// checkDriver refuses what the VM's driver cannot do. The start of the vm.VM
// reports a driver that this host does not have.
func (s *Service) checkDriver(v vm.VM, _ vm.CreateRequest) error {
	d, ok := s.deps.Drivers[v.Driver]
	if !ok {
		return nil
	}
	can := d.Info().Capabilities
	if err := can.VCPUs(v.Driver, v.VCPUs); err != nil {
		return err
	}
	return can.Limits(v.Driver, s.engine.DriverLimits(v))
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func checkName(v vm.VM, _ vm.CreateRequest) error {
	if v.Name != "" && !nameForm.MatchString(v.Name) {
		return errs.InvalidField("name", "%q is not a hostname; up to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends", v.Name)
	}
	return nil
}
