package snapshot_test

import (
	"encoding/json"
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

// stored is an origin as earlier versions stored it, before machine.Spec existed.
const stored = `{"hostname":"web","instance_id":"vm_a","image_id":"img_a","template_id":"tpl_a",` +
	`"boot":{"image_id":"img_a","kernel":{"path":"/k","digest":"sha256:aa","size":7,"mod_time":"0001-01-01T00:00:00Z","inode":3},` +
	`"rootfs":{"path":"/r","digest":"","size":0,"mod_time":"0001-01-01T00:00:00Z","inode":0},"rootfs_format":"ext4","modules_path":"","disk_mode":"overlay","boot_args":"","cloud_init":true},` +
	`"initramfs":"abc.cpio","vcpus":2,"mem_mib":512,"disk_mib":1024,"boot_args":"quiet","network":true,"mac":"AvwAAAAC","address":"10.9.0.2",` +
	`"user_data":"#!","ssh_keys":["ssh-ed25519 AAAA"],"labels":{"team":"a"},"rate_limits":{"disk":{"ops_per_second":100}}}`

func TestStoredOriginIsStillRead(t *testing.T) {
	want := snapshot.Origin{
		InstanceID: "vm_a", Initramfs: "abc.cpio",
		MAC: net.HardwareAddr{2, 0xfc, 0, 0, 0, 2}, Address: netip.MustParseAddr("10.9.0.2"),
		Spec: machine.Spec{
			ImageID: "img_a", TemplateID: "tpl_a", Hostname: "web",
			Boot:  image.Boot{ImageID: "img_a", Kernel: image.File{Path: "/k", Digest: "sha256:aa", Size: 7, Inode: 3}, Rootfs: image.File{Path: "/r"}, RootfsFormat: "ext4", DiskMode: image.DiskOverlay, CloudInit: true},
			VCPUs: 2, MemMiB: 512, DiskMiB: 1024, BootArgs: "quiet", EnableNetwork: true,
			UserData: "#!", SSHKeys: []string{"ssh-ed25519 AAAA"}, Labels: map[string]string{"team": "a"},
			RateLimits: vmm.RateLimits{Disk: vmm.DiskLimit{OpsPerSecond: 100}},
		},
	}
	var got snapshot.Origin
	if err := json.Unmarshal([]byte(stored), &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read\n%+v, want\n%+v", got, want)
	}
	requireSameKeys(t, got)
}

// requireSameKeys fails if a key of the stored form is missing or renamed in the new
// form.
func requireSameKeys(t *testing.T, o snapshot.Origin) {
	t.Helper()
	var old, now map[string]json.RawMessage
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	for text, into := range map[string]*map[string]json.RawMessage{stored: &old, string(text): &now} {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(now, old) {
		t.Errorf("encoded again %s, want %s", text, stored)
	}
}
