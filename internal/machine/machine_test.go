package machine_test

import (
	"encoding/json"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/vmm"
)

const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me"

var host = machine.Host{CPUs: 4, MemMiB: 8192}

func smallest() machine.Spec {
	return machine.Spec{VCPUs: 1, MemMiB: machine.MinMemMiB, DiskMiB: machine.MinDiskMiB}
}

func TestMergeTakesTheLastThatWasGiven(t *testing.T) {
	defaults := machine.Spec{ImageID: "img_default", VCPUs: 1, MemMiB: 512, DiskMiB: 1024, BootArgs: "quiet", EnableNetwork: true, Driver: "qemu"}
	template := machine.Overrides{
		VCPUs: new(2), MemMiB: new(1024), BootArgs: new(""), UserData: new("#!/bin/sh"), SSHKeys: []string{publicKey},
		Labels: map[string]string{"team": "a", "tier": "web"}, RateLimits: &vmm.RateLimits{Disk: vmm.DiskLimit{OpsPerSecond: 10}},
	}
	request := machine.Overrides{
		ImageID: "img_other", VCPUs: new(3), EnableNetwork: new(false), SSHKeys: []string{}, Driver: "firecracker",
		Labels: map[string]string{"tier": "db"}, RateLimits: &vmm.RateLimits{NetworkIn: vmm.NetworkLimit{BytesPerSecond: 1 << 20}},
	}
	want := machine.Spec{
		ImageID: "img_other", VCPUs: 3, MemMiB: 1024, DiskMiB: 1024, EnableNetwork: false, Driver: "firecracker",
		UserData: "#!/bin/sh", SSHKeys: []string{}, Labels: map[string]string{"team": "a", "tier": "db"},
		RateLimits: vmm.RateLimits{NetworkIn: vmm.NetworkLimit{BytesPerSecond: 1 << 20}},
	}
	got := machine.Merge(defaults, template, request)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("merged\n%+v, want\n%+v", got, want)
	}
	got.Labels["tier"] = "changed"
	if request.Labels["tier"] != "db" || template.Labels["tier"] != "web" {
		t.Error("the merged spec shares its labels with a layer")
	}
	if again := machine.Merge(defaults); !reflect.DeepEqual(again, defaults) {
		t.Errorf("without layers: %+v, want %+v", again, defaults)
	}
}

// TestMergeKnowsEachOverride fails when a field of Overrides has no line in
// Merge, or none of the same name in Spec.
func TestMergeKnowsEachOverride(t *testing.T) {
	for i := range reflect.TypeFor[machine.Overrides]().NumField() {
		var o machine.Overrides
		field := reflect.ValueOf(&o).Elem().Field(i)
		name := reflect.TypeFor[machine.Overrides]().Field(i).Name
		fill(t, field)
		merged := reflect.ValueOf(machine.Merge(machine.Spec{}, o)).FieldByName(name)
		if !merged.IsValid() || !reflect.DeepEqual(reflect.Indirect(merged).Interface(), reflect.Indirect(field).Interface()) {
			t.Errorf("%s: the override %v is lost", name, reflect.Indirect(field))
		}
	}
}

func fill(t *testing.T, field reflect.Value) {
	t.Helper()
	for _, value := range []any{
		&machine.Sandbox{Template: "base"}, "text", new("text"), new(7), new(true), new(route.ImplicitOff),
		[]string{"a"},
		map[string]string{"a": "b"},
		&vmm.RateLimits{Disk: vmm.DiskLimit{OpsPerSecond: 10}},
		&machine.IdlePolicy{Timeout: time.Minute, Action: machine.ActionStop}, &machine.Expiry{TTL: time.Hour, Action: machine.ActionStop},
		[]machine.Port{{Guest: 80, Host: 8080, Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Name: "web"}},
	} {
		if reflect.TypeOf(value) == field.Type() {
			field.Set(reflect.ValueOf(value))
			return
		}
	}
	t.Fatalf("no value of type %s; add one here", field.Type())
}

