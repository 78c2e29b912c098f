package vm

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vmm"
)

// resolve turns a request into a VM that could be stored: template and
// defaults filled in, everything checked that can be checked without
// reserving anything.
func (s *Service) resolve(ctx context.Context, owner string, req CreateRequest) (VM, error) {
	tpl, err := s.template(ctx, owner, req.TemplateID)
	if err != nil {
		return VM{}, err
	}
	img, err := s.deps.Images.Image(ctx, owner, cmp.Or(req.ImageID, tpl.ImageID, image.DefaultID))
	if err != nil {
		return VM{}, imageError(err)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	v := VM{
		ID: id.New(IDPrefix), OwnerID: owner, Name: req.Name,
		Labels:  mergeLabels(tpl.Labels, req.Labels),
		ImageID: img.ID, TemplateID: tpl.ID, Boot: img.Boot(),
		Intent: WantRunning, State: Starting,
		VCPUs:         first(s.settings.VCPUs, req.VCPUs, tpl.VCPUs),
		MemMiB:        first(s.settings.MemMiB, req.MemMiB, tpl.MemMiB),
		DiskMiB:       first(s.settings.DiskMiB, req.DiskMiB, tpl.DiskMiB),
		BootArgs:      first(cmp.Or(img.BootArgs, s.settings.BootArgs), req.BootArgs, tpl.BootArgs),
		EnableNetwork: first(true, req.EnableNetwork, tpl.EnableNetwork),
		UserData:      first("", req.UserData, tpl.UserData),
		SSHKeys:       firstList(req.SSHKeys, tpl.SSHKeys),
		RateLimits:    first(vmm.RateLimits{}, req.RateLimits, tpl.RateLimits),
		CreatedAt:     now, UpdatedAt: now,
	}
	if v.Driver, err = s.driverFor(req.Driver); err != nil {
		return VM{}, err
	}
	return v, s.check(v, req)
}

func (s *Service) template(ctx context.Context, owner, id string) (template.Template, error) {
	if id == "" {
		return template.Template{}, nil
	}
	tpl, err := s.deps.Templates.Template(ctx, owner, id)
	if errs.Is(err, errs.NotFound) {
		return tpl, errs.InvalidField("template_id", "there is no template %q", id).
			WithHint("GET /templates lists them").WithCause(err)
	}
	return tpl, err
}

// imageError turns "no such image" into a fault of the request.
func imageError(err error) error {
	var e *errs.Error
	if errs.Is(err, errs.NotFound) && asError(err, &e) {
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
func (s *Service) check(v VM, req CreateRequest) error {
	checks := []func(VM, CreateRequest) error{
		s.checkSize, s.checkAddress, checkRateLimits, s.checkDriver, checkName, checkBootArgs, checkUserData, checkLabels, checkKeys, checkIdempotency,
	}
	for _, check := range checks {
		if err := check(v, req); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) checkSize(v VM, _ CreateRequest) error {
	if most := s.deps.Host.CPUs(); v.VCPUs < 1 || v.VCPUs > most {
		return errs.InvalidField("vcpu_count", "%d is out of range; 1 to %d (the host's CPUs) can be given", v.VCPUs, most)
	}
	if most := s.deps.Host.MemMiB(); v.MemMiB < MinMemMiB || int64(v.MemMiB) > most {
		return errs.InvalidField("mem_mib", "%d is out of range; %d to %d (what VMs may take on this host) can be given", v.MemMiB, MinMemMiB, most)
	}
	least := minDiskMiB
	if v.Boot.DiskMode == image.DiskCopy {
		least = max(least, int((v.Boot.Rootfs.Size+1<<20-1)>>20))
	}
	if v.DiskMiB < least || v.DiskMiB > maxDiskMiB {
		return errs.InvalidField("disk_mib", "%d is out of range; %d to %d can be given with this image", v.DiskMiB, least, maxDiskMiB)
	}
	return nil
}

const (
	minDiskMiB = 64
	maxDiskMiB = 16 << 20 // 16 TiB, ext4's bound with 4 KiB blocks
)

func (s *Service) checkAddress(v VM, req CreateRequest) error {
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

func (s *Service) checkMAC(req CreateRequest) error {
	net := s.settings.Pools.Network
	switch {
	case req.MAC == nil:
		return nil
	case len(req.MAC) != 6:
		return errs.InvalidField("guest_mac", "%q is not a MAC address of six bytes, such as 02:FC:00:00:00:0A", req.MAC)
	case req.MAC[0]&1 == 1:
		return errs.InvalidField("guest_mac", "%s is a multicast address; the lowest bit of the first byte must be 0, as in 02:FC:00:00:00:0A", req.MAC)
	case bytes.Equal(req.MAC, net.MAC(net.Gateway)):
		return errs.InvalidField("guest_mac", "%s is the host's own on the bridge; give another, or none", req.MAC)
	case slices.Max(req.MAC) == 0:
		return errs.InvalidField("guest_mac", "%s is no address of a station; give one such as 02:FC:00:00:00:0A", req.MAC)
	}
	return nil
}

func checkRateLimits(v VM, req CreateRequest) error {
	if !v.EnableNetwork && req.RateLimits != nil && req.RateLimits.Network() {
		return errs.InvalidField("rate_limits", "the network's cannot be given when enable_network is false")
	}
	return v.RateLimits.Check()
}

// checkDriver refuses what only the VM's driver cannot do. One that is not there
// is told of when the VM is started.
func (s *Service) checkDriver(v VM, _ CreateRequest) error {
	d, ok := s.deps.Drivers[v.Driver]
	if !ok {
		return nil
	}
	can := d.Info().Capabilities
	if err := can.VCPUs(v.Driver, v.VCPUs); err != nil {
		return err
	}
	return can.Limits(v.Driver, s.limitsOf(v))
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func checkName(v VM, _ CreateRequest) error {
	if v.Name != "" && !nameForm.MatchString(v.Name) {
		return errs.InvalidField("name", "%q is not a hostname; up to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends", v.Name)
	}
	return nil
}

// maxBootArgs leaves room for what Hatch itself adds; x86 kernels take 2,048 bytes.
const maxBootArgs = 1536

func checkBootArgs(v VM, _ CreateRequest) error {
	if len(v.BootArgs) > maxBootArgs {
		return errs.InvalidField("boot_args", "%d bytes are too long; up to %d can be given", len(v.BootArgs), maxBootArgs)
	}
	if strings.ContainsFunc(v.BootArgs, func(r rune) bool { return r < ' ' || r > '~' }) {
		return errs.InvalidField("boot_args", "only printable ASCII can be given")
	}
	return nil
}

func checkUserData(v VM, _ CreateRequest) error {
	if len(v.UserData) > MaxUserData {
		return errs.InvalidField("user_data", "%d bytes are too long; up to %d can be given", len(v.UserData), MaxUserData)
	}
	return nil
}

func checkLabels(v VM, _ CreateRequest) error {
	if len(v.Labels) > MaxLabels {
		return errs.InvalidField("labels", "%d are too many; up to %d can be given", len(v.Labels), MaxLabels)
	}
	for k, val := range v.Labels {
		if k == "" || len(k) > MaxLabelKey || strings.ContainsAny(k, "=,\x00\n") {
			return errs.InvalidField("labels", "key %q must have 1 to %d bytes and no '=', ',' or control character", k, MaxLabelKey)
		}
		if len(val) > MaxLabelValue || strings.ContainsAny(val, "\x00\n") {
			return errs.InvalidField("labels", "the value of %q must have up to %d bytes and no control character", k, MaxLabelValue)
		}
	}
	return nil
}

func checkKeys(v VM, _ CreateRequest) error {
	if len(v.SSHKeys) > MaxSSHKeys {
		return errs.InvalidField("ssh_authorized_keys", "%d are too many; up to %d can be given", len(v.SSHKeys), MaxSSHKeys)
	}
	for i, key := range v.SSHKeys {
		_, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(key))
		if err != nil || len(rest) > 0 || len(key) > MaxSSHKey || strings.ContainsAny(key, "\x00\r\n") {
			return errs.InvalidField("ssh_authorized_keys", "entry %d is not one public key of the authorized_keys form, such as \"ssh-ed25519 AAAA… name\"", i+1)
		}
	}
	return nil
}

func checkIdempotency(_ VM, req CreateRequest) error {
	if len(req.Idempotency.Key) > MaxIdempotency {
		return errs.InvalidField("Idempotency-Key", "%d bytes are too long; up to %d can be given", len(req.Idempotency.Key), MaxIdempotency)
	}
	return nil
}

// first returns the first value given, else fallback.
func first[T any](fallback T, given ...*T) T {
	for _, p := range given {
		if p != nil {
			return *p
		}
	}
	return fallback
}

func firstList(lists ...[]string) []string {
	for _, l := range lists {
		if l != nil { // an empty list says: none
			return slices.Clone(l)
		}
	}
	return nil
}

func mergeLabels(under, over map[string]string) map[string]string {
	merged := map[string]string{}
	maps.Copy(merged, under)
	maps.Copy(merged, over)
	return merged
}

// Cmdline returns the guest's kernel command line: the VM's boot arguments and
// what the agent in the initramfs needs to know.
func (v VM) Cmdline(gateway netip.Addr, prefixBits int) string {
	args := []string{
		v.BootArgs,
		"hatch.mode=" + string(v.Boot.DiskMode),
		"hatch.rootfs=" + v.Boot.RootfsFormat,
		"hatch.hostname=" + v.Hostname(),
	}
	if v.EnableNetwork {
		args = append(args,
			fmt.Sprintf("hatch.ip=%s/%d", v.Lease.Address, prefixBits),
			"hatch.gw="+gateway.String(),
			"hatch.dns="+gateway.String(),
			"hatch.mac="+v.Lease.MAC.String(),
		)
	}
	return strings.TrimSpace(strings.Join(args, " "))
}
