package machine

import (
	"math"
	"net/netip"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
)

// Limits on the values of a spec.
const (
	MaxDescription = 1024 // bytes
	MaxHostname    = 63   // bytes
	MinMemMiB      = 64
	MinDiskMiB     = 64
	MaxDiskMiB     = 16 << 20 // 16 TiB, ext4's limit with 4 KiB blocks
	MaxBootArgs    = 1536     // bytes; x86 kernels take 2,048, and Hatch adds its own
	MaxUserData    = 1 << 20  // bytes
	MaxLabels      = 64
	MaxLabelKey    = 63  // bytes
	MaxLabelValue  = 255 // bytes
	MaxSSHKeys     = 64
	MaxSSHKey      = 16 << 10 // bytes
)

// Host is the most that one VM may have on a host.
type Host struct {
	CPUs   int
	MemMiB int64
}

// anyHost is for specs that are not for one host.
var anyHost = Host{CPUs: math.MaxInt, MemMiB: math.MaxInt64}

// Check refuses values that are out of range; none is clamped. Errors:
// errs.Invalid, which names the field as requests have it.
func (s Spec) Check(host Host) error {
	for _, check := range []func() error{
		func() error { return s.checkSizes(host) },
		s.RateLimits.Check,
		s.checkDescription, s.checkHostname, s.checkBootArgs, s.checkUserData, s.checkLabels, s.checkSSHKeys, s.checkPorts,
		s.Idle.check, s.Expiry.check, s.checkSandbox,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// Check refuses what no VM on any host could have. Errors: as [Spec.Check].
func (o Overrides) Check() error {
	least := Spec{VCPUs: 1, MemMiB: MinMemMiB, DiskMiB: MinDiskMiB}
	return Merge(least, o).Check(anyHost)
}

func (s Spec) checkSizes(host Host) error {
	leastDisk := int64(MinDiskMiB)
	if s.Boot.DiskMode == image.DiskCopy {
		leastDisk = max(leastDisk, (s.Boot.Rootfs.Size+1<<20-1)>>20)
	}
	for _, size := range []struct {
		field              string
		value, least, most int64
		can                string
	}{
		{"vcpu_count", int64(s.VCPUs), 1, int64(host.CPUs), " (the host's CPUs) can be given"},
		{"mem_mib", int64(s.MemMiB), MinMemMiB, host.MemMiB, " (what VMs may take on this host) can be given"},
		{"disk_mib", int64(s.DiskMiB), leastDisk, MaxDiskMiB, " can be given with this image"},
	} {
		if size.value >= size.least && size.value <= size.most {
			continue
		}
		if size.most == math.MaxInt64 {
			return errs.InvalidField(size.field, "%d is out of range; %d or more can be given", size.value, size.least)
		}
		return errs.InvalidField(size.field, "%d is out of range; %d to %d%s", size.value, size.least, size.most, size.can)
	}
	return nil
}

func (s Spec) checkDescription() error {
	if len(s.Description) > MaxDescription {
		return tooLong("description", len(s.Description), MaxDescription)
	}
	control := func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }
	if !utf8.ValidString(s.Description) || strings.ContainsFunc(s.Description, control) {
		return errs.InvalidField("description", "want UTF-8 text without control characters other than newline and tab")
	}
	return nil
}

// hostnameForm is RFC 1123's.
var hostnameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$`)

func (s Spec) checkHostname() error {
	if len(s.Hostname) > MaxHostname {
		return tooLong("hostname", len(s.Hostname), MaxHostname)
	}
	if _, err := netip.ParseAddr(s.Hostname); err == nil {
		return errs.InvalidField("hostname", "%q is an IP address; give a name such as db-1", s.Hostname)
	}
	if s.Hostname != "" && !hostnameForm.MatchString(s.Hostname) {
		return errs.InvalidField("hostname", "%q is not a valid hostname: want letters, digits and hyphens, with a letter or digit at both ends of each part between dots, such as db-1 or db-1.example.com", s.Hostname)
	}
	return nil
}

func (s Spec) checkBootArgs() error {
	if len(s.BootArgs) > MaxBootArgs {
		return tooLong("boot_args", len(s.BootArgs), MaxBootArgs)
	}
	if strings.ContainsFunc(s.BootArgs, func(r rune) bool { return r < ' ' || r > '~' }) {
		return errs.InvalidField("boot_args", "only printable ASCII can be given")
	}
	return nil
}

func (s Spec) checkUserData() error {
	if len(s.UserData) > MaxUserData {
		return tooLong("user_data", len(s.UserData), MaxUserData)
	}
	return nil
}

func (s Spec) checkLabels() error {
	if len(s.Labels) > MaxLabels {
		return tooMany("labels", len(s.Labels), MaxLabels)
	}
	for key, value := range s.Labels {
		if key == "" || len(key) > MaxLabelKey || strings.ContainsAny(key, "=,\x00\n") || !utf8.ValidString(key) {
			return errs.InvalidField("labels", "key %q must have 1 to %d bytes and no '=', ',' or control character", key, MaxLabelKey)
		}
		if len(value) > MaxLabelValue || strings.ContainsAny(value, "\x00\n") || !utf8.ValidString(value) {
			return errs.InvalidField("labels", "the value of %q must have up to %d bytes and no control character", key, MaxLabelValue)
		}
	}
	return nil
}

func (s Spec) checkSSHKeys() error {
	if len(s.SSHKeys) > MaxSSHKeys {
		return tooMany("ssh_authorized_keys", len(s.SSHKeys), MaxSSHKeys)
	}
	for i, key := range s.SSHKeys {
		_, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(key))
		if err != nil || len(rest) > 0 || len(key) > MaxSSHKey || strings.ContainsAny(key, "\x00\r\n") || !utf8.ValidString(key) {
			return errs.InvalidField("ssh_authorized_keys", "entry %d is not one public key of the authorized_keys form, such as \"ssh-ed25519 AAAA… name\"", i+1)
		}
	}
	return nil
}

func tooLong(field string, bytes, limit int) error {
	return errs.InvalidField(field, "is %d bytes; the limit is %d", bytes, limit)
}

func tooMany(field string, count, limit int) error {
	return errs.InvalidField(field, "has %d entries; the limit is %d", count, limit)
}