// refused are values that no VM can have, by the field that the error names.
var refused = map[string]struct {
	field string
	o     machine.Overrides
}{
	"long description":   {"description", machine.Overrides{Description: new(strings.Repeat("x", machine.MaxDescription+1))}},
	"description's NUL":  {"description", machine.Overrides{Description: new("\x00")}},
	"escape sequence":    {"description", machine.Overrides{Description: new("\x1b[31m")}},
	"description's CR":   {"description", machine.Overrides{Description: new("a\r\n")}},
	"C1 control":         {"description", machine.Overrides{Description: new("\u0085")}},
	"description's form": {"description", machine.Overrides{Description: new("\xff")}},
	"hostname's end":     {"hostname", machine.Overrides{Hostname: new("db-")}},
	"hostname's part":    {"hostname", machine.Overrides{Hostname: new("db.-1")}},
	"hostname's dot":     {"hostname", machine.Overrides{Hostname: new("db.")}},
	"hostname's space":   {"hostname", machine.Overrides{Hostname: new("db 1")}},
	"hostname's line":    {"hostname", machine.Overrides{Hostname: new("db\n")}},
	"foreign hostname":   {"hostname", machine.Overrides{Hostname: new("dä")}},
	"IPv4 as hostname":   {"hostname", machine.Overrides{Hostname: new("10.0.0.1")}},
	"IPv6 as hostname":   {"hostname", machine.Overrides{Hostname: new("fe80::1")}},
	"long hostname":      {"hostname", machine.Overrides{Hostname: new(strings.Repeat("x", machine.MaxHostname+1))}},
	"no CPUs":            {"vcpu_count", machine.Overrides{VCPUs: new(0)}},
	"little memory":      {"mem_mib", machine.Overrides{MemMiB: new(machine.MinMemMiB - 1)}},
	"negative disk":      {"disk_mib", machine.Overrides{DiskMiB: new(-1)}},
	"little disk":        {"disk_mib", machine.Overrides{DiskMiB: new(machine.MinDiskMiB - 1)}},
	"much disk":          {"disk_mib", machine.Overrides{DiskMiB: new(machine.MaxDiskMiB + 1)}},
	"boot args":          {"boot_args", machine.Overrides{BootArgs: new("a\nb")}},
	"foreign boot args":  {"boot_args", machine.Overrides{BootArgs: new("ä")}},
	"long boot args":     {"boot_args", machine.Overrides{BootArgs: new(strings.Repeat("x", machine.MaxBootArgs+1))}},
	"long user data":     {"user_data", machine.Overrides{UserData: new(strings.Repeat("x", machine.MaxUserData+1))}},
	"many labels":        {"labels", machine.Overrides{Labels: labels(machine.MaxLabels + 1)}},
	"label without key":  {"labels", machine.Overrides{Labels: map[string]string{"": "x"}}},
	"label with =":       {"labels", machine.Overrides{Labels: map[string]string{"a=b": ""}}},
	"long label key":     {"labels", machine.Overrides{Labels: map[string]string{strings.Repeat("k", machine.MaxLabelKey+1): ""}}},
	"long label":         {"labels", machine.Overrides{Labels: map[string]string{"a": strings.Repeat("v", machine.MaxLabelValue+1)}}},
	"label with NUL":     {"labels", machine.Overrides{Labels: map[string]string{"a": "\x00"}}},
	"label not UTF-8":    {"labels", machine.Overrides{Labels: map[string]string{"a": "\xff"}}},
	"label with newline": {"labels", machine.Overrides{Labels: map[string]string{"a\n": ""}}},
	"many keys":          {"ssh_authorized_keys", machine.Overrides{SSHKeys: slices.Repeat([]string{publicKey}, machine.MaxSSHKeys+1)}},
	"no key":             {"ssh_authorized_keys", machine.Overrides{SSHKeys: []string{"ssh-rsa nonsense"}}},
	"two keys in one":    {"ssh_authorized_keys", machine.Overrides{SSHKeys: []string{publicKey + "\n" + publicKey}}},
	"long key":           {"ssh_authorized_keys", machine.Overrides{SSHKeys: []string{publicKey + strings.Repeat("e", machine.MaxSSHKey)}}},
	"brief idle time":    {"idle", machine.Overrides{Idle: &machine.IdlePolicy{Timeout: time.Millisecond, Action: machine.ActionSleep}}},
	"long idle time":     {"idle", machine.Overrides{Idle: &machine.IdlePolicy{Timeout: machine.MaxIdle + 1, Action: machine.ActionSleep}}},
	"idle action":        {"idle", machine.Overrides{Idle: &machine.IdlePolicy{Timeout: time.Minute, Action: machine.ActionDelete}}},
	"negative percent":   {"idle", machine.Overrides{Idle: &machine.IdlePolicy{Timeout: time.Minute, Action: machine.ActionSleep, CPUPercent: -1}}},
	"many bytes":         {"idle", machine.Overrides{Idle: &machine.IdlePolicy{Timeout: time.Minute, Action: machine.ActionSleep, NetworkBytes: machine.MaxIdleBytes + 1}}},
	"negative TTL":       {"ttl_seconds", machine.Overrides{Expiry: &machine.Expiry{TTL: -time.Second, Action: machine.ActionStop}}},
	"expiry's action":    {"expire_action", machine.Overrides{Expiry: &machine.Expiry{TTL: time.Hour, Action: machine.ActionNone}}},
	"many ports":         {"ports", ports(manyPorts()...)},
	"guest port 0":       {"ports", ports(machine.Port{Guest: 0, Host: 8080})},
	"large guest port":   {"ports", ports(machine.Port{Guest: 65536})},
	"negative host port": {"ports", ports(machine.Port{Guest: 80, Host: -1})},
	"large host port":    {"ports", ports(machine.Port{Guest: 80, Host: 65536})},
	"a port twice":       {"ports", ports(machine.Port{Guest: 80, Host: 8080}, machine.Port{Guest: 80})},
	"a host port twice":  {"ports", ports(machine.Port{Guest: 80, Host: 8080}, machine.Port{Guest: 81, Host: 8080})},
	"a port's name":      {"ports", ports(machine.Port{Guest: 80, Name: "Web"})},
	"a name twice":       {"ports", ports(machine.Port{Guest: 80, Name: "web"}, machine.Port{Guest: 81, Name: "web"})},
	"no client":          {"ports", ports(machine.Port{Guest: 80, Allowed: []netip.Prefix{}})},
	"many clients":       {"ports", ports(machine.Port{Guest: 80, Allowed: make([]netip.Prefix, machine.MaxPortNetworks+1)})},
	"slow disk":          {"rate_limits", machine.Overrides{RateLimits: &vmm.RateLimits{Disk: vmm.DiskLimit{OpsPerSecond: 9}}}},
}

func ports(all ...machine.Port) machine.Overrides { return machine.Overrides{Ports: all} }

func manyPorts() (all []machine.Port) {
	for guest := range machine.MaxPorts + 1 {
		all = append(all, machine.Port{Guest: guest + 1})
	}
	return all
}

func labels(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[strings.Repeat("k", i%60+1)+string(rune('a'+i/60))] = ""
	}
	return m
}

// A template and a request are refused alike.
func TestCheckRefuses(t *testing.T) {
	for name, c := range refused {
		t.Run(name, func(t *testing.T) {
			for what, err := range map[string]error{"overrides": c.o.Check(), "spec": machine.Merge(smallest(), c.o).Check(host)} {
				if !errs.Is(err, errs.Invalid) || !errs.HasCode(err, "invalid_"+c.field) {
					t.Errorf("%s: %v, want the code invalid_%s", what, err, c.field)
				}
			}
		})
	}
}

func TestCheckRefusesWhatTheHostHasNot(t *testing.T) {
	copied := image.Boot{DiskMode: image.DiskCopy, Rootfs: image.File{Size: 100<<20 + 1}}
	for name, c := range map[string]struct {
		change  func(*machine.Spec)
		message string // "" when it is accepted
	}{
		"all CPUs":   {func(s *machine.Spec) { s.VCPUs = 4 }, ""},
		"more CPUs":  {func(s *machine.Spec) { s.VCPUs = 5 }, "vcpu_count: 5 is out of range; 1 to 4 (the host's CPUs) can be given"},
		"all memory": {func(s *machine.Spec) { s.MemMiB = 8192 }, ""},
		"more":       {func(s *machine.Spec) { s.MemMiB = 8193 }, "mem_mib: 8193 is out of range; 64 to 8192 (what VMs may take on this host) can be given"},
		"a copy":     {func(s *machine.Spec) { s.Boot, s.DiskMiB = copied, 101 }, ""},
		"less":       {func(s *machine.Spec) { s.Boot, s.DiskMiB = copied, 100 }, "disk_mib: 100 is out of range; 101 to 16777216 can be given with this image"},
	} {
		t.Run(name, func(t *testing.T) {
			s := smallest()
			c.change(&s)
			err := s.Check(host)
			if got := message(err); got != c.message {
				t.Errorf("%q, want %q", got, c.message)
			}
		})
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestCheckAcceptsTheLargest(t *testing.T) {
	o := machine.Overrides{
		Description: new("Für Tests 👩\u200d🚀:\n\tno production" + strings.Repeat(".", machine.MaxDescription-40)),
		VCPUs:       new(4), MemMiB: new(8192), DiskMiB: new(machine.MaxDiskMiB),
		BootArgs: new(strings.Repeat("x", machine.MaxBootArgs)), UserData: new(strings.Repeat("\x00", machine.MaxUserData)),
		Labels: labels(machine.MaxLabels), SSHKeys: slices.Repeat([]string{publicKey}, machine.MaxSSHKeys),
	}
	for _, hostname := range []string{"", "a", "7", "DB-1", "db--1.Example.com", strings.Repeat("x", machine.MaxHostname)} {
		o.Hostname = &hostname
		if err := o.Check(); err != nil {
			t.Error(err)
		}
	}
	maps.DeleteFunc(o.Labels, func(key, _ string) bool { return key == "ka" })
	o.Labels[strings.Repeat("ä", machine.MaxLabelKey/2)] = strings.Repeat("v", machine.MaxLabelValue)
	if err := o.Check(); err != nil {
		t.Error(err)
	}
	if err := machine.Merge(smallest(), o).Check(host); err != nil {
		t.Error(err)
	}
	if err := (machine.Overrides{}).Check(); err != nil {
		t.Error(err)
	}
}

// A database has rows of this form.
func TestStoredFormKeepsItsKeys(t *testing.T) {
	const spec = `{"image_id":"img_a","template_id":"tpl_a","boot":{"image_id":"img_a","kernel":{"path":"/k","digest":"","size":0,"mod_time":"0001-01-01T00:00:00Z","inode":0},` +
		`"rootfs":{"path":"/r","digest":"","size":0,"mod_time":"0001-01-01T00:00:00Z","inode":0},"rootfs_format":"ext4","modules_path":"","disk_mode":"overlay","boot_args":"","cloud_init":true},` +
		`"driver":"qemu","description":"a","hostname":"db","vcpus":2,"mem_mib":256,"disk_mib":512,"boot_args":"quiet","network":true,"user_data":"#!","ssh_keys":["k"],"labels":{"a":"b"},` +
		`"rate_limits":{"disk":{"ops_per_second":10}},"ports":[{"guest":80,"host":8080,"allowed_cidrs":["192.0.2.0/24"],"name":"web"}]}`
	requireSame[machine.Spec](t, spec)
	const overrides = `{"image_id":"img_a","driver":"qemu","description":"","hostname":"","vcpus":2,"mem_mib":256,"disk_mib":512,"boot_args":"","enable_network":false,"user_data":"#!",` +
		`"labels":{"a":"b"},"ssh_keys":["k"],"rate_limits":{"network_in":{"bytes_per_second":65536}},"ports":[{"guest":80}]}`
	requireSame[machine.Overrides](t, overrides)
}

func requireSame[T any](t *testing.T, text string) {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if string(again) != text {
		t.Errorf("written again\n%s, want\n%s", again, text)
	}
}
